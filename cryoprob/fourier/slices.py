"""Central slices of a map: the partial Fourier transform as a matrix product, then interpolation.

A map [D, D, D] is divided by the gridding correction, padded and transformed, all three in one
matrix per axis (only frequencies inside the band are ever formed); slices are interpolated from
that grid. The adjoint is exact, not approximate: see :mod:`cryoprob.fourier.normal` for the
insertion.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil, pi

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from cryoprob.checks import require
from cryoprob.fourier.bands import Band
from cryoprob.types import Coefficients, Maps, Rotations

__all__ = ["INTERPOLATIONS", "Slicer"]

INTERPOLATIONS = ("linear", "nearest")
"""Interpolation kernels: trilinear (the default) or nearest neighbor.

Each with its gridding correction.
"""

_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Slicer:
    """Central slices of maps at the frequencies of one band.

    Parameters
    ----------
    band
        Half-plane frequencies of the images, M of them; its box is the map's.
    interpolation
        ``"linear"`` or ``"nearest"`` in the padded grid.
    pad
        Padding factor of the grid, at least 1.
    dtype, device
        Real type and place of the maps.

    Raises
    ------
    InputError
        If the interpolation is unknown or the band reaches the Nyquist shell.

    Notes
    -----
    ``F(V)[k]`` is the 2D-unitary normalized transform of the plain sum over z, so a slice needs no
    further factor: it is sqrt(D) times the unitary 3D coefficient. Only kx >= 0 is kept; the rest
    is conjugate.
    """

    band: Band
    interpolation: str = "linear"
    pad: int = 2
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        require(
            self.interpolation in INTERPOLATIONS,
            "interpolation",
            expected=" or ".join(INTERPOLATIONS),
            got=repr(self.interpolation),
        )
        require(
            self.band.radius < self.band.box // 2,
            "band",
            expected=f"a radius of at most {self.band.box // 2 - 1} for box {self.band.box}",
            got=str(self.band.radius),
        )

    @property
    def reach(self) -> int:
        """Largest grid index used along z and y, and one less than along x."""
        return ceil(self.pad * (self.band.radius + 0.5)) + 1

    @property
    def grid_shape(self) -> tuple[int, int, int]:
        """Shape (z, y, x) of the transformed grid; zero frequency at (reach, reach, 0)."""
        return 2 * self.reach + 1, 2 * self.reach + 1, self.reach + 1

    def transform(self, volume: Maps) -> Tensor:
        """Grid of coefficients, complex, of one map [D, D, D]."""
        box = volume.shape[-1]
        assert box == self.band.box
        half, full = self.axes
        rows = volume.reshape(-1, box) @ torch.view_as_real(half).permute(1, 0, 2).reshape(box, -1)
        x_done = torch.view_as_complex(rows.reshape(box, box, -1, 2))
        y_done = torch.einsum("ky,zyx->zkx", full, x_done)
        return torch.einsum("kz,zyx->kyx", full, y_done)

    def adjoint_transform(self, grid: Tensor) -> Maps:
        """Adjoint of :meth:`transform` for the real inner product: map [D, D, D] of a grid."""
        half, full = self.axes
        z_done = torch.einsum("kz,kyx->zyx", full.conj(), grid)
        y_done = torch.einsum("ky,zkx->zyx", full.conj(), z_done)
        columns = torch.view_as_real(half).reshape(half.shape[0], -1, 2).permute(0, 2, 1)
        real = torch.view_as_real(y_done.resolve_conj()).flatten(-2)
        return real @ columns.reshape(-1, self.band.box)

    def sample(self, grid: Tensor, rotations: Rotations) -> Coefficients:
        """Slices [*, M] of a grid at rotations [*, 3, 3]; differentiable in both."""
        channels = torch.view_as_real(grid).movedim(-1, 0)[None]
        shares = rotations.reshape(-1, 3, 3).split(_CHUNK)
        slices = torch.cat([self._sample(channels, share) for share in shares])
        return slices.reshape(*rotations.shape[:-2], len(self.band))

    def slices(self, volume: Maps, rotations: Rotations) -> Coefficients:
        """Slices [*, M] of one map [D, D, D] at rotations [*, 3, 3]."""
        return self.sample(self.transform(volume), rotations)

    def coordinates(self, rotations: Rotations) -> tuple[Tensor, Tensor]:
        """Grid coordinates (x, y, z) [Q, M, 3] with x >= 0.

        And where the conjugate was taken [Q, M].
        """
        points = self._frequencies @ (rotations[:, :2].to(self.dtype) * self.pad)
        flipped = points[..., 0] < 0
        return torch.where(flipped[..., None], -points, points), flipped

    def _sample(self, channels: Tensor, rotations: Rotations) -> Coefficients:
        """Slices [Q, M] of a grid [1, 2, Z, Y, X], one share of the rotations per thread."""
        count, size = rotations.shape[0], len(self.band)
        shares = min(count, torch.get_num_threads()) if channels.device.type == "cpu" else 1
        points, flipped = self.coordinates(rotations)
        points = points * (self._unit * 2) - self._origin
        if spare := -count % shares:
            points = torch.cat([points, points[:1].expand(spare, -1, -1)])
        mode = {"linear": "bilinear", "nearest": "nearest"}[self.interpolation]
        found = grid_sample(
            channels.expand(shares, -1, -1, -1, -1),
            points.reshape(shares, 1, 1, -1, 3),
            mode=mode,
            align_corners=True,
        )
        real, imaginary = found.reshape(shares, 2, -1, size).unbind(1)
        sign = torch.where(flipped, -self.weight, self.weight)
        real, imaginary = (v.reshape(-1, size)[:count] for v in (real, imaginary))
        return torch.complex(real * self.weight, imaginary * sign)

    @cached_property
    def _unit(self) -> Tensor:
        """Half a grid step in grid_sample's units, (x, y, z)."""
        return torch.tensor([1.0, 0.5, 0.5], device=self.device, dtype=self.dtype) / self.reach

    @cached_property
    def _origin(self) -> Tensor:
        return torch.tensor([1.0, 0.0, 0.0], device=self.device, dtype=self.dtype)

    @cached_property
    def axes(self) -> tuple[Tensor, Tensor]:
        """Correction, padding and transform of one axis, [K, D] complex.

        For x (k = 0..reach, with the factor 1 / D) and for y and z (k = -reach..reach).
        """
        box = self.band.box
        x = torch.arange(box, dtype=torch.float64, device=self.device) - box // 2
        k = torch.arange(-self.reach, self.reach + 1, dtype=torch.float64, device=self.device)
        power = {"linear": 2, "nearest": 1}[self.interpolation]
        correction = torch.sinc(x / (self.pad * box)) ** power
        phase = torch.exp(-2j * pi / (self.pad * box) * torch.outer(k, x)) / correction
        kind = torch.complex64 if self.dtype == torch.float32 else torch.complex128
        return (phase[self.reach :] / box).to(kind), phase.to(kind)

    @cached_property
    def _frequencies(self) -> Tensor:
        """Frequencies (kx, ky) of the band, [M, 2]."""
        return torch.stack([self.band.kx, self.band.ky], -1).to(self.device, self.dtype)

    @cached_property
    def weight(self) -> Tensor:
        """The band's weights (sqrt(2) or 1), [M]."""
        return self.band.weight.to(self.device, self.dtype)
