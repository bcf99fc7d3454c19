"""Poses read off images by encoders that learned from the model's own draws: 70S ribosome set.

    python tests/benchmarks/amortized_poses.py [--data FOLDER] [--map MAP] [--minutes M]
                                               [--encoders polar,mlp,conv,heads,one] [--seed N]

The volume and the noise are given (the truth low-passed to 10 A, and the residual's spectrum at
the true poses of 1600 images); encoders see draws of the model with the CTFs of those images, and
are judged on the other 400 real ones. Prints one row per encoder: parameters, minutes of training,
images drawn (millions), rotation error in degrees (median, 90 % quantile, share above 30), median
shift error in pixels, the same rotation errors after a local Gauss-Newton search from there, and
images per second when poses are read off (32-bit numbers, blocks of 200).
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import cos, pi
from pathlib import Path

import torch
from torch import Tensor

from cryoprob.fourier.bands import full_band
from cryoprob.fourier.shells import low_pass
from cryoprob.geometry.rotations import angle_between, random_rotations
from cryoprob.inference.encoders.base import Encoder
from cryoprob.inference.encoders.centering import Centering
from cryoprob.inference.encoders.convolutional import Convolutional
from cryoprob.inference.encoders.fourier_mlp import FourierMLP
from cryoprob.inference.encoders.polar import Polar
from cryoprob.inference.filtered import filter_images
from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.base import Law
from cryoprob.inference.laws.cells import Cells
from cryoprob.inference.laws.heads import Heads
from cryoprob.inference.laws.rotations import ConcentratedLaw
from cryoprob.inference.laws.shifts import NormalShift, TurningShift
from cryoprob.inference.local_search import climb
from cryoprob.inference.objectives.sleep import Sleep
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.point import Point
from cryoprob.io.mrc import read_map
from cryoprob.io.tables import read_particles
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.particles import Batch, ParticleStack

BOX, SEARCH_RADIUS = 18, 15
"""The encoders' box (8 shells), and the shells of the search."""

SIGMA_A, HELD, BATCH = 8.7, 400, 512


@dataclass
class Task:
    """The real images, their true poses, the map and the noise."""

    stack: ParticleStack
    rotation: Tensor
    shift: Tensor
    volume: Tensor
    sigma2: Tensor

    @classmethod
    def read(cls, data: Path, given: Path | None) -> "Task":
        """The set, and the given map or the truth."""
        stack = ParticleStack.read(data / "particles.star")
        table = read_particles(data / "truth.star", need=("rotation", "shift"))
        volume, _ = read_map(data / "truth.mrc" if given is None else given)
        if given is None:
            volume = low_pass(volume, stack.pixel_size, 10.0)
        poses = table.rotation().float(), table.displacement().float()
        task = cls(stack, *poses, volume.float(), torch.ones(stack.box // 2 + 2))
        task.sigma2 = task.residual()
        return task

    @property
    def seen(self) -> Tensor:
        """Images that lend CTF and noise."""
        return torch.arange(len(self.stack) - HELD)

    @property
    def held(self) -> Tensor:
        """Images that judge."""
        return torch.arange(len(self.stack) - HELD, len(self.stack))

    def model(self, radius: int) -> ParticleModel:
        """The model with continuous poses in a band."""
        voxels = FourierVoxels(self.stack.box, radius=radius)
        poses = UniformRotation(), GaussianShift(SIGMA_A)
        return ParticleModel(voxels, *poses, RadialNoise(self.sigma2[None]), self.stack.pixel_size)

    def guide(self, rotation: Amortized, shift: Amortized) -> Guide:
        """A guide at the given volume."""
        return Guide(rotation=rotation, shift=shift, volume=Point(self.volume))

    def residual(self) -> Tensor:
        """Noise variance per shell, from what the true poses leave."""
        band = full_band(self.stack.box).prefix(self.stack.box // 2 - 1)
        batch = self.stack.batch(self.seen, band)
        voxels = FourierVoxels(self.stack.box)
        phase = shift_phase(band, self.shift[self.seen], self.stack.pixel_size)
        clean = voxels.slices(self.volume, self.rotation[self.seen]) * phase * batch.ctf
        power = (batch.image - clean).abs().square().mean(0)
        count = band.numbers_per_shell()
        found = torch.zeros(band.n_shells).index_add_(0, band.shell, power) / count.clamp(min=1)
        return torch.where(found > 0, found, found[-4]).float()


def polar(task: Task, start: Tensor) -> Guide:
    """Encoders that turn with the image: one for the shift, one that sees centered images."""
    common = {"order": 1, "precision": torch.bfloat16}
    below = Polar(BOX, task.sigma2, channels=64, **common)
    shift = Amortized(below, TurningShift(1, SIGMA_A), torch.zeros(1, 2))
    centering = Centering(shift, task.stack.pixel_size)
    above = Polar(BOX, task.sigma2, channels=128, centering=centering, **common)
    return task.guide(Amortized(above, Cells(1), start), shift)


def plain(build: Callable[[Tensor], Encoder], law: Law) -> Callable[[Task, Tensor], Guide]:
    """One encoder of the whole image for both sites."""

    def guide(task: Task, start: Tensor) -> Guide:
        encoder = build(task.sigma2)
        shift = Amortized(encoder, NormalShift(SIGMA_A), torch.zeros(1, 2))
        return task.guide(Amortized(encoder, law, start), shift)

    return guide


def perceptron(sigma2: Tensor) -> Encoder:
    """Fourier numbers through residual layers."""
    return FourierMLP(BOX, sigma2, width=1024, matched=True, precision=torch.bfloat16)


def convolutional(sigma2: Tensor) -> Encoder:
    """VGG's shape."""
    options = {"channels": 32, "size": 512, "matched": True, "precision": torch.bfloat16}
    return Convolutional(BOX - 2, sigma2, **options)


ENCODERS = {
    "polar": polar,
    "mlp": plain(perceptron, Cells(1)),
    "conv": plain(convolutional, Cells(1)),
    "heads": plain(perceptron, Heads(ConcentratedLaw(30.0), 8)),
    "one": plain(perceptron, ConcentratedLaw(60.0)),
}
"""By name: encoders of their own or plain ones, all with Cells; plain ones with 8 heads, or one."""


def train(task: Task, guide: Guide, minutes: float, rate: float) -> int:
    """Images drawn in so many minutes of AdamW under a cosine schedule."""
    model, objective = task.model(BOX // 2 - 1), Sleep()
    batches = task.stack.batch(task.seen, model.band)
    parts = torch.nn.ModuleList([guide.rotation, guide.shift])
    optimizer = torch.optim.AdamW(parts.parameters(), fused=True)
    began, steps = time.time(), 0
    while (share := (time.time() - began) / (60 * minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, steps / 100) * (1 + cos(pi * share)) / 2
        batch = some(batches, torch.randint(len(task.seen), (BATCH,)))
        loss = -objective(model, guide, task.volume, batch).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts.parameters(), 1.0)
        optimizer.step()
        steps += 1
    return steps * BATCH


def some(batch: Batch, index: Tensor) -> Batch:
    """Rows of a batch."""
    parts = ("image", "power", "ctf", "group", "index")
    return replace(batch, optics=None, **{name: getattr(batch, name)[index] for name in parts})


@torch.no_grad()
def read_off(task: Task, guide: Guide) -> tuple[Tensor, Tensor, float]:
    """Rotations and shifts of the held images, and images per second."""
    for part in guide.modules():
        if isinstance(part, Encoder):
            part.precision = None
    band = full_band(task.stack.box).prefix(BOX // 2 - 1)
    batches = [task.stack.batch(part, band) for part in task.held.split(200)]
    guide.eval()
    for _ in range(3):
        began, found = time.time(), []
        for batch in batches:
            guide.forget()
            found.append((guide.rotation.mode(batch), guide.shift.mode(batch)))
    rotation, shift = (torch.cat(parts) for parts in zip(*found, strict=True))
    return rotation, shift, HELD / (time.time() - began)


def words(task: Task, rotation: Tensor) -> str:
    """Errors of the held images."""
    error = angle_between(rotation, task.rotation[task.held])
    return f"{error.median():7.2f} {error.quantile(0.9):7.2f} {(error > 30).float().mean():6.3f}"


def row(task: Task, name: str, minutes: float, rate: float, seed: int) -> str:
    """One encoder, trained and judged."""
    torch.manual_seed(seed)
    start = random_rotations(8, torch.Generator().manual_seed(1), torch.float32)
    guide = ENCODERS[name](task, start)
    drawn = train(task, guide, minutes, rate)
    rotation, shift, speed = read_off(task, guide)
    model = task.model(SEARCH_RADIUS)
    images = filter_images(model, task.stack, task.held)
    best = climb(model, task.volume, images, rotation.contiguous(), shift.contiguous(), 10)
    away = (shift - task.shift[task.held]).norm(dim=-1).median() / task.stack.pixel_size
    parts = torch.nn.ModuleList([guide.rotation, guide.shift])
    size = sum(p.numel() for p in parts.parameters()) / 1e6
    return (
        f"{name:8} {size:6.2f} {minutes:7.1f} {drawn / 1e6:6.2f} {words(task, rotation)} {away:7.2f}"
        f" | {words(task, best.rotation)} | {speed:8.0f}"
    )


def main() -> None:
    """Run the table."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=beside / "relion-70s")
    parser.add_argument("--map", type=Path)
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--encoders", default=",".join(ENCODERS))
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    task = Task.read(given.data, given.map)
    print(
        "encoder  params minutes images   rotation error       shift | after the search",
        flush=True,
    )
    for name in given.encoders.split(","):
        print(row(task, name, given.minutes, given.rate, given.seed), flush=True)


if __name__ == "__main__":
    main()
