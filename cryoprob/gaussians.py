"""Maps of sums of Gaussians, as atoms, residues and beads are drawn."""

from math import ceil, inf, pi, sqrt

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.types import Maps

__all__ = ["check_grid", "gaussian_blur", "gaussian_density", "narrowest"]

_SITES_AT_ONCE = 128
_REACH = 5.0
"""Standard deviations at which a Gaussian is cut off (6e-7 of its mass is beyond, per axis)."""


def narrowest(pixel_size: float) -> float:
    """Smallest standard deviation (A) of a Gaussian that voxels of ``pixel_size`` sample well.

    0.9 voxels: its transform is 1/e at a resolution of four voxels, 0.02 at Nyquist, and 1e-7 at
    the sampling frequency, so a map's total does not depend on how the atoms lie between voxels.
    """
    return gaussian_blur(4 * pixel_size)


def gaussian_blur(resolution: float) -> float:
    """Standard deviation, A, of a Gaussian whose transform is 1/e at ``resolution``, A."""
    return resolution / (pi * sqrt(2))


def gaussian_density(
    positions: Tensor,
    weights: Tensor,
    variances: Tensor,
    box: int,
    pixel_size: float,
    dtype: torch.dtype = torch.float32,
) -> Maps:
    """Map [D, D, D] of n sites of g concentric Gaussians each; differentiable.

    Parameters
    ----------
    positions
        [n, 3] as (x, y, z), A, relative to the origin voxel.
    weights, variances
        [n, g]: integral of each Gaussian; variance along an axis, A^2.
    box, pixel_size
        Voxels along a side; A per voxel. What reaches beyond the box is lost.
    dtype
        Floating type of the map.

    Raises
    ------
    InputError
        If the box is odd, or it or the pixel size is not positive.
    """
    check_grid(box, pixel_size)
    total = torch.zeros(box**3, dtype=dtype, device=positions.device)
    order = torch.argsort(variances.detach().amax(-1))
    for part in torch.split(order, _SITES_AT_ONCE):
        reach = ceil(_REACH * sqrt(float(variances[part].detach().max())) / pixel_size + 0.5)
        near, offset = _window(positions[part] / pixel_size + box // 2, min(reach, box))
        inside = (near >= 0) & (near < box)
        spread = variances[part].to(dtype)[:, None, None]
        wave = (offset.to(dtype) * pixel_size)[..., None].square() / spread
        wave = torch.exp(-wave / 2) / torch.sqrt(2 * pi * spread) * inside[..., None]
        x, y, z = wave.unbind(2)
        block = torch.einsum("nzg,nyg,nxg->nzyx", z * weights[part, None].to(dtype), y, x)
        ix, iy, iz = near.clamp(0, box - 1).unbind(2)
        index = (iz[:, :, None, None] * box + iy[:, None, :, None]) * box + ix[:, None, None]
        total = total.index_add(0, index.flatten(), block.flatten())
    return total.reshape(box, box, box)


def check_grid(box: int, pixel_size: float) -> None:
    """Raise InputError unless the box is even and both are positive."""
    even = box > 0 and box % 2 == 0
    require(even, "box", expected="a positive even number of voxels", got=str(box))
    fine = 0 < pixel_size < inf
    require(fine, "pixel size", expected="a positive number of A", got=str(pixel_size))


def _window(center: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Voxels near each center [n, 3] along each axis, [n, 2 reach + 1, 3], and their offsets."""
    steps = torch.arange(-reach, reach + 1, device=center.device)[:, None]
    near = center.detach().round().long()[:, None] + steps
    return near, near - center[:, None]
