"""Insertion of slices and the exact normal equations of the volume, as a stencil on the grid.

With linear interpolation a sample is ``s = sum_c w_c F_c`` over the 8 corners of a cell, so the
quadratic form ``sum_m d_m |s_m|^2`` couples only the 27 neighbors of a grid point. Per cell the
moments of the interpolation weights are summed once (27 numbers for the weights d, 8 complex ones
for the numerators); then every product with the normal matrix costs 27 shifted additions, however
many slices there were.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from cryoprob.fourier.cells import CORNERS, OFFSETS, PRODUCTS, half_ball, place
from cryoprob.fourier.modes import mode_weights
from cryoprob.fourier.slices import Slicer
from cryoprob.types import Coefficients, Maps, Rotations

__all__ = ["Insertion", "NormalEquations"]

_CHUNK = 64
_SLAB, _THIN_SLAB = 16, 4


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

    def mode_weights(self) -> Tensor:
        """Diagonal of ``A`` in the unitary Fourier basis of the map, exactly, [D, D, D]."""
        return mode_weights(self.slicer, self.stencil)

    def _couple(self, grid: Tensor) -> Tensor:
        values = torch.stack([grid.real, grid.imag])
        out = values * self.stencil[0]
        for offset, weight in zip(OFFSETS[1:], self.stencil[1:], strict=True):
            here, there = _shifted(offset)
            out[:, *here].addcmul_(weight[here], values[:, *there])
            out[:, *there].addcmul_(weight[here], values[:, *here])
        return torch.complex(*out)


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
    Memory: 43 numbers per grid cell (16 of numerators, 27 of weights), in the ``2 pi / 3 reach^3``
    cells of the half ball that slices reach.
    """

    def __init__(self, slicer: Slicer, group: Rotations | None = None) -> None:
        self.slicer = slicer
        self.group = torch.eye(3)[None] if group is None else group
        self._linear = slicer.interpolation == "linear"
        self._cells, self._row = half_ball(slicer)
        sums = torch.zeros(0, dtype=slicer.dtype, device=slicer.device)
        self._numerators = sums.new_zeros(len(self._cells), 16 if self._linear else 2)
        self._weights = sums.new_zeros(len(self._cells), 27 if self._linear else 1)

    def add(self, numerator: Coefficients, weight: Tensor, rotations: Rotations) -> None:
        """Insert slices: numerators [Q, M] (complex) and weights [Q, M] at rotations [Q, 3, 3]."""
        group = self.group.to(rotations)
        numerator, weight = (v / len(group) if len(group) > 1 else v for v in (numerator, weight))
        for element in group:
            self._add(numerator, weight, rotations @ element)

    def _add(self, numerator: Coefficients, weight: Tensor, rotations: Rotations) -> None:
        for start in range(0, len(rotations), _CHUNK):
            part = slice(start, start + _CHUNK)
            cell, f, flipped = place(self.slicer, rotations[part])
            row = self._row.index_select(0, cell).long()
            self._numerators.index_add_(0, row, self._shares(numerator[part], f, flipped))
            self._weights.index_add_(0, row, self._products(weight[part], f))

    def equations(self, *, release: bool = False) -> NormalEquations:
        """The normal equations of everything inserted so far.

        With ``release`` the sums' memory is given back on the way; nothing can be added then.
        """
        shape = self.slicer.grid_shape
        right = self._numerators.new_zeros(2, *shape)
        for first, rows in self._slabs():
            cells = self._laid(self._numerators[rows], first, rows)
            _add_numerators(cells, right[:, first : first + _SLAB + 1])
        if release:
            del self._numerators
        stencil = right.new_zeros(len(OFFSETS), *shape)
        for first, rows in self._slabs():
            cells = self._laid(self._weights[rows], first, rows)
            _add_couplings(cells, stencil[:, first : first + _SLAB + 1])
        if release:
            del self._weights
        return NormalEquations(self.slicer, torch.complex(*right), stencil)

    def noise(self, count: int, generator: torch.Generator) -> Maps:
        """Normal draws of covariance ``A``, the normal matrix of everything inserted so far.

        They are what inserting noise images would give, one image for every weight: added to ``b``
        (with noise of the prior's precision) they turn the solution of the normal equations into
        an exact draw of the map's posterior (Papandreou and Yuille 2010, NIPS 23). Exact, because
        the moments of a cell are the 8 x 8 covariance of what its corners get.

        Parameters
        ----------
        count
            Draws.
        generator
            On the CPU.

        Returns
        -------
        Maps [count, D, D, D]; the memory is that of as many grids on the way.
        """
        noise = self._weights.new_zeros(count, 2, *self.slicer.grid_shape)
        for first, rows in self._slabs(_THIN_SLAB):
            root = _roots(self._weights[rows])
            for one in noise[..., first : first + _THIN_SLAB + 1, :, :]:
                white = torch.randn(2, *root.shape[:2], generator=generator, dtype=torch.float64)
                shares = torch.einsum("cij,pcj->cpi", root, white.to(root)).flatten(1)
                _add_numerators(self._laid(shares, first, rows, _THIN_SLAB), one)
        return torch.stack([self.slicer.adjoint_transform(torch.complex(*one)) for one in noise])

    def _slabs(self, height: int = _SLAB) -> Iterator[tuple[int, slice]]:
        """The cells a few planes of the grid at a time: the first plane, and which they are."""
        planes, size_y, size_x = self.slicer.grid_shape
        for first in range(0, planes, height):
            last = min(first + height, planes)
            edges = torch.tensor([first, last], device=self._cells.device) * size_y * size_x
            yield first, slice(*torch.searchsorted(self._cells, edges).tolist())

    def _laid(self, sums: Tensor, first: int, rows: slice, height: int = _SLAB) -> Tensor:
        """The sums [cells, n] of a slab's cells on its part of the grid, [n, planes, Y, X]."""
        planes, *plane = self.slicer.grid_shape
        size = plane[0] * plane[1]
        height = min(height, planes - first)
        slab = sums.new_zeros(height * size, sums.shape[1])
        slab[self._cells[rows] - first * size] = sums
        return slab.T.contiguous().reshape(-1, height, *plane)

    def _shares(self, numerator: Coefficients, f: Tensor, flipped: Tensor) -> Tensor:
        """What each sample adds to the numerators of its cell, [points, 16 or 2]."""
        scale = self.slicer.weight
        sign = torch.where(flipped, -scale, scale)
        real = (numerator.real * scale).reshape(-1)
        imaginary = (numerator.imag * sign).reshape(-1)
        rows = _corners(f, real, imaginary) if self._linear else torch.stack([real, imaginary])
        return rows.T.contiguous()

    def _products(self, weight: Tensor, f: Tensor) -> Tensor:
        """What each sample adds to the weights of its cell, [points, 27 or 1]."""
        weight = (weight * self.slicer.weight**2).reshape(-1)
        rows = _moments(f, weight) if self._linear else weight[None]
        return rows.T.contiguous()


def _corners(f: Tensor, real: Tensor, imaginary: Tensor) -> Tensor:
    """Shares of a cell's 8 corners in complex samples, [16, points], for fractions f (x, y, z)."""
    rows = f.new_empty(16, f.shape[1])
    share = [(1 - f[axis], f[axis]) for axis in range(3)]
    for i, (z, y) in enumerate(product(share[2], share[1])):
        zy = z * y
        for j, x in enumerate(share[0]):
            zyx = zy * x
            torch.mul(zyx, real, out=rows[2 * i + j])
            torch.mul(zyx, imaginary, out=rows[8 + 2 * i + j])
    return rows


def _moments(f: Tensor, weight: Tensor) -> Tensor:
    """Products of two corners' shares times the weights, [27, points]: (1-f)^2, f(1-f), f^2."""
    rows, g = f.new_empty(27, f.shape[1]), 1 - f
    pairs = [(g[axis] * g[axis], g[axis] * f[axis], f[axis] * f[axis]) for axis in range(3)]
    for i, (z, y) in enumerate(product(pairs[2], pairs[1])):
        zy = z * y * weight
        for j, x in enumerate(pairs[0]):
            torch.mul(zy, x, out=rows[3 * i + j])
    return rows


def _roots(moments: Tensor) -> Tensor:
    """Roots [cells, n, n] of the covariances of corners that cells' moments are (n = 8 or 1).

    The symmetric ones, which are unique: the same draws on every device.
    """
    if moments.shape[1] == 1:
        return moments.sqrt()[..., None]
    products = torch.tensor(PRODUCTS, device=moments.device)
    values, vectors = torch.linalg.eigh(moments[:, products])
    roots: Tensor = (vectors * values.clamp(min=0).sqrt()[:, None]) @ vectors.mT
    return roots


def _add_numerators(cells: Tensor, out: Tensor) -> None:
    """Add corner sums of cells [16 or 2, z, Y, X] to the grid points [2, z or z + 1, Y, X]."""
    if len(cells) == 2:
        out[:, : cells.shape[1]] += cells
        return
    for number, corner in enumerate(CORNERS):
        source, target = _corner_views(corner, min(cells.shape[1], out.shape[1] - corner[0]))
        out[0][target] += cells[number][source]
        out[1][target] += cells[number + 8][source]


def _add_couplings(cells: Tensor, out: Tensor) -> None:
    """Add second moments of cells [27 or 1, z, Y, X] to couplings [14, z or z + 1, Y, X]."""
    if len(cells) == 1:
        out[0, : cells.shape[1]] += cells[0]
        return
    for a, b in product(CORNERS, repeat=2):
        offset = tuple(q - p for p, q in zip(a, b, strict=True))
        if offset in OFFSETS:
            pz, py, px = (p + q for p, q in zip(a, b, strict=True))
            source, target = _corner_views(a, min(cells.shape[1], out.shape[1] - a[0]))
            out[OFFSETS.index(offset)][target] += cells[9 * pz + 3 * py + px][source]


def _corner_views(
    corner: tuple[int, ...], planes: int
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Views of the first ``planes`` planes of cells, and of their corner's grid points."""
    z, *inner = corner
    source = slice(0, planes), *(slice(0, -1) if c else slice(None) for c in inner)
    target = slice(z, z + planes), *(slice(1, None) if c else slice(None) for c in inner)
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
