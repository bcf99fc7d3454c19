"""Two maps compared in a band of low shells: the inner part of the alignment of maps.

The moving map's transform is sampled at rotated frequencies from a padded grid, trilinear with its
gridding correction; beside it lie the three exact derivatives (the transforms of ``-2 pi i x V``),
so that one look-up gives values and slopes. Lengths are fractions of the box here.
"""

from dataclasses import dataclass
from math import ceil, pi

import torch
from torch import Tensor

from cryoprob.fourier.transforms import crop_map
from cryoprob.masks import sphere
from cryoprob.types import Maps, Rotations

__all__ = ["BandMatch"]

_PAD = 2
_FLOOR = 0.01
"""Least unexplained share of a shell's power: what interpolation leaves of equal maps."""


@dataclass(frozen=True, eq=False)
class BandMatch:
    """The shells 1 to ``radius`` of a moving and of a reference map, each shell of unit power.

    Attributes
    ----------
    radius
        Largest shell.
    frequency
        Half the frequencies (x, y, z) of the band, the others being conjugate, [K, 3].
    shell
        Shell of each, [K] (long).
    count
        Frequencies in each shell, [radius + 1].
    target
        Coefficients of the reference, [K] complex.
    gain
        What brings the moving map to unit power in each shell, [K].
    grid
        The moving map's padded transform and its slopes along x, y, z, real and imaginary parts,
        [1, 8, G, G, G].
    """

    radius: int
    frequency: Tensor
    shell: Tensor
    count: Tensor
    target: Tensor
    gain: Tensor
    grid: Tensor

    @classmethod
    def of(cls, moving: Maps, reference: Maps, radius: int) -> "BandMatch":
        """Prepare two maps [D, D, D]; what lies outside the ball in the box is left out."""
        box = moving.shape[-1]
        size = min(box, 2 * ceil(1.5 * radius) + 8)
        ball = sphere(box, 0.42 * box, 0.08 * box, torch.float32, moving.device)
        small, target = (crop_map(v.float() * ball, size) for v in (moving, reference))
        frequency, shell = _half_ball(radius, moving.device)
        axis = torch.arange(-radius - 1, radius + 2, device=moving.device)
        place = tuple((frequency.long() + radius + 1).flip(-1).unbind(-1))
        own, other = (_transform(v, axis)[place] for v in (small, target))
        count = torch.bincount(shell, minlength=radius + 1).float().clamp(min=1)
        gain, scale = (_gain(v, shell, count) for v in (own, other))
        grid = _grid_with_slopes(small, radius)
        return cls(radius, frequency, shell, count, other * scale, gain, grid)

    def sample(self, rotations: Rotations, slopes: bool = False) -> Tensor:
        """The moving map turned by A [B, 3, 3]: values at ``A^T k``, [B, 1, K] complex.

        With ``slopes`` also the derivatives by the frequency there, [B, 4, K].
        """
        turned = rotations.to(self.frequency)
        points = (self.frequency @ turned) * (2 * _PAD / (self.grid.shape[-1] - 1))
        found = torch.nn.functional.grid_sample(
            self.grid[:, : 8 if slopes else 2].expand(len(turned), -1, -1, -1, -1),
            points[:, None, None],
            mode="bilinear",
            align_corners=True,
        )
        real, imaginary = torch.unflatten(found[:, :, 0, 0], 1, (-1, 2)).unbind(2)
        return torch.complex(real, imaginary) * self.gain

    def shift_phase(self, shift: Tensor) -> Tensor:
        """``exp(-2 pi i k . u)`` of shifts u [B, 3] in boxes, [B, K]."""
        return torch.exp(-2j * pi * (shift.to(self.frequency) @ self.frequency.mT))

    def shell_sum(self, values: Tensor) -> Tensor:
        """Sums [B, radius + 1] of real ``values`` [B, K] over the shells."""
        total = values.new_zeros(len(values), self.radius + 1)
        return total.index_add(1, self.shell, values)

    def correlation(self, moved: Tensor) -> Tensor:
        """Fourier shell correlation of moved values [B, K] with the reference, [B, radius + 1]."""
        cross = self.shell_sum((moved.conj() * self.target).real)
        power = self.shell_sum(moved.real**2 + moved.imag**2)
        return cross / (power * self.count).clamp(min=1e-20).sqrt()

    def information(self, correlation: Tensor) -> Tensor:
        """What the maps tell of each other, nats: ``-sum n_s ln(1 - F_s^2)`` over F > 0, [B].

        The mutual information of complex Gaussian coefficients. Shells without agreement add
        almost nothing, so the band may reach beyond the resolution of the maps.
        """
        unexplained = 1 + _FLOOR - correlation.clamp(0, 1) ** 2
        return -(self.count * unexplained.log()).sum(-1)

    def scored(self, rotation: Rotations, shift: Tensor, mirrored: Tensor) -> Tensor:
        """Information [B] at rotations [B, 3, 3], shifts [B, 3] in boxes, hands [B]."""
        values = self.sample(rotation)[:, 0]
        handed = torch.where(mirrored[:, None], values.conj(), values)
        return self.information(self.correlation(handed * self.shift_phase(shift)))

    def step(self, rotation: Rotations, shift: Tensor, mirrored: Tensor) -> tuple[Tensor, Tensor]:
        """One Fisher-scoring step and the information before it.

        The reference is taken as ``F Y + noise`` of variance ``1 - F^2`` in each shell, Y being
        the moved map of unit power; the step is the least-squares solution of its linearization
        in the rotation vector (radians, laboratory axes) and the shift (boxes).

        Returns
        -------
        step [B, 6], information [B]
        """
        moved, slope = self._moved_and_slopes(rotation, shift, mirrored)
        match = self.correlation(moved)
        trust = (match.clamp(0, 1) / (1 + _FLOOR - match.clamp(0, 1) ** 2))[:, self.shell]
        share = match.clamp(0, 1)[:, self.shell]
        rest = torch.view_as_real(self.target - share * moved).flatten(1)
        real = torch.view_as_real(slope).flatten(2)
        weighted = real * trust.repeat_interleave(2, -1)[:, None]
        curvature = (weighted * share.repeat_interleave(2, -1)[:, None]) @ real.mT
        scale = curvature.diagonal(dim1=-2, dim2=-1).sum(-1) / 6 + 1e-12
        damped = curvature + 1e-4 * scale[:, None, None] * torch.eye(6).to(curvature)
        step = torch.linalg.solve(damped, weighted @ rest[..., None])[..., 0]
        return step, self.information(match)

    def _moved_and_slopes(
        self, rotation: Rotations, shift: Tensor, mirrored: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Y [B, K] and its derivatives by rotation vector and shift, [B, 6, K]."""
        found = self.sample(rotation, slopes=True)
        found = torch.where(mirrored[:, None, None], found.conj(), found)
        found = found * self.shift_phase(shift)[:, None]
        power = self.shell_sum(found[:, 0].abs() ** 2) / self.count
        found = found / power.clamp(min=1e-20).sqrt()[:, None, self.shell]
        toward = rotation.to(self.frequency).to(found.dtype) @ found[:, 1:]
        k = self.frequency.mT.to(found.dtype).expand_as(toward)
        by_rotation = torch.linalg.cross(toward, k, dim=1)
        by_shift = -2j * pi * k * found[:, :1]
        return found[:, 0], torch.cat([by_rotation, by_shift], 1)


def _half_ball(radius: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Frequencies [K, 3] (x, y, z) of one half of the shells 1 to ``radius``, and their shell."""
    axis = torch.arange(-radius - 1, radius + 2, device=device)
    z, y, x = (v.flatten() for v in torch.meshgrid(axis, axis, axis, indexing="ij"))
    shell = torch.floor((x**2 + y**2 + z**2).double().sqrt() + 0.5).long()
    upper = (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))
    keep = upper & (shell >= 1) & (shell <= radius)
    return torch.stack([x, y, z], -1)[keep].float(), shell[keep]


def _gain(coefficients: Tensor, shell: Tensor, count: Tensor) -> Tensor:
    power = torch.bincount(shell, coefficients.abs().double() ** 2, len(count)).to(count) / count
    least = power.max() * 1e-12 + 1e-30
    return torch.where(power > least, power.clamp(min=least).rsqrt(), 0)[shell]


def _transform(volume: Maps, frequency: Tensor, correct: bool = False) -> Tensor:
    """Transform about the origin voxel at all triples of ``frequency`` [G], [G, G, G]."""
    box = volume.shape[-1]
    place = torch.arange(box, device=volume.device) - box // 2
    wave = torch.exp(-2j * pi / box * torch.outer(frequency.double(), place.double()))
    if correct:
        wave = wave / torch.sinc(place.double() / (_PAD * box)) ** 2
    wave = wave.to(torch.complex64)
    rows = volume.to(torch.complex64) @ wave.mT
    return torch.einsum("kz,zyx->kyx", wave, torch.einsum("ky,zyx->zkx", wave, rows))


def _grid_with_slopes(volume: Maps, radius: int) -> Tensor:
    """The padded transform and its derivatives by frequency (x, y, z), [1, 8, G, G, G]."""
    box = volume.shape[-1]
    reach = ceil(_PAD * (radius + 0.5)) + 1
    frequency = torch.arange(-reach, reach + 1, device=volume.device) / _PAD
    place = (torch.arange(box, device=volume.device) - box // 2) / box
    moments = [volume, volume * place, volume * place[:, None], volume * place[:, None, None]]
    parts = [_transform(v, frequency, correct=True) for v in moments]
    stacked = torch.stack([parts[0], *(-2j * pi * v for v in parts[1:])])
    return torch.view_as_real(stacked).movedim(-1, 1).flatten(0, 1)[None].contiguous()
