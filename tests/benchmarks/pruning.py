"""What coarse-to-fine search loses, in nats per image, and what it costs, beside the whole grid.

Not a test: ``python tests/benchmarks/pruning.py`` prints a table: the 70S set at its true map,
low-passed, under white noise of several levels, grids of 15 degrees refined to 7.5.
"""

import argparse
import time

import torch
from relion_refine import DATA, Truth

from cryoprob.fourier.shells import low_pass
from cryoprob.inference.e_step import e_step
from cryoprob.inference.guide import Guide
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.point import Point
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.particles import ParticleStack

RADIUS = 18
SETTINGS = ((10.0, 1.0), (15.0, 5.0), (20.0, 20.0))
"""Low-pass filter of the map (Angstrom) and noise variance; the images' own is 1."""


def model_at(stack: ParticleStack, noise: float) -> ParticleModel:
    """White noise, 7.5 degrees, 5 A, shells to 18."""
    return ParticleModel(
        FourierVoxels(stack.box, radius=RADIUS),
        UniformRotation().discretize(3),
        GaussianShift(10.0).discretize(30.0, 10.0, refine=1),
        RadialNoise(torch.full((1, stack.box // 2 + 2), noise)),
        stack.pixel_size,
    )


def run(
    model: ParticleModel, volume: torch.Tensor, stack: ParticleStack, exact: Exact, count: int
) -> torch.Tensor:
    """Log evidence of the first images at a map."""
    guide = Guide(rotation=exact, shift=exact, volume=Point(volume))
    index = torch.arange(count)
    return e_step(model, guide, stack, index).summary.bound[index]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    truth, stack = Truth.read(DATA), ParticleStack.read(DATA / "particles.star")
    searches = {
        "whole grid": Exact(),
        "mass 0.999 alone": Exact(0.999, least=1),
        "mass 0.999 and the best 32": Exact(0.999),
    }
    print("| map, A | noise | search | mean loss, nats | largest | lost over 1 nat | s |")
    print("|---|---|---|---|---|---|---|")
    for filtered, noise in SETTINGS:
        model = model_at(stack, noise)
        volume = low_pass(truth.volume, truth.pixel_size, filtered)
        whole = None
        for name, exact in searches.items():
            began = time.perf_counter()
            found = run(model, volume, stack, exact, options.images)
            seconds = time.perf_counter() - began
            whole = found if whole is None else whole
            loss = whole - found
            row = f"{loss.mean():.3f} | {loss.max():.3f} | {int((loss > 1).sum())}"
            print(f"| {filtered:.0f} | {noise:.0f} | {name} | {row} | {seconds:.1f} |", flush=True)


if __name__ == "__main__":
    main()
