"""Regions of orientation space: fine slices formed once for all images that look there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoprob.fourier.gaussian_map import AnyMap, mean_of, power_of
from cryoprob.fourier.slices import Slicer
from cryoprob.geometry.grids import RotationGrid
from cryoprob.inference.candidates import Candidates
from cryoprob.inference.levels import Level

__all__ = ["Region", "Source", "regions"]

_DEPTH = 2


@dataclass(frozen=True, eq=False)
class Source:
    """Where slices come from: a volume or a law of it, and the transform ``grid`` of its mean."""

    volume: AnyMap
    slicer: Slicer
    grid: Tensor

    @classmethod
    def of(cls, volume: AnyMap, slicer: Slicer) -> "Source":
        """Transform the volume for a slicer."""
        return cls(volume, slicer, slicer.transform(mean_of(volume)))

    def look(self, rotations: Tensor) -> tuple[Tensor, Tensor]:
        """Slices [C, m] at rotations [C, 3, 3] and the mean of |slices|^2 / 2."""
        slices = self.slicer.sample(self.grid, rotations)
        return slices, power_of(self.volume, self.slicer, slices, rotations).div_(2)


@dataclass(frozen=True, eq=False)
class Region:
    """Fine cells [C], their slices [C, m] and the mean of |slices|^2 / 2, and the images there.

    Those are ``rows`` [n]; ``kept`` [n, C] says which cells an image still holds possible.
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


def regions(level: Level, candidates: Candidates, source: Source) -> Iterator[Region]:
    """Visit the candidates' cells or all their children, region by region, in a fixed order.

    A region is a cell two orders coarser than the level's, so of at most 64 cells of it.
    """
    name = _ancestor(level, candidates)
    order = torch.argsort(name, stable=True)
    counts = torch.unique_consecutive(name[order], return_counts=True)[1].tolist()
    for part in order.split(counts):
        cells, column = candidates.cell[part].unique(return_inverse=True)
        images, row = candidates.row[part].unique(return_inverse=True)
        kept = torch.zeros(len(images), len(cells), dtype=torch.bool, device=row.device)
        kept[row, column] = True
        if candidates.order < level.rotation.order:
            children = RotationGrid(candidates.order).children(cells)
            cells, kept = children.flatten(), kept.repeat_interleave(children.shape[1], 1)
        rotations = level.rotation.matrices(cells)
        yield Region(cells, rotations, *source.look(rotations), images, kept)


def _ancestor(level: Level, candidates: Candidates) -> Tensor:
    """The coarser cells that name the regions of the candidates' cells."""
    cells, order = candidates.cell, candidates.order
    for above in range(order, max(level.rotation.order - _DEPTH, 0), -1):
        cells = RotationGrid(above).parent(cells)
    return cells
