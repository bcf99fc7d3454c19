"""Branch and bound beside the beam and the whole grid: poses scored, processor time, poses found.

Not a test: ``python tests/benchmarks/branch_and_bound.py`` prints a table: bead walks of 32 pixels
drawn at several SNRs, at their true map, and the 70S set (64 pixels, SNR 0.1) at its own; 4608
rotations x 29 shifts refined once (36864 x 116). A beam scores its coarse grid completely; what
the bounds' rows count holds the beam that they start from.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from relion_refine import DATA, Truth

from cryoprob.inference.bounds import BOUNDS
from cryoprob.inference.branch_and_bound import Best, BranchAndBound, Ladder
from cryoprob.inference.filtered import Filtered, filter_images
from cryoprob.inference.levels import levels
from cryoprob.inference.search import best_poses
from cryoprob.inference.treatments.modal import Modal
from cryoprob.io.mrc import read_map
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.simulate import simulate
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.particles import ParticleStack
from cryoprob.phantoms import bead_walk

PIXEL = 5.0
COARSE = 2
BEAM = 8
BLOCK_BYTES = 2**23


@dataclass(frozen=True, eq=False)
class Case:
    """Images of a known map, and the model that they are searched with."""

    name: str
    model: ParticleModel
    volume: torch.Tensor
    images: Filtered

    @property
    def poses(self) -> int:
        """Of the finest grid."""
        return len(self.model.rotation.cells()) * len(self.model.shift.points())

    def beam_scores(self, beam: int) -> float:
        """What a beam scores of an image, at most, in scores of the whole band."""
        first, *finer = levels(self.model, self.volume, COARSE)
        shifts = len(first.shift.points())
        share = len(self.model.linear_volume.slicer_at(first.radius).band) / len(self.model.band)
        kept = 8 * beam * 4 * min(shifts, max(1, beam // 2))
        return share * len(first.rotation.cells()) * shifts + kept * len(finer)


def model_at(stack: ParticleStack, radius: int, order: int, sigma: float) -> ParticleModel:
    """White noise of variance 1, shifts to 6 pixels 2 apart, refined with the rotations."""
    return ParticleModel(
        FourierVoxels(stack.box, radius=radius),
        UniformRotation().discretize(order),
        GaussianShift(sigma).discretize(6 * PIXEL, 2 * PIXEL, refine=order - COARSE),
        RadialNoise(torch.ones(1, stack.box // 2 + 2)),
        stack.pixel_size,
    )


def beads(snr: float, count: int, order: int) -> Case:
    """A bead walk of 32 pixels."""
    generator = torch.Generator().manual_seed(5)
    molecule = bead_walk(30, 32, PIXEL, generator)
    with tempfile.TemporaryDirectory() as folder:
        drawn = simulate(molecule, PIXEL, count, snr, generator, out=Path(folder))
        stack, volume = ParticleStack.read(drawn.particles), read_map(drawn.truth_map)[0]
        model = model_at(stack, 15, order, 0.03 * 32 * PIXEL)
        images = filter_images(model, stack, torch.arange(count))
    return Case(f"beads, {snr:g}", model, volume, images)


def ribosomes(count: int, order: int) -> Case:
    """The 70S set, shells to 18."""
    truth, stack = Truth.read(DATA), ParticleStack.read(DATA / "particles.star")
    model = model_at(stack, 18, order, 2 * PIXEL)
    return Case("70S, 0.1", model, truth.volume, filter_images(model, stack, torch.arange(count)))


def bounded(case: Case, name: str) -> tuple[Best, float]:
    """By branch and bound: poses, and scores per image."""
    bound, start, scored = BOUNDS[name], None, 0.0
    ladder = Ladder.of(case.model, case.volume, bound, COARSE)
    search = BranchAndBound(ladder, case.images, BLOCK_BYTES)
    if bound.inside:
        beam = Modal(BEAM, coarse_order=COARSE)
        start = Best(*best_poses(case.model, case.volume, beam, case.images))
        scored = case.beam_scores(BEAM)
    return search.search(start), scored + float(search.scored.mean())


def searched(case: Case, beam: int | None) -> tuple[Best, float]:
    """By a beam, or the whole grid."""
    found = best_poses(case.model, case.volume, Modal(beam, coarse_order=COARSE), case.images)
    return Best(*found), case.beam_scores(beam) if beam else float(case.poses)


def rows(case: Case) -> None:
    """Print what each search finds and costs."""
    searches: dict[str, Callable[[], tuple[Best, float]]] = {
        "whole grid": lambda: searched(case, None),
        "beam of 8": lambda: searched(case, 8),
        "beam of 32": lambda: searched(case, 32),
    }
    for name in BOUNDS:
        searches[f"bound {name}"] = lambda name=name: bounded(case, name)
    best = None
    for name, search in searches.items():
        began = time.process_time()
        found, scored = search()
        seconds = time.process_time() - began
        best = found if best is None else best
        loss = (best.value - found.value).clamp(min=0)
        missed = int((loss > 0.05).sum())  # sums of 1000 nats in single precision
        part = f"{100 * scored / case.poses:.1f} % | {missed} | {loss.max():.1f} | {seconds:.1f}"
        print(f"| {case.name} | {name} | {part} |", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--order", type=int, default=3)
    parser.add_argument("--snr", type=float, nargs="*", default=[10.0, 1.0, 0.3, 0.1])
    parser.add_argument("--no-ribosomes", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print("| set, SNR | search | scored, of the grid | images missed | worst, nats | CPU s |")
    print("|---|---|---|---|---|---|")
    with torch.no_grad():
        for snr in given.snr:
            rows(beads(snr, given.images, given.order))
        if not given.no_ribosomes:
            rows(ribosomes(given.images, given.order))


if __name__ == "__main__":
    main()
