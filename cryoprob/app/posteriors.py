"""Posteriors of single images at a finished fit, for pictures."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cryoprob.fourier.bands import full_band
from cryoprob.inference.config import FitConfig
from cryoprob.inference.dense import DenseGrid
from cryoprob.inference.filtered import filter_images
from cryoprob.inference.loop import load_checkpoint
from cryoprob.metrics.motion import Motion
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import RotationGridPrior, UniformRotation
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.particles import ParticleStack
from cryoprob.types import Images, Rotations, Shifts

__all__ = ["Directions", "Fitted", "moved_directions"]

_BLOCK = 4
"""Images whose scores over all poses are held at once."""


@dataclass(frozen=True, eq=False)
class Directions:
    """Posterior masses [n, K] of viewing directions [K, 3] (unit vectors in the molecule)."""

    directions: Tensor
    mass: Tensor

    @property
    def effective(self) -> Tensor:
        """How many directions each image leaves open, exp of the entropy, [n]."""
        return torch.exp(-torch.xlogy(self.mass, self.mass).sum(1))

    def take(self, index: Tensor) -> "Directions":
        """Some of the images."""
        return Directions(self.directions, self.mass[index])

    def moved(self, motion: Motion) -> "Directions":
        """The same for the moved map."""
        return Directions(moved_directions(self.directions, motion), self.mass)


def moved_directions(directions: Tensor, motion: Motion) -> Tensor:
    """Viewing directions [*, 3] for a moved map: the third rows of its rotations."""
    return directions @ motion.rotation.to(directions).mT


@dataclass(frozen=True, eq=False)
class Fitted:
    """The model of a finished fit, on a rotation grid, and its particles."""

    model: ParticleModel
    volume: Tensor
    stack: ParticleStack

    @classmethod
    def load(cls, out: Path, stack: ParticleStack, order: int = 3) -> "Fitted":
        """From the checkpoint of a fit (the first half, with half sets).

        Raises
        ------
        InputError
            If there is none.
        """
        config = FitConfig.from_toml(out / "config.toml")
        half = load_checkpoint(out / "checkpoint.pt")["refine"]["halves"][0]
        volume, tau2 = half["guide"]["volume.coefficients"].float(), half["volume"]["tau2"].float()
        half = {n: v.float() for n, v in half.items() if isinstance(v, Tensor)}
        plan, size = config.schedule, stack.pixel_size
        lengths = plan.shift_extent * size, plan.shift_step * size / 2
        shift = GaussianShift(float(half["shift_sigma"])).discretize(*lengths)
        model = ParticleModel(
            FourierVoxels(stack.box, tau2, radius=int(half["radius"])),
            UniformRotation().discretize(order, symmetry=config.symmetry),
            shift,
            RadialNoise(half["sigma2"]),
            size,
        )
        return cls(model, volume, stack)

    def directions(self, index: Tensor) -> Directions:
        """Where images ``index`` [n] are seen from, in-plane angles and shifts summed out."""
        grid = DenseGrid.of(self.model, self.volume)
        parts = [index[low : low + _BLOCK] for low in range(0, len(index), _BLOCK)]
        images = (filter_images(self.model, self.stack, part) for part in parts)
        weights = torch.cat([grid.posterior(part).rotation_weights for part in images])
        prior = self.model.rotation
        assert isinstance(prior, RotationGridPrior)
        seen, place = torch.unique(prior.cells() // prior.grid.n_psi, return_inverse=True)
        mass = weights.new_zeros(len(weights), len(seen)).index_add_(1, place, weights)
        return Directions(prior.grid.directions()[seen], mass)

    def predict(self, index: Tensor, rotation: Rotations, shift: Shifts) -> Images:
        """Noiseless images [n, D, D] at poses."""
        band = full_band(self.stack.box)
        batch = self.stack.batch(index, band)
        likelihood = self.model.likelihood(self.volume, rotation, shift, batch)
        return band.unpack(likelihood.mean)
