"""Fourier modes of a map on the padded grid: what independent ones make of it, and back.

A mode of the map is a plane wave, so its transform on the grid is a product ``T(p, k)`` of three
axes, and so is the covariance that modes of variances ``v`` give two neighboring grid points,

    E F(p) F(p + o)* = sum_k v_k T(p, k) T(p + o, k)*    (means zero),

a matrix product per axis. It needs no word on the pseudo-covariance ``E F F``: half of the grid is
held, and ``|s|^2`` of a sample only pairs points of that half. The transposed product takes a
stencil ``S`` to the diagonal of the normal matrix in the basis of the modes.
"""

from collections.abc import Iterator
from math import pi

import torch
from torch import Tensor

from cryoprob.fourier.cells import CORNERS, OFFSETS, PRODUCTS
from cryoprob.fourier.slices import Slicer
from cryoprob.types import Maps

__all__ = ["cell_variances", "mode_weights", "opposite"]


def opposite(values: Tensor) -> Tensor:
    """A centered transform [*, D, D, D] at ``-k`` in the place of ``k`` (Nyquist at itself)."""
    axes = (-3, -2, -1)
    return values.flip(axes).roll((1, 1, 1), axes)


def mode_weights(slicer: Slicer, stencil: Tensor) -> Maps:
    """Diagonal of ``T^T S T`` (of its real part, which acts on maps) in the unitary Fourier basis.

    Parameters
    ----------
    slicer
        The transform ``T`` of a map.
    stencil
        Coupling ``S`` of each grid point to itself and 13 forward neighbors, [14, Z, Y, X].

    Returns
    -------
    [D, D, D], alike at k and -k. With modes of variances ``v``, ``sum_k v_k weight_k`` is the mean
    of the quadratic form.
    """
    along_x, along_y = _along(slicer)
    total = torch.zeros([slicer.band.box] * 3, dtype=stencil.dtype, device=stencil.device)
    for (z, y, x), coupling in zip(OFFSETS, stencil, strict=True):
        values = coupling.to(along_x[0].dtype) @ along_x[x]
        values = torch.einsum("zyk,yj->zjk", values, along_y[y])
        values = torch.einsum("zjk,zi->ijk", values, along_y[z])
        total += values.real * (1 if (z, y, x) == (0, 0, 0) else 2)
    return (total + opposite(total)) / 2


def cell_variances(slicer: Slicer, variance: Maps, cells: Tensor) -> Tensor:
    """What the variances of modes make of the squares of samples in each cell of the grid.

    Parameters
    ----------
    slicer
        The transform of a map.
    variance
        Of every mode, [D, D, D], alike at k and -k.
    cells
        Flat indices of the cells' lowest corners, [C].

    Returns
    -------
    [C, 27] (nearest neighbor: [C, 1]): :func:`~cryoprob.fourier.cells.weigh` makes of them, and of
    the place in its cell, ``E |s - E s|^2`` of a sample.
    """
    if slicer.interpolation == "nearest":
        _, field = next(_covariances(slicer, variance))
        return field.flatten()[cells, None]
    _, size_y, size_x = slicer.grid_shape
    columns = [variance.new_zeros(len(cells)) for _ in range(27)]
    for offset, field in _covariances(slicer, variance):
        flat, pairs = field.flatten(), 1 if offset == (0, 0, 0) else 2
        for a, (z, y, x) in enumerate(CORNERS):
            other = (z + offset[0], y + offset[1], x + offset[2])
            if other in CORNERS:
                column = PRODUCTS[a][CORNERS.index(other)]
                here = flat[cells + (z * size_y + y) * size_x + x]
                columns[column] = columns[column] + pairs * here
    return torch.stack(columns, 1)


def _covariances(slicer: Slicer, variance: Maps) -> Iterator[tuple[tuple[int, ...], Tensor]]:
    """Real part of the covariance of each grid point and its neighbor at an offset, [Z, Y, X]."""
    along_x, along_y = _along(slicer)
    rows, planes = {}, {}
    for z, y, x in OFFSETS:
        if x not in rows:
            rows[x] = variance.to(along_x[x].dtype) @ along_x[x].T
        if (y, x) not in planes:
            planes[y, x] = torch.einsum("zjx,yj->zyx", rows[x], along_y[y])
        yield (z, y, x), torch.einsum("iyx,zi->zyx", planes[y, x], along_y[z]).real


def _along(slicer: Slicer) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """``T(p, k) T(p + o, k)*`` of x, and of y or z, for o = -1, 0, 1, [K, D]; 0 off the grid."""
    box, found = slicer.band.box, []
    k = torch.arange(box, dtype=torch.float64, device=slicer.device) - box // 2
    wave = torch.exp(2j * pi / box * torch.outer(k, k)) / box**0.5
    for axis in slicer.axes:
        here = axis.to(wave) @ wave
        forward = here[:-1] * here[1:].conj()
        nothing = torch.zeros_like(here[:1])
        products = {
            0: here * here.conj(),
            1: torch.cat([forward, nothing]),
            -1: torch.cat([nothing, forward.conj()]),
        }
        found.append({step: product.to(axis) for step, product in products.items()})
    return found[0], found[1]
