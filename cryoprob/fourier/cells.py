"""Cells of the padded grid: which the points of a band lie in, and how their corners pair up.

With linear interpolation a sample is ``s = sum_c w_c F_c`` over the 8 corners of its cell, so
``|s|^2`` couples only the 27 neighbors of a grid point, and the 64 products of two corners' shares
are 27 different numbers: (1-f)^2, f(1-f) or f^2 along each axis.
"""

from itertools import product

import torch
from torch import Tensor

from cryoprob.fourier.slices import Slicer
from cryoprob.types import Rotations

__all__ = ["CORNERS", "OFFSETS", "PRODUCTS", "half_ball", "place", "weigh"]

CORNERS = list(product((0, 1), repeat=3))
"""Corners (z, y, x) of a cell."""

OFFSETS = [d for d in product((-1, 0, 1), repeat=3) if d >= (0, 0, 0)]
"""A grid point itself and its 13 forward neighbors, as steps (z, y, x)."""

PRODUCTS = [
    [9 * (a[0] + b[0]) + 3 * (a[1] + b[1]) + a[2] + b[2] for b in CORNERS] for a in CORNERS
]
"""Which of a cell's 27 moments couples each pair of its corners."""


def half_ball(slicer: Slicer) -> tuple[Tensor, Tensor]:
    """Cells of the grid that points of the band can lie in, ascending, and each cell's row.

    Cells are named by the flat index of their lowest corner; the row of all others is -1.
    """
    reach, device = slicer.reach, slicer.device
    axis = torch.arange(-reach, reach + 1, device=device) + 0.5
    square = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis[reach:] ** 2
    away = 0.9 if slicer.interpolation == "linear" else 1.8  # of a point from its cell's center
    rim = slicer.pad * (slicer.band.radius + 0.5) + away
    cells = (square.flatten() <= rim**2).nonzero()[:, 0]
    row = torch.full((square.numel(),), -1, dtype=torch.int32, device=device)
    row[cells] = torch.arange(len(cells), dtype=torch.int32, device=device)
    return cells, row


def place(slicer: Slicer, rotations: Rotations) -> tuple[Tensor, Tensor, Tensor]:
    """Where the samples of slices at rotations [Q, 3, 3] lie on the grid.

    Returns
    -------
    Tensor, Tensor, Tensor
        Their cells [points], their places (x, y, z) in them [3, points] in units of the grid, and
        where the conjugate was taken [Q, M].
    """
    points, flipped = slicer.coordinates(rotations)
    points = points.reshape(-1, 3).T
    corner = points.floor() if slicer.interpolation == "linear" else points.round()
    _, size_y, size_x = slicer.grid_shape
    x, y, z = corner.long().unbind()
    cell = ((z + slicer.reach) * size_y + y + slicer.reach) * size_x + x
    return cell, points - corner, flipped


def weigh(numbers: Tensor, f: Tensor) -> Tensor:
    """Sum of 27 numbers of each point [points, 27], times the products of two corners' shares.

    At places f (x, y, z) [3, points] in the cells; axis by axis, [points].
    """
    g = 1 - f
    x, y, z = torch.stack([g * g, g * f, f * f], -1)[..., None].unbind(0)
    rows = torch.bmm(numbers.view(-1, 9, 3), x).view(-1, 3, 3)
    return (torch.bmm(rows, y) * z).sum((1, 2))
