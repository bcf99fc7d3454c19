"""Encoders: rate of reading poses beside the exact grids they replace, and of training beside cryoDRGN.

    python tests/benchmarks/encoder_rates.py [--data FOLDER] [--orders 1,2,3|""] [--threads N]
                                             [--cryodrgn PROGRAM] [--steps N]

The 70S ribosome set (64 x 64). First table: images per second of the unpruned exact E-step on
rotation grids of the orders, 49 shifts, shells to 20, and of the encoders reading both poses off
in blocks of 200, all in 32-bit numbers, one after the other in one run.

Second table: images per second of training, poses unknown to the package's encoder (a perceptron
of the width and the number of layers given to cryoDRGN, and a voxel map, raised together by
gradient steps), known to cryoDRGN's (``cryodrgn train_vae``: encoder and decoder of that size, two
latent numbers); the same batch and threads. cryoDRGN runs twice, for 1 and 3 passes, so that what
it does before is subtracted; on ``--other-images`` of the images, and on eight times as many where
the network is narrow. Left out with a reason where cryoDRGN is not installed (``pip install
cryodrgn`` in an environment of its own, and ``--cryodrgn`` its program).
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))

from drgn_program import cryodrgn_rate

from cryoprob.fourier.bands import full_band
from cryoprob.fourier.shells import low_pass
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.build import build_model, image_power
from cryoprob.inference.e_step import e_step
from cryoprob.inference.encoders.base import Encoder
from cryoprob.inference.encoders.centering import Centering
from cryoprob.inference.encoders.convolutional import Convolutional
from cryoprob.inference.encoders.fourier_mlp import FourierMLP
from cryoprob.inference.encoders.polar import Polar
from cryoprob.inference.grids import on_grid
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.joint import Joint, JointState
from cryoprob.inference.laws.cells import Cells
from cryoprob.inference.laws.rotations import ConcentratedLaw
from cryoprob.inference.laws.shifts import NormalShift, TurningShift
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.point import Point
from cryoprob.io.mrc import read_map
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.particles import ParticleStack

SHIFTS, RADIUS, EXTENT, SPACING = 49, 20, 8.0, 2.0
"""49 points of a square lattice (pixels) lie in a disk of 8 pixels at a spacing of 2."""


def best_of(work: Callable[[], object], times: int = 3) -> float:
    """The least of several times, seconds."""
    found = []
    for _ in range(times):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def exact_rate(model: ParticleModel, stack: ParticleStack, start: Point, order: int) -> float:
    """Images per second of the exact E-step on a whole grid, slices included for 200 of them."""
    pixel = stack.pixel_size
    shift = GaussianShift(2 * pixel).discretize(EXTENT * pixel, SPACING * pixel)
    assert len(shift.points()) == SHIFTS
    searched = on_grid(model, UniformRotation().discretize(order), shift)
    guide = Guide(rotation=Exact(), shift=Exact(), volume=start)
    images = torch.arange(200 if order < 3 else 40)
    seconds = best_of(lambda: e_step(searched, guide, stack, images), 2 if order < 3 else 1)
    return len(images) / seconds


def encoders(sigma2: torch.Tensor, pixel_size: float) -> dict[str, Guide]:
    """Guides of both poses by name, at an empty map."""
    start, nowhere = torch.eye(3)[None], torch.zeros(1, 2)
    below = Amortized(Polar(18, sigma2, channels=64), TurningShift(1, 8.0), nowhere)
    above = Polar(18, sigma2, channels=128, centering=Centering(below, pixel_size))
    plain = FourierMLP(18, sigma2, width=1024, matched=True)
    images = Convolutional(16, sigma2, channels=32, size=512, matched=True)
    pairs = {"two Polar, Cells": (Amortized(above, Cells(1), start), below)}
    for name, one in (("FourierMLP (1024), Cells", plain), ("Convolutional, Cells", images)):
        pairs[name] = Amortized(one, Cells(1), start), Amortized(one, NormalShift(8.0), nowhere)
    one = FourierMLP(18, sigma2, width=1024, matched=True)
    pairs["FourierMLP (1024), one law"] = (
        Amortized(one, ConcentratedLaw(20.0), start),
        Amortized(one, NormalShift(8.0), nowhere),
    )
    empty = Point(torch.zeros(1))
    return {n: Guide(rotation=r, shift=s, volume=empty).eval() for n, (r, s) in pairs.items()}


@torch.no_grad()
def reading_rate(guide: Guide, stack: ParticleStack) -> float:
    """Images per second of reading both modes off."""
    radius = max(part.band.radius for part in guide.modules() if isinstance(part, Encoder))
    band = full_band(stack.box).prefix(radius)
    batches = [stack.batch(part, band) for part in torch.arange(1000).split(200)]

    def read() -> None:
        for batch in batches:
            guide.forget()
            guide.rotation.mode(batch)
            guide.shift.mode(batch)

    return 1000 / best_of(read)


def training_rate(stack: ParticleStack, width: int, layers: int, batch: int, steps: int) -> float:
    """Images per second of gradient steps of an encoder and a map together."""
    model = build_model(stack, Schedule(), image_power(stack), radius=RADIUS)
    encoder = FourierMLP(stack.box, model.noise.sigma2.mean(0), width=width, layers=layers)
    start = random_rotations(1, torch.Generator().manual_seed(1), torch.float32)
    turns = Amortized(encoder, ConcentratedLaw(20.0), start)
    moves = Amortized(encoder, NormalShift(8.0), torch.zeros(1, 2))
    box = stack.box
    guide = Guide(rotation=turns, shift=moves, volume=Point(torch.zeros(box, box, box)))
    state = JointState(Half(model, guide, torch.arange(len(stack))))
    joint = Joint(Elbo(), 1, steps=10 * steps, batch=batch, first_radius=RADIUS, radius=RADIUS)
    joint.step(state, stack)
    records = [joint.step(state, stack) for _ in range(steps // 50)]
    return sum(r["images"] for r in records) / sum(r["seconds"] for r in records)


def tell_reading(
    stack: ParticleStack, model: ParticleModel, data: Path, orders: list[int]
) -> None:
    """The first table."""
    truth, _ = read_map(data / "truth.mrc")
    start = Point(low_pass(truth.float(), stack.pixel_size, 15.0))
    exact = {n: exact_rate(model, stack, start, n) for n in orders}
    print("| reads poses | images/s | " + " | ".join(f"times order {n}" for n in exact) + " |")
    print("|---" * (2 + len(exact)) + "|")
    for order, rate in exact.items():
        print(f"| exact, order {order} x {SHIFTS} shifts | {rate:.1f} |" + " |" * len(exact))
    for name, guide in encoders(model.noise.sigma2.mean(0), stack.pixel_size).items():
        rate = reading_rate(guide, stack)
        times = " | ".join(f"{rate / other:.0f}" for other in exact.values())
        print(f"| {name} | {rate:.0f} | {times} |", flush=True)


def main() -> None:
    """Run both tables."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=beside / "relion-70s")
    parser.add_argument("--orders", default="1,2,3")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cryodrgn", default=shutil.which("cryodrgn"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--other-images", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    stack = ParticleStack.read(given.data / "particles.star")
    model = build_model(stack, Schedule(), image_power(stack), radius=RADIUS)
    orders = [int(n) for n in given.orders.split(",") if n]
    if orders:
        tell_reading(stack, model, given.data, orders)
    print("\n| width x layers | batch | cryoprob, images/s | cryoDRGN, images/s | ratio |")
    print("|---|---|---|---|---|")
    for width, layers, batch in ((256, 3, 16), (256, 3, 64), (1024, 3, 64)):
        own = training_rate(stack, width, layers, batch, given.steps)
        told = "not installed (--cryodrgn) | "
        if given.cryodrgn:
            images = given.other_images * (8 if width <= 256 else 1)
            network = {"width": width, "layers": layers, "batch": batch, "zdim": 2}
            other, _ = cryodrgn_rate(given.cryodrgn, given.data, images=images, **network)
            told = f"{other:.0f} | {own / other:.1f}"
        print(f"| {width} x {layers} | {batch} | {own:.0f} | {told} |", flush=True)


if __name__ == "__main__":
    main()
