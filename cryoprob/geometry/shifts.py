"""Grids of in-plane shifts: a square lattice in a disk, refined by quartering its cells."""

from dataclasses import dataclass
from functools import lru_cache
from math import floor

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.types import Shifts

__all__ = ["ShiftGrid"]

_CHILDREN = 4


@dataclass(frozen=True)
class ShiftGrid:
    """Shifts (x, y) in Angstrom: the points of a square lattice with ``|t| <= extent_A``.

    They are sorted by length, so that 0 is no shift and a smaller disk is a prefix. Each stands
    for the square cell of side ``step_A`` around it. Refinement quarters the cells: the children
    of a point lie at plus and minus a quarter of its step, and all of them are kept, also those
    that reach over the edge of the disk, so that the area covered does not change.

    Attributes
    ----------
    extent_A
        Largest length of the unrefined shifts, Angstrom; 0 leaves no shift alone.
    step_A
        Distance of neighbors, Angstrom.
    level
        How often the grid was refined; 0 unless made by :meth:`refined`.

    Raises
    ------
    InputError
        If the extent is negative or the step is not positive.
    """

    extent_A: float
    step_A: float
    level: int = 0

    def __post_init__(self) -> None:
        require(
            0 <= self.extent_A < float("inf") and 0 < self.step_A < float("inf"),
            "shift grid",
            expected="an extent >= 0 and a step > 0 in Angstrom",
            got=f"extent {self.extent_A}, step {self.step_A}",
        )

    def __len__(self) -> int:
        return len(_points(self))

    @property
    def points(self) -> Shifts:
        """The shifts, [T, 2] (x, y), Angstrom, float64."""
        return _points(self).clone()

    def refined(self) -> "ShiftGrid":
        """The grid of all children, with half the step."""
        return ShiftGrid(self.extent_A, self.step_A / 2, self.level + 1)

    def children(self, index: Tensor) -> Tensor:
        """The 4 cells of :meth:`refined` that make up each cell, [*, 4]."""
        return _CHILDREN * index[..., None] + torch.arange(_CHILDREN, device=index.device)

    def parent(self, index: Tensor) -> Tensor:
        """The cell of the grid one level up that holds each cell, [*].

        Raises
        ------
        InputError
            If the grid was not made by :meth:`refined`.
        """
        require(self.level > 0, "parent", expected="a refined shift grid", got="level 0")
        return index // _CHILDREN

    def nearest(self, shifts: Shifts) -> Tensor:
        """Index of the point nearest to each shift [*, 2], [*] (long)."""
        points = _points(self).to(shifts)
        return torch.cdist(shifts.reshape(-1, 2), points).argmin(-1).reshape(shifts.shape[:-1])

    def cells_within(self, shift: Shifts, radius_A: float) -> Tensor:
        """Indices, ascending, of the points within ``radius_A`` of one ``shift`` [2]."""
        away = torch.linalg.vector_norm(_points(self).to(shift.device) - shift, dim=-1)
        return torch.nonzero(away <= radius_A * (1 + 1e-9)).flatten()


@lru_cache(maxsize=32)
def _points(grid: ShiftGrid) -> Tensor:
    if grid.level == 0:
        return _disk(grid.extent_A, grid.step_A)
    quarter = torch.tensor([[-1, -1], [1, -1], [-1, 1], [1, 1]], dtype=torch.float64) / 2
    above = _points(ShiftGrid(grid.extent_A, grid.step_A * 2, grid.level - 1))
    return (above[:, None] + quarter * grid.step_A).flatten(0, 1)


def _disk(extent: float, step: float) -> Tensor:
    reach = floor(extent / step * (1 + 1e-9))
    k = torch.arange(-reach, reach + 1)
    y, x = (lattice.flatten() for lattice in torch.meshgrid(k, k, indexing="ij"))
    square = x**2 + y**2
    order = torch.argsort(square, stable=True)
    order = order[square[order] <= (extent / step) ** 2 * (1 + 1e-9)]
    return torch.stack([x[order], y[order]], -1).double() * step
