"""Training of the cryodrgn preset beside cryoDRGN: images per second and memory.

    python tests/benchmarks/cryodrgn_beside.py [--data FOLDER] [--cryodrgn PROGRAM] [--threads N]
                                               [--batch N] [--images N] [--steps N] [--passes N]

Adenylate kinase, 64 x 64, poses known; the same network size, batch and threads, one after the
other in one run. Time is the processors' (with ``--threads 1`` that of an idle machine, whatever
else runs). cryoDRGN runs twice, for 1 and 3 passes over ``--images`` (a sixteenth of them
for the wide network), so that what it does before is subtracted. Peak memory: of this process
after our training, of the largest child for cryoDRGN. Left out with a reason where cryoDRGN is not
installed (``pip install cryodrgn`` in an environment of its own, and ``--cryodrgn`` its program).

With ``--passes`` also what both have after equal time (the smaller network, all images; cryoDRGN's
program from start to end, with its own settings): Spearman correlation of the leading principal
coordinate with the true progress, and the mean FSC, to half of Nyquist, of maps at 20 images'
coordinates with their true frames.
"""

import argparse
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

sys.path.insert(0, str(Path(__file__).resolve().parent))

from conformations import frame_maps, likeness
from drgn_program import conformations, cryodrgn_rate, prepare, train, volumes

from cryoprob.inference.config import FitConfig
from cryoprob.inference.presets.menu import load
from cryoprob.inference.reload import system_of
from cryoprob.inference.schedule import Schedule
from cryoprob.metrics.principal_axes import principal_axes
from cryoprob.particles import ParticleStack

SIZES = ((2, 256, 3), (8, 1024, 3))


def own_rate(data: Path, zdim: int, width: int, layers: int, batch: int, steps: int) -> float:
    """Images per second (of one processor) of gradient steps, after fifty not counted."""
    stack = ParticleStack.read(data / "truth.star", need=("ctf", "rotation", "shift"))
    size = {"zdim": zdim, "width": width, "layers": layers, "batch": batch, "epochs": 100.0}
    plan = Schedule(**{**load("cryodrgn").plan, **size})
    settings = {"preset": "cryodrgn", "poses": "known", "seed": 1, "schedule": plan}
    built = system_of(FitConfig(str(data / "truth.star"), **settings), stack)
    built.algorithm.step(built.state, stack)
    began = time.process_time()
    records = [built.algorithm.step(built.state, stack) for _ in range(max(1, steps // 50))]
    return sum(r["images"] for r in records) / (time.process_time() - began)


def after(data: Path, program: str, passes: int, batch: int) -> None:
    """Both after the time that cryoDRGN takes for some passes."""
    zdim, width, layers = SIZES[0]
    size = {"zdim": zdim, "width": width, "layers": layers, "batch": batch}
    stack = ParticleStack.read(data / "truth.star", need=("ctf", "rotation", "shift"))
    frame = torch.from_numpy(stack.table.columns.numbers("frameIndex")).long()
    progress = stack.table.columns.numbers("frameProgress")
    maps, shown = frame_maps(data, stack.box), torch.linspace(0, len(stack) - 1, 20).long()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(program, data, folder)
        seconds = train(program, data, folder, passes, [], **size)  # its CTF has the other sign
        z = torch.from_numpy(conformations(folder, passes)).double()
        found = volumes(program, folder, passes, z[shown].numpy())
    theirs = [torch.from_numpy(v).float() for v in found]
    tell("cryoDRGN", seconds, z, progress, theirs, maps[frame[shown]])
    plan = Schedule(**{**load("cryodrgn").plan, **size, "learn_rate": 1e-3, "epochs": 1.0})
    rate = own_rate(data, zdim, width, layers, batch, 200)
    epochs = rate * seconds / len(stack)
    settings = {"preset": "cryodrgn", "poses": "known", "seed": 1}
    config = FitConfig(str(data / "truth.star"), schedule=replace(plan, epochs=epochs), **settings)
    built, built_at = system_of(config, stack), time.process_time()
    while not built.state.done:
        built.algorithm.step(built.state, stack)
    spent, result = time.process_time() - built_at, built.finish()
    weights, volume = built.half.guide.volume.coefficients.detach(), built.half.model.volume
    with torch.no_grad():
        places = result.states.mean[shown].to(weights)
        own = [volume.density(weights, place) for place in places]
    tell("cryoprob", spent, result.states.mean.double(), progress, own, maps[frame[shown]])


def tell(
    name: str, seconds: float, z: Tensor, progress: np.ndarray, found: list[Tensor], truth: Tensor
) -> None:
    """One row."""
    leading = principal_axes(z).project(z)[:, 0]
    rank = abs(float(spearmanr(leading.numpy(), progress).statistic))
    alike = [likeness(one, other) for one, other in zip(found, truth, strict=True)]
    mean = sum(alike) / len(alike)
    print(f"| {name} | {seconds / 60:.1f} | {rank:.3f} | {mean:.3f} |", flush=True)


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
    parser.add_argument("--sizes", default="0,1")
    parser.add_argument("--passes", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print("| zdim, width x layers | cryoprob, images/s | GiB | cryoDRGN, images/s | GiB | ratio |")
    print("|---|---|---|---|---|---|")
    for zdim, width, layers in [SIZES[int(n)] for n in given.sizes.split(",") if n]:
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
    if given.passes and given.cryodrgn:
        print("\n| | minutes | Spearman | FSC at z |\n|---|---|---|---|")
        after(given.data, given.cryodrgn, given.passes, given.batch)


if __name__ == "__main__":
    main()
