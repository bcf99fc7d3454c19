"""Regions of orientation space: fine slices formed once for all images that look there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from cryoprob.checks import InputError
from cryoprob.fourier.slices import Slicer
from cryoprob.inference.candidates import Candidates
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.base import PosePrior
from cryoprob.models.poses.gaussian_shift import ShiftGridPrior
from cryoprob.models.poses.uniform_rotation import RotationGridPrior
from cryoprob.types import Maps

__all__ = ["Level", "Region", "regions"]

_DEPTH = 2
_Grid = TypeVar("_Grid", RotationGridPrior, ShiftGridPrior)


@dataclass(frozen=True, eq=False)
class Level:
    """One grid of a coarse-to-fine search, and the band (largest shell) in which it is scored."""

    rotation: RotationGridPrior
    shift: ShiftGridPrior
    radius: int

    @classmethod
    def of(cls, model: ParticleModel) -> "Level":
        """The model's own grids, in its own band.

        Raises
        ------
        InputError
            If a pose prior is continuous.
        """
        rotation = _grid(model.rotation, RotationGridPrior, "rotation", "order")
        shift = _grid(model.shift, ShiftGridPrior, "shift", "extent, step")
        return cls(rotation, shift, model.band.radius)


@dataclass(frozen=True, eq=False)
class Region:
    """Fine cells [C], their slices [C, m] and |slices|^2 / 2, and the images ``rows`` [n] there.

    ``kept`` [n, C] says which cells an image still holds possible.
    """

    cells: Tensor
    rotations: Tensor
    slices: Tensor
    energy: Tensor
    rows: Tensor
    kept: Tensor

    def take(self, part: Tensor | slice) -> "Region":
        """The region with some of its images."""
        return replace(self, rows=self.rows[part], kept=self.kept[part])


def regions(
    level: Level, candidates: Candidates, slicer: Slicer, volume: Maps
) -> Iterator[Region]:
    """Visit the children of all candidate cells, region by region, in a fixed order.

    A region is a cell two orders coarser than the candidates': at most 512 fine cells.
    """
    grid = slicer.transform(volume)
    name = _ancestor(level, candidates.cell)
    order = torch.argsort(name, stable=True)
    counts = torch.unique_consecutive(name[order], return_counts=True)[1].tolist()
    for part in order.split(counts):
        parents, column = candidates.cell[part].unique(return_inverse=True)
        images, row = candidates.row[part].unique(return_inverse=True)
        kept = torch.zeros(len(images), len(parents), dtype=torch.bool, device=row.device)
        kept[row, column] = True
        cells = _children(level, parents)
        kept = kept.repeat_interleave(len(cells) // len(parents), 1)
        rotations = level.rotation.matrices(cells)
        slices = slicer.sample(grid, rotations)
        energy = slices.abs().square_().div_(2)
        yield Region(cells, rotations, slices, energy, images, kept)


def _children(level: Level, parents: Tensor) -> Tensor:
    return type(level.rotation.grid)(level.rotation.order - 1).children(parents).flatten()


def _ancestor(level: Level, cells: Tensor) -> Tensor:
    """The coarser cells that name the regions of the candidates' cells."""
    kind = type(level.rotation.grid)
    order = level.rotation.order - 1
    for above in range(order, max(order - _DEPTH, 0), -1):
        cells = kind(above).parent(cells)
    return cells


def _grid(prior: PosePrior, kind: type[_Grid], site: str, arguments: str) -> _Grid:
    if isinstance(prior, kind):
        return prior
    raise InputError(
        f"{site} prior",
        expected="a prior on a grid, over which the E-step sums",
        got=f"{type(prior).__name__}, which is continuous",
        remedy=f"Discretize it: model.{site} = model.{site}.discretize({arguments}).",
    )
