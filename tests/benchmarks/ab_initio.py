"""How often a start from nothing finds the molecule: bead-walk phantoms, 32 pixels, SNR 0.2.

    python tests/benchmarks/ab_initio.py [--phantoms 10] [--images 500] [--starts N] [--relion]

Prints one row per phantom: seconds, log evidence of every start, and for the winner the last shell
with FSC above 0.5 after alignment (hand aside). A phantom counts as found from shell 5 on, the
last shell but two of the starts' band. With --relion, RELION 3.1's
`relion_refine --denovo_3dref --sgd` on the same images, one thread.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import torch

from cryoprob.fourier.transforms import crop_map
from cryoprob.inference.ab_initio import AbInitio, AbInitioState
from cryoprob.inference.build import image_power
from cryoprob.inference.schedule import Schedule
from cryoprob.io.mrc import read_map
from cryoprob.metrics.alignment import align_maps
from cryoprob.metrics.fsc import fsc, last_shell
from cryoprob.models.simulate import Simulation, simulate
from cryoprob.particles import ParticleStack
from cryoprob.phantoms import bead_walk

BOX, PIXEL = 32, 5.0


def judged(volume: torch.Tensor, drawn: Simulation) -> int:
    """Last shell at which the aligned map agrees with the truth."""
    truth, _ = read_map(drawn.truth_map)
    volume = crop_map(volume, BOX)
    found = align_maps(volume, truth, pixel_size=PIXEL)
    return last_shell(fsc(found.move_map(volume, PIXEL), truth), 0.5)


def ours(drawn: Simulation, schedule: Schedule, seed: int) -> tuple[list[float], int, float]:
    """Evidence of every start, the winner's shell, seconds."""
    began = time.time()
    stack = ParticleStack.read(drawn.particles)
    algorithm, state = AbInitio(schedule, seed, image_power(stack)), AbInitioState()
    while not state.done:
        algorithm.step(state, stack)
    seconds = time.time() - began
    evidences = [start.log_evidence for start in state.starts]
    return evidences, judged(state.winner.volume, drawn), seconds


def relion(drawn: Simulation, folder: Path) -> tuple[int, float]:
    """The same by RELION's stochastic gradient descent."""
    command = (
        "relion_refine --i particles.star --o ./sgd --denovo_3dref --sgd --K 1 --iter 200"
        " --sgd_ini_iter 50 --sgd_inbetween_iter 100 --sgd_fin_iter 50 --sgd_write_iter 200"
        " --sgd_ini_subset 100 --sgd_fin_subset 500 --sgd_ini_resol 35 --sgd_fin_resol 15 --ctf"
        f" --sym C1 --particle_diameter {0.9 * BOX * PIXEL:.0f} --oversampling 1"
        " --healpix_order 1 --offset_range 6 --offset_step 2 --zero_mask --flatten_solvent"
        " --dont_check_norm --norm --scale --pad 1 --j 1 --random_seed 1"
    )
    began = time.time()
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    seconds = time.time() - began
    maps = sorted(folder.glob("sgd*class001.mrc"))
    volume, _ = read_map(maps[-1])
    return judged(volume, drawn), seconds


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--phantoms", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--starts", type=int, default=Schedule().starts)
    parser.add_argument("--relion", action="store_true")
    given = parser.parse_args()
    found, times = 0, []
    for number in range(given.first, given.first + given.phantoms):
        generator = torch.Generator().manual_seed(number)
        with tempfile.TemporaryDirectory() as folder:
            volume = bead_walk(30, BOX, PIXEL, generator)
            drawn = simulate(volume, PIXEL, given.images, 0.2, generator, out=folder)
            evidences, shell, seconds = ours(drawn, Schedule(starts=given.starts), number)
            ranked = " ".join(f"{value:.2f}" for value in evidences)
            line = f"phantom {number}: shell {shell}, {seconds:.1f} s, starts {ranked}"
            if given.relion:
                theirs, slow = relion(drawn, Path(folder))
                line += f"; RELION shell {theirs}, {slow:.1f} s, ratio {slow / seconds:.1f}"
        found += shell >= 5
        times.append(seconds)
        print(line, flush=True)
    mean = sum(times) / len(times)
    print(f"found {found} of {given.phantoms}; {mean:.1f} s each, {given.starts} starts each")


if __name__ == "__main__":
    main()
