"""Images whitened and filtered once, so that every pose costs one row of a matrix product."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from cryoprob.fourier.bands import Band, full_band
from cryoprob.models.contrast import Contrast
from cryoprob.models.gaussian_defocus import defocused_ctf
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import Batch, ParticleStack

__all__ = ["Filtered", "filter_images", "filter_nodes"]


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
    model.require_known_imaging()
    return filter_nodes(model, stack, index)[0]


def filter_nodes(model: ParticleModel, stack: ParticleStack, index: Tensor) -> list[Filtered]:
    """The images at every node of the defocus' prior; at the given one where it has none.

    Where the contrast is a latent site they are filtered for a contrast of 1.

    Raises
    ------
    InputError
        If there are nodes and the particles have no optics.
    """
    band = model.band
    like = model.noise.sigma2
    batch = stack.batch(index, band, like.dtype, like.device)
    one = torch.ones_like(like[batch.group, 0])
    known = isinstance(model.contrast, Contrast)
    scale, spread = model.contrast(batch.index) if known else (one, one)
    sigma2 = model.noise(batch.group) * spread[:, None] ** 2
    power = batch.power.to(sigma2.device, torch.float64)
    noise_only = _noise_only(power, sigma2.double(), band)
    power = power / spread[:, None].double() ** 2
    found = []
    for transfer in _transfers(model, batch):
        ctf = transfer * scale[:, None]
        weighted = ctf / sigma2[:, band.shell.to(sigma2.device)]
        image, energy = batch.image * weighted, ctf * weighted
        found.append(Filtered(batch.index, batch.group, image, energy, noise_only, power))
    return found


def _transfers(model: ParticleModel, batch: Batch) -> Iterator[Tensor]:
    """CTFs [n, m] at the given defocus, or at each node of its prior."""
    if model.defocus is None:
        yield batch.ctf
        return
    for node in model.defocus.points:
        error = node.expand(len(batch.index))
        yield defocused_ctf(batch, model.band, model.pixel_size, error)


def _noise_only(power: Tensor, sigma2: Tensor, band: Band) -> Tensor:
    counts = full_band(band.box).numbers_per_shell().to(sigma2)
    return -(power / sigma2 + counts * torch.log(2 * pi * sigma2)).sum(-1) / 2
