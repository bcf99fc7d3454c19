"""Insertion of slices and the exact normal equations of the volume, as a stencil on the grid.

With linear interpolation a sample is ``s = sum_c w_c F_c`` over the 8 corners of a cell, so the
quadratic form ``sum_m d_m |s_m|^2`` couples only the 27 neighbors of a grid point. Per cell the
moments of the interpolation weights are summed once (27 numbers for the weights d, 8 complex ones
for the numerators); then every product with the normal matrix costs 27 shifted additions, however
many slices there were.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from cryoprob.fourier.slices import Slicer
from cryoprob.types import Coefficients, Maps, Rotations

__all__ = ["Insertion", "NormalEquations"]

_CORNERS = list(product((0, 1), repeat=3))
_OFFSETS = [d for d in product((-1, 0, 1), repeat=3) if d >= (0, 0, 0)]
_CHUNK = 64


@dataclass(frozen=True, eq=False)
class NormalEquations:
    """``A = H^T W H`` and ``b = H^T W x`` of a map, for the slices inserted.

    Attributes
    ----------
    slicer
        The operator H is made of.
    right
        Right-hand side on the grid, complex (z, y, x).
    stencil
        Coupling of each grid point to itself and 13 forward neighbors, [14, Z, Y, X].
    """

    slicer: Slicer
    right: Tensor
    stencil: Tensor

    def __add__(self, other: "NormalEquations") -> "NormalEquations":
        """The equations of both sets of slices."""
        right, stencil = self.right + other.right, self.stencil + other.stencil
        return NormalEquations(self.slicer, right, stencil)

    def right_side(self) -> Maps:
        """``b``, [D, D, D]."""
        return self.slicer.adjoint_transform(self.right)

    def apply(self, volume: Maps) -> Maps:
        """``A V``, [D, D, D]."""
        return self.slicer.adjoint_transform(self._couple(self.slicer.transform(volume)))

    def diagonal(self) -> Tensor:
        """Sum of every stencil row: the weight of each grid point, [Z, Y, X]."""
        ones = torch.ones_like(self.right)
        return self._couple(ones).real

    def _couple(self, grid: Tensor) -> Tensor:
        out = torch.view_as_real(grid * self.stencil[0])
        values = torch.view_as_real(grid)
        for offset, weight in zip(_OFFSETS[1:], self.stencil[1:], strict=True):
            here, there = _shifted(offset)
            out[here].addcmul_(weight[here][..., None], values[there])
            out[there].addcmul_(weight[here][..., None], values[here])
        return torch.view_as_complex(out)


class Insertion:
    """Sums of inserted slices; :meth:`equations` turns them into the normal equations.

    Parameters
    ----------
    slicer
        The operator that made the slices.
    group
        Point group [n, 3, 3]: every slice is inserted at ``R g`` for all its elements, a share
        each.

    Notes
    -----
    Memory: 43 numbers per grid cell and thread (``8 * 2^3 * radius^3`` cells, about).
    """

    def __init__(self, slicer: Slicer, group: Rotations | None = None) -> None:
        self.slicer = slicer
        self.group = torch.eye(3)[None] if group is None else group
        self._linear = slicer.interpolation == "linear"
        width = 43 if self._linear else 3
        threads = torch.get_num_threads() if torch.device(slicer.device).type == "cpu" else 1
        cells = torch.Size(slicer.grid_shape).numel()
        self._sums = [
            torch.zeros(cells, width, dtype=slicer.dtype, device=slicer.device)
            for _ in range(threads)
        ]

    def add(self, numerator: Coefficients, weight: Tensor, rotations: Rotations) -> None:
        """Insert slices: numerators [Q, M] (complex) and weights [Q, M] at rotations [Q, 3, 3]."""
        group = self.group.to(rotations)
        numerator, weight = (v / len(group) if len(group) > 1 else v for v in (numerator, weight))
        for element in group:
            self._add(numerator, weight, rotations @ element)

    def _add(self, numerator: Coefficients, weight: Tensor, rotations: Rotations) -> None:
        threads = len(self._sums)
        jobs = [list(self._chunks(rotations.shape[0]))[i::threads] for i in range(threads)]

        def work(sums: Tensor, chunks: list[slice]) -> None:
            for chunk in chunks:
                self._insert(sums, numerator[chunk], weight[chunk], rotations[chunk])

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, self._sums, jobs))

    def equations(self) -> NormalEquations:
        """The normal equations of everything inserted so far."""
        z, y, x = self.slicer.grid_shape
        cells = sum(self._sums[1:], self._sums[0]).T.contiguous().reshape(-1, z, y, x)
        if not self._linear:
            stencil = cells.new_zeros(len(_OFFSETS), z, y, x)
            stencil[0] = cells[2]
            return NormalEquations(self.slicer, torch.complex(cells[0], cells[1]), stencil)
        return NormalEquations(self.slicer, _gather(cells[:16]), _stencil(cells[16:]))

    @staticmethod
    def _chunks(count: int) -> Iterator[slice]:
        return (slice(i, i + _CHUNK) for i in range(0, count, _CHUNK))

    def _insert(self, sums: Tensor, numerator: Tensor, weight: Tensor, rotations: Tensor) -> None:
        points, flipped = self.slicer.coordinates(rotations)
        scale = self.slicer._weight
        sign = 1 - 2 * flipped.to(scale.dtype)
        real = (numerator.real * scale).reshape(-1)
        imaginary = (numerator.imag * scale * sign).reshape(-1)
        weight = (weight * scale**2).reshape(-1)
        points = points.reshape(-1, 3).T
        corner = points.floor() if self._linear else points.round()
        rows = _moments(points - corner, real, imaginary, weight, self._linear)
        sums.index_add_(0, self._cell(corner), rows.T.contiguous())

    def _cell(self, corner: Tensor) -> Tensor:
        _, size_y, size_x = self.slicer.grid_shape
        x, y, z = corner.long()
        reach = self.slicer.reach
        return ((z + reach) * size_y + y + reach) * size_x + x


def _moments(f: Tensor, real: Tensor, imaginary: Tensor, weight: Tensor, linear: bool) -> Tensor:
    """Rows of sums per cell, [43, points] (linear) or [3, points] (nearest).

    For fractions f (x, y, z).
    """
    if not linear:
        return torch.stack([real, imaginary, weight])
    rows = f.new_empty(43, f.shape[1])
    g = 1 - f
    first = [(g[axis], f[axis]) for axis in range(3)]
    second = [(g[axis] * g[axis], g[axis] * f[axis], f[axis] * f[axis]) for axis in range(3)]
    for i, (z, y) in enumerate(product(first[2], first[1])):
        zy = z * y
        for j, x in enumerate(first[0]):
            zyx = zy * x
            torch.mul(zyx, real, out=rows[2 * i + j])
            torch.mul(zyx, imaginary, out=rows[8 + 2 * i + j])
    for i, (z, y) in enumerate(product(second[2], second[1])):
        zy = z * y * weight
        for j, x in enumerate(second[0]):
            torch.mul(zy, x, out=rows[16 + 3 * i + j])
    return rows


def _gather(cells: Tensor) -> Tensor:
    """Right-hand side on the grid from the cells' corner sums [16, Z, Y, X]."""
    out = cells.new_zeros(*cells.shape[1:], 2)
    for number, corner in enumerate(_CORNERS):
        source, target = _corner_views(corner)
        out[..., 0][target] += cells[number][source]
        out[..., 1][target] += cells[number + 8][source]
    return torch.view_as_complex(out)


def _stencil(cells: Tensor) -> Tensor:
    """Forward couplings [14, Z, Y, X] from the cells' second moments [27, Z, Y, X]."""
    out = cells.new_zeros(len(_OFFSETS), *cells.shape[1:])
    for a, b in product(_CORNERS, repeat=2):
        offset = tuple(q - p for p, q in zip(a, b, strict=True))
        if offset in _OFFSETS:
            pz, py, px = (p + q for p, q in zip(a, b, strict=True))
            source, target = _corner_views(a)
            out[_OFFSETS.index(offset)][target] += cells[9 * pz + 3 * py + px][source]
    return out


def _corner_views(corner: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Views of the cells, and of their corner's grid points, that pair up."""
    source = tuple(slice(0, -1) if c else slice(None) for c in corner)
    target = tuple(slice(1, None) if c else slice(None) for c in corner)
    return source, target


def _shifted(offset: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Views of grid points and of their neighbors at ``offset``."""
    cut = {
        -1: (slice(1, None), slice(0, -1)),
        0: (slice(None),) * 2,
        1: (slice(0, -1), slice(1, None)),
    }
    here, there = zip(*(cut[d] for d in offset), strict=True)
    return tuple(here), tuple(there)
