"""Training of the cryodrgn preset beside cryoDRGN: images per second and memory.

    python tests/benchmarks/cryodrgn_beside.py [--data FOLDER] [--cryodrgn PROGRAM] [--threads N]
                                               [--batch N] [--images N] [--steps N]

Adenylate kinase, 64 x 64, poses known; the same network size, batch and threads, one after the
other in one run. cryoDRGN runs twice, for 1 and 3 passes over ``--images`` (a sixteenth of them
for the wide network), so that what it does before is subtracted. Peak memory: of this process
after our training, of the largest child for cryoDRGN. Left out with a reason where cryoDRGN is not
installed (``pip install cryodrgn`` in an environment of its own, and ``--cryodrgn`` its program).
"""

import argparse
import resource
import shutil
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from drgn_program import cryodrgn_rate

from cryoprob.inference.config import FitConfig
from cryoprob.inference.presets.menu import load
from cryoprob.inference.reload import system_of
from cryoprob.inference.schedule import Schedule
from cryoprob.particles import ParticleStack

SIZES = ((2, 256, 3), (8, 1024, 3))


def own_rate(data: Path, zdim: int, width: int, layers: int, batch: int, steps: int) -> float:
    """Images per second of gradient steps, after fifty that are not counted."""
    stack = ParticleStack.read(data / "truth.star", need=("ctf", "rotation", "shift"))
    size = {"zdim": zdim, "width": width, "layers": layers, "batch": batch, "epochs": 100.0}
    plan = Schedule(**{**load("cryodrgn").plan, **size})
    settings = {"preset": "cryodrgn", "poses": "known", "seed": 1, "schedule": plan}
    built = system_of(FitConfig(str(data / "truth.star"), **settings), stack)
    built.algorithm.step(built.state, stack)
    records = [built.algorithm.step(built.state, stack) for _ in range(max(1, steps // 50))]
    return sum(r["images"] for r in records) / sum(r["seconds"] for r in records)


def main() -> None:
    """Print the table."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=beside / "adk-path")
    parser.add_argument("--cryodrgn", default=shutil.which("cryodrgn"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print("| zdim, width x layers | cryoprob, images/s | GiB | cryoDRGN, images/s | GiB | ratio |")
    print("|---|---|---|---|---|---|")
    for zdim, width, layers in SIZES:
        images = given.images if width <= 256 else given.images // 16
        steps = given.steps if width <= 256 else 50
        own = own_rate(given.data, zdim, width, layers, given.batch, steps)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        told = "not installed (--cryodrgn) | | "
        if given.cryodrgn:
            size = {"zdim": zdim, "width": width, "layers": layers, "batch": given.batch}
            other, its = cryodrgn_rate(given.cryodrgn, given.data, images=images, **size)
            told = f"{other:.1f} | {its:.1f} | {own / other:.1f}"
        print(f"| {zdim}, {width} x {layers} | {own:.1f} | {peak:.1f} | {told} |", flush=True)


if __name__ == "__main__":
    main()
