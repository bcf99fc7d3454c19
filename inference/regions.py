"""Regions of orientation space: fine slices formed once for all images that look there."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from cryoprob.inference.candidates import Candidates
from cryoprob.models.poses.gaussian_shift import ShiftGridPrior
from cryoprob.models.poses.uniform_rotation import RotationGridPrior
from torch import Tensor

from cryoprob.fourier.slices import Slicer
from cryoprob.types import Maps

__all__ = ["Level", "Region", "regions"]

_DEPTH = 2


@dataclass(frozen=True, eq=False)
class Level:
    """One grid of a coarse-to-fine search, and the band (largest shell) in which it is scored."""

    rotation: RotationGridPrior
    shift: ShiftGridPrior
    radius: int


@dataclass(frozen=True, eq=False)
class Region:
    """Fine rotation cells [C] with their slices [C, m] and |slices|^2 / 2.

    And the images [n] there.
    """

    cells: Tensor
    rotations: Tensor
    slices: Tensor
    energy: Tensor
    rows: Tensor


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
        cells = _children(level, candidates.cell[part].unique())
        rotations = level.rotation.matrices(cells)
        slices = slicer.sample(grid, rotations)
        energy = slices.abs().square_().div_(2)
        yield Region(cells, rotations, slices, energy, candidates.row[part].unique())


def _children(level: Level, parents: Tensor) -> Tensor:
    return type(level.rotation.grid)(level.rotation.order - 1).children(parents).flatten()


def _ancestor(level: Level, cells: Tensor) -> Tensor:
    """The coarser cells that name the regions of the candidates' cells."""
    kind = type(level.rotation.grid)
    order = level.rotation.order - 1
    for above in range(order, max(order - _DEPTH, 0), -1):
        cells = kind(above).parent(cells)
    return cells
