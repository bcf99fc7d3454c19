"""Exact posteriors over a whole grid of poses: blocks of images, two matrix products.

One softmax.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import roma
import torch
from torch import Tensor

from cryoprob.fourier.bands import Band
from cryoprob.fourier.gaussian_map import AnyMap, mean_of, power_of
from cryoprob.inference.amplitude_law import AmplitudeLaw, Amplitudes
from cryoprob.inference.filtered import Filtered
from cryoprob.inference.levels import Level
from cryoprob.inference.statistics import PosteriorSummary, reals
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel

__all__ = ["DenseGrid", "DensePosterior", "blocks", "within"]


@dataclass(frozen=True, eq=False)
class DenseGrid:
    """A grid of poses with everything that does not depend on the image.

    Attributes
    ----------
    rotations
        [Q, 3, 3].
    slices, energy
        Slices [Q, m] (complex) and the mean of |slices|^2 / 2 [Q, m].
    phase
        Conjugate shift phases, [T, m].
    shifts
        [T, 2], Angstrom.
    log_rotation, log_shift
        Log prior masses, [Q] and [T].
    spacing_deg
        Angular spacing of the rotations.
    band
        Of the slices.
    contrast
        Of images whose contrast is summed out with the poses; None where it is given.
    """

    rotations: Tensor
    slices: Tensor
    energy: Tensor
    phase: Tensor
    shifts: Tensor
    log_rotation: Tensor
    log_shift: Tensor
    spacing_deg: float
    band: Band
    contrast: AmplitudeLaw | None = None

    @classmethod
    def of(cls, model: ParticleModel, volume: AnyMap) -> "DenseGrid":
        """The model's own grid at a volume, or under a law of volumes."""
        return cls.at(model, volume, Level.of(model))

    @classmethod
    def at(cls, model: ParticleModel, volume: AnyMap, level: Level) -> "DenseGrid":
        """The grid of a level, in the level's band."""
        slicer = model.linear_volume.slicer_at(level.radius)
        rotation, shift = level.rotation.prior(), level.shift.prior()
        slices = slicer.slices(mean_of(volume), rotation.points)
        phase = shift_phase(slicer.band, shift.points, model.pixel_size).conj().resolve_conj()
        masses = (rotation.log_mass, shift.log_mass)
        energy = power_of(volume, slicer, slices, rotation.points).div_(2)
        spacing = level.rotation.grid.spacing_deg
        poses = rotation.points, slices, energy, phase, shift.points
        return cls(*poses, *masses, spacing, slicer.band, AmplitudeLaw.of(model))

    def posteriors(
        self, images: Filtered, block_bytes: int
    ) -> Iterator[tuple[slice, "DensePosterior"]]:
        """Which images, and their posterior, block by block of ``block_bytes`` of scores."""
        size = max(1, block_bytes // (4 * len(self.shifts) * len(self.rotations)))
        for part in blocks(len(images), size):
            yield part, self.posterior(images.take(part))

    def posterior(self, images: Filtered) -> "DensePosterior":
        """Posterior of a block of images over every pose of the grid."""
        count, poses = len(images), len(self.shifts)
        inside = self.slices.shape[-1]
        rows = reals(images.image[:, None, :inside] * self.phase).flatten(0, 1)
        logits = (rows @ reals(self.slices).T).reshape(count, poses, -1)
        energy = images.transfer[:, :inside] @ self.energy.T
        amplitudes = None
        if self.contrast is None:
            logits -= (energy - self.log_rotation)[:, None]
        else:
            logits, amplitudes = self.contrast.summed(logits, 2 * energy[:, None])
            logits += self.log_rotation
        logits += self.log_shift[:, None]
        flat = logits.reshape(count, -1)
        best = flat.argmax(1, keepdim=True)
        weights = torch.softmax(flat, 1)
        log_sum = (flat.gather(1, best) - weights.gather(1, best).log())[:, 0].double()
        found = rows, logits, weights.view_as(logits), energy, log_sum, amplitudes
        return DensePosterior(self, images, *found)


@dataclass(frozen=True, eq=False)
class DensePosterior:
    """Weights [n, T, Q] of a block of images, and what follows from them."""

    grid: DenseGrid
    images: Filtered
    rows: Tensor
    logits: Tensor
    weights: Tensor
    energy: Tensor
    log_sum: Tensor
    amplitudes: Amplitudes | None = None

    @property
    def log_evidence(self) -> Tensor:
        """Log p(image | volume), [n] (float64)."""
        return self.images.noise_only + self.log_sum

    def accumulate(self, numerator: Tensor, weight: Tensor, share: Tensor | None = None) -> None:
        """Add the M-step sums to ``numerator`` [Q, 2m] and ``weight`` [Q, m], in place.

        Each image counts by its ``share`` [n], where given.
        """
        rows, transfer = self.rows, self.images.transfer
        if share is not None:
            share = share.to(transfer)
            rows = rows * share.repeat_interleave(len(self.grid.shifts))[:, None]
            transfer = transfer * share[:, None]
        if self.amplitudes is None:
            numerator.addmm_(self.weights.flatten(0, 1).T, rows)
            weight.addmm_(self.rotation_weights.T, transfer)
        else:
            found = self.amplitudes
            numerator.addmm_((self.weights * found.mean).flatten(0, 1).T, rows)
            weight.addmm_((self.weights * found.square).sum(1).T, transfer)

    def contrast(self) -> Tensor:
        """Posterior mean and mean square of the contrast - 1, [2, n] (float64), if summed out."""
        assert self.amplitudes is not None
        found = self.amplitudes.moments(self.weights)
        return found[1:] / found[0]

    @cached_property
    def rotation_weights(self) -> Tensor:
        """Marginal posterior of the rotations, [n, Q]."""
        return self.weights.sum(1)

    @cached_property
    def shift_weights(self) -> Tensor:
        """Marginal posterior of the shifts, [n, T]."""
        return self.weights.sum(2)

    def peaks(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best ``count`` rotations of each image, each at its best shift, best first.

        Log joint over noise [n, count], [n, count, 3, 3] and [n, count, 2] (Angstrom).
        """
        value, place = self.logits.max(1)
        value, cell = value.topk(min(count, value.shape[1]), 1)
        return value, self.grid.rotations[cell], self.grid.shifts[place.gather(1, cell)]

    def shift_power(self, share: Tensor | None = None) -> Tensor:
        """Sum over the block of the posterior mean of |shift|^2 (float64), in shares [n]."""
        square = (self.grid.shifts**2).sum(-1)
        each = (self.shift_weights @ square).double()
        return each.sum() if share is None else (each * share).sum()

    def summary(self) -> PosteriorSummary:
        """The block's posterior in a few numbers per image."""
        grid, by_rotation, by_shift = self.grid, self.rotation_weights, self.shift_weights
        mean_logit = torch.linalg.vecdot(self.weights.flatten(1), self.logits.flatten(1))
        energy = 2 * torch.linalg.vecdot(by_rotation, self.energy)
        prior = by_rotation @ grid.log_rotation + by_shift @ grid.log_shift
        peak, best = by_rotation.max(1)
        near = within(grid.rotations, grid.rotations[best], 2.5 * grid.spacing_deg)
        mean = (by_rotation * near) @ grid.rotations.flatten(1)
        return PosteriorSummary(
            bound=self.log_evidence,
            rotation=roma.special_procrustes(mean.reshape(-1, 3, 3)),
            shift=by_shift @ grid.shifts,
            probability=peak,
            entropy=(self.log_sum - mean_logit).clamp(min=0),
            cross=mean_logit - prior + energy / 2,  # of a given contrast
            energy=energy,
        )


def within(rotations: Tensor, centers: Tensor, angle_deg: float) -> Tensor:
    """Whether rotations [Q, 3, 3] lie within an angle of centers [n, 3, 3]: [n, Q]."""
    trace = centers.flatten(1) @ rotations.flatten(1).T
    limit = torch.deg2rad(torch.tensor(min(angle_deg, 180.0), dtype=trace.dtype))
    return trace >= 1 + 2 * torch.cos(limit)


def blocks(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size``."""
    return (slice(start, start + size) for start in range(0, count, size))
