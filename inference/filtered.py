"""Images whitened and filtered once, so that every pose costs one row of a matrix product."""

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from cryoprob.fourier.bands import Band, full_band
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack

__all__ = ["Filtered", "filter_images"]


@dataclass(frozen=True, eq=False)
class Filtered:
    """What ``log p = noise_only + <image, P> - <transfer, |P|^2> / 2`` needs of n images.

    Attributes
    ----------
    index
        Their numbers in the stack, [n].
    group
        Optics group, [n].
    image
        ``c x / sigma2`` in the model's band, [n, m] complex.
    transfer
        ``c^2 / sigma2``, [n, m].
    noise_only
        Log density of the whole image under noise alone, [n] (float64).
    power
        Sum of squares per shell, over the image's noise factor, [n, S] (float64).
    """

    index: Tensor
    group: Tensor
    image: Tensor
    transfer: Tensor
    noise_only: Tensor
    power: Tensor

    def __len__(self) -> int:
        return self.index.numel()

    def take(self, rows: Tensor | slice) -> "Filtered":
        """A part of the images."""
        parts = (self.index, self.group, self.image, self.transfer, self.noise_only, self.power)
        return Filtered(*(part[rows] for part in parts))


def filter_images(model: ParticleModel, stack: ParticleStack, index: Tensor) -> Filtered:
    """Read and filter the images ``index`` [n] of a stack in the model's band.

    Raises
    ------
    InputError
        If contrast or defocus is a latent site.
    """
    band = model.band
    like = model.noise.sigma2
    batch = stack.batch(index, band, like.dtype, like.device)
    scale, spread = model.known_contrast(batch.index)
    sigma2 = model.noise(batch.group) * spread[:, None] ** 2
    ctf = batch.ctf * scale[:, None]
    weighted = ctf / sigma2[:, band.shell.to(sigma2.device)]
    power = batch.power.to(sigma2.device, torch.float64)
    noise_only = _noise_only(power, sigma2.double(), band)
    power = power / spread[:, None].double() ** 2
    return Filtered(
        batch.index, batch.group, batch.image * weighted, ctf * weighted, noise_only, power
    )


def _noise_only(power: Tensor, sigma2: Tensor, band: Band) -> Tensor:
    counts = full_band(band.box).numbers_per_shell().to(sigma2)
    return -(power / sigma2 + counts * torch.log(2 * pi * sigma2)).sum(-1) / 2
