"""RELION's relion_reconstruct beside cryoprob's reconstruction at known poses: time and FSC.

Not a test: ``python tests/benchmarks/relion_reconstruct.py`` prints a table. Both read the images,
insert them at the poses of truth.star, solve for the map and cut its corners off: RELION always
multiplies its map by a soft ball of half the box, half the noise of a cube is outside. RELION's
program has one thread.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from relion_refine import DATA

from cryoprob import masks
from cryoprob.inference.build import build_guide, build_model, image_power
from cryoprob.inference.e_step import e_step
from cryoprob.inference.families import Recipe, family
from cryoprob.inference.m_step import solve_volume, update_tau2
from cryoprob.inference.schedule import Schedule
from cryoprob.io.mrc import read_map
from cryoprob.metrics import fsc, last_shell
from cryoprob.particles import ParticleStack

EDGE_PX = 3.0
ROUNDS = 2
"""Solutions, with the prior power re-estimated in between; RELION's map has no prior."""


def relion(data: Path, folder: Path) -> torch.Tensor:
    """RELION's map."""
    command = ["relion_reconstruct", "--i", "truth.star", "--ctf", "--o", str(folder / "map.mrc")]
    subprocess.run(command, cwd=data, check=True, capture_output=True)
    return read_map(folder / "map.mrc", pixel_size=5.0)[0]


def ours(data: Path, exact: bool) -> torch.Tensor:
    """cryoprob's map, from opening the files on."""
    stack = ParticleStack.read(data / "truth.star", need=("ctf", "rotation", "shift"))
    model = build_model(stack, Schedule(), image_power(stack))
    start = torch.zeros(3 * [stack.box])
    recipe = Recipe(model, start, Schedule(), len(stack), 0)
    guide = build_guide(recipe, family("exact-em"), stack, "known")
    volume, equations = start, e_step(model, guide, stack).insertion.equations()
    for _ in range(ROUNDS):
        found = solve_volume(equations, model.volume.tau2, volume, exact=exact, tolerance=1e-3)
        update_tau2(model, found)
        volume = found.volume
    return volume * masks.sphere(stack.box, stack.box / 2, EDGE_PX)


def main() -> int:
    """Run all and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if shutil.which("relion_reconstruct") is None:
        print("relion_reconstruct is not on the PATH: install RELION 3.1 (Debian: relion).")
        return 1
    torch.set_num_threads(options.threads)
    truth, _ = read_map(options.data / "truth.mrc")
    print("| program | s | FSC 0.5 to shell |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        runs = {
            "relion_reconstruct, 1 thread": lambda: relion(options.data, Path(name)),
            "cryoprob, diagonal M-step": lambda: ours(options.data, exact=False),
            "cryoprob, exact M-step": lambda: ours(options.data, exact=True),
        }
        for program, run in runs.items():
            began = time.perf_counter()
            volume = run()
            seconds = time.perf_counter() - began
            shell = last_shell(fsc(volume, truth), 0.5)
            print(f"| {program} | {seconds:.1f} | {shell} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
