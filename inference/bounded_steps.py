"""Steps of branch and bound: one grid scored in one band, and the sets of poses that stay open."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cryoprob.geometry.grids import RotationGrid
from cryoprob.inference.bounds import Block, Bound, Points
from cryoprob.inference.dense import blocks
from cryoprob.inference.filtered import Filtered
from cryoprob.inference.left_out import left_above, shells_of, whitened
from cryoprob.inference.levels import Level
from cryoprob.inference.regions import Source
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel

__all__ = ["Open", "Step", "Task", "Top"]


@dataclass(frozen=True, eq=False)
class Task:
    """Pairs of image and shift cell [k] to be scored against rotation cells [C]."""

    cells: Tensor
    row: Tensor
    shift: Tensor


@dataclass(frozen=True, eq=False)
class Open:
    """Families of poses: an image, a shift cell and eight sibling rotation cells, [K] (int32).

    With the upper bound of the best of each.
    """

    row: Tensor
    shift: Tensor
    family: Tensor
    bound: Tensor

    @classmethod
    def of(
        cls, order: int, row: Tensor, shift: Tensor, cells: Tensor, upper: Tensor, least: Tensor
    ) -> "Open":
        """Those of a block of bounds [k, C] that reach what their images ask for, [n]."""
        bound = upper.unflatten(1, (-1, 8)).amax(2)
        reached = (bound >= least[row, None]) & (bound > -torch.inf)
        place, eight = reached.nonzero(as_tuple=True)
        family = _families(order, cells)[eight]
        found = row[place].int(), shift[place].int(), family.int()
        return cls(*found, bound[place, eight])

    @classmethod
    def nothing(cls, like: Tensor) -> "Open":
        """No families, with bounds of the type of ``like``."""
        none = like.new_zeros(0)
        return cls(none.int(), none.int(), none.int(), none)

    @classmethod
    def all(cls, parts: "list[Open]") -> "Open":
        """Several as one."""
        names = ("row", "shift", "family", "bound")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def firsts(self) -> Tensor:
        """Places of the family of the largest bound of each image."""
        order = torch.argsort(self.bound, descending=True, stable=True)
        order = order[torch.argsort(self.row[order], stable=True)]
        return order[self.row[order].diff(prepend=self.row.new_full((1,), -1)) != 0]

    def take(self, part: Tensor) -> "Open":
        """Some of them."""
        return Open(self.row[part], self.shift[part], self.family[part], self.bound[part])


@dataclass(frozen=True, eq=False)
class Top:
    """The best bound seen of each image, [n], with its cells."""

    value: Tensor
    cell: Tensor
    shift: Tensor

    @classmethod
    def of(cls, like: Tensor) -> "Top":
        """Nothing seen yet of the images that ``like`` [n, ...] has rows for."""
        nowhere = torch.zeros_like(like[:, 0], dtype=torch.long)
        return cls(torch.full_like(like[:, 0], -torch.inf), nowhere, nowhere.clone())

    def see(self, row: Tensor, shift: Tensor, cells: Tensor, upper: Tensor) -> None:
        """Note the best of a block of bounds [k, C]; of equal ones the first."""
        value, place = upper.max(1)
        peak = self.value.scatter_reduce(0, row, value, "amax")
        best = ((value == peak[row]) & (value > self.value[row])).nonzero()[:, 0]
        best = best[torch.argsort(row[best], stable=True)]
        best = best[row[best].diff(prepend=row.new_full((1,), -1)) != 0]
        rows = row[best]
        self.value[rows], self.shift[rows] = value[best], shift[best]
        self.cell[rows] = cells[place[best]]


class Step:
    """One grid, scored in one band.

    Parameters
    ----------
    model
        Its band, pixel size and slices.
    whole
        Slices of the whole band.
    bound
        What scores say of what they leave out; the last step leaves nothing out.
    chain
        The grids from this one, in its band, to the finest.
    left
        What its cells leave out (:func:`~cryoprob.inference.left_out.left_out`), [Q, S]; None of
        the finest grid, and for bounds at points.

    Attributes
    ----------
    on_finest, last
        It scores the finest grid; in the whole band.
    share
        Its part of the whole band's numbers.
    """

    def __init__(
        self,
        model: ParticleModel,
        whole: Source,
        bound: Bound,
        chain: list[Level],
        left: Tensor | None = None,
    ) -> None:
        self.level, finest, radius = chain[0], chain[-1], chain[0].radius
        self.left = left
        self.on_finest = len(chain) == 1
        self.last = self.on_finest and radius == model.band.radius
        self.bound = Points() if self.last else bound
        narrow = model.linear_volume.slicer_at(radius)
        self.source = whole if self.bound.inside else Source.of(whole.volume, narrow)
        self.band, self.points = narrow.band, self.level.shift.points()
        band = self.band
        self.shells, self.share = shells_of(band), len(band) / len(model.band)
        self.phase = shift_phase(band, self.points, model.pixel_size).conj().resolve_conj()
        below = finest.shift.log_mass().view(len(self.points), -1).amax(1)
        here = finest.shift.log_mass(self.points)
        self.log_prior = (below if self.bound.inside else here) + finest.rotation.log_mass
        self.support = _support(chain)

    def everything(self, rows: Tensor) -> Iterator[Task]:
        """All poses of the grid, for some images."""
        shifts = torch.arange(len(self.points), device=rows.device)
        row, shift = rows.repeat_interleave(len(shifts)), shifts.repeat(len(rows))
        families = torch.arange(len(self.support) // 8, device=rows.device)
        for part in families.split(8):
            cells = _siblings(self.level.rotation.order, part).flatten()
            yield Task(cells, row, shift)

    def tasks(self, found: Open, order: int) -> Iterator[Task]:
        """The poses of open families of rotation order ``order``, or their children."""
        found = found.take(torch.argsort(found.family, stable=True))
        families, counts = torch.unique_consecutive(found.family.long(), return_counts=True)
        pairs = (pair.long().split(counts.tolist()) for pair in (found.row, found.shift))
        parts = zip(families, *pairs, strict=True)
        for family, row, shift in parts:
            cells = _siblings(order, family)
            if order < self.level.rotation.order:
                cells = RotationGrid(order).children(cells).flatten()
                row = row.repeat_interleave(4)
                shift = self.level.shift.grid.children(shift).flatten()
            yield Task(cells, row, shift)

    def upper(
        self, task: Task, images: Filtered, power: Tensor, peak: Tensor, block_bytes: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows and shifts [k] of a task, and upper bounds of their log joint [k, C], by blocks.

        ``power`` is the images' whitened power, ``peak`` the largest weight, in shells, [n, S].
        """
        if not len(task.row):
            return
        slices, energy = self.source.look(self.level.rotation.matrices(task.cells))
        if not self.on_finest:  # of the mean map alone, from which other poses are measured
            energy = slices.abs().square().div_(2)
        who, image = task.row.unique(return_inverse=True)
        transfer, closed, inside = images.transfer[who], ~self.support[task.cells], len(self.band)
        block = partial(
            Block,
            slices=slices[:, :inside],
            energy=energy[:, :inside],
            transfer=transfer[:, :inside],
            power=power[who],
            shells=self.shells,
            left=self._left(task.cells, slices, peak[who]),
        )
        size = max(1, block_bytes // (4 * (len(task.cells) + 2 * inside)))
        for part in blocks(len(task.row), size):
            row, shift = task.row[part], task.shift[part]
            filtered = images.image[row, :inside] * self.phase[shift]
            found = self.bound.upper(block(filtered=filtered, image=image[part]))
            found += self.log_prior[shift, None]
            yield row, shift, found.masked_fill_(closed, -torch.inf)

    def _left(self, cells: Tensor, slices: Tensor, peak: Tensor) -> Tensor | None:
        """Whitened norms of what cells [C] leave out of images [U], [U, C, S]."""
        if not self.bound.inside:
            return None
        if self.left is not None:
            return whitened(peak, self.left[cells])
        return whitened(peak, left_above(self.source.slicer.band, slices, self.level.radius))


def _siblings(order: int, family: Tensor) -> Tensor:
    """Eight cells of an order's grid: those of one parent, or at order 0 any, [*, 8]."""
    if order:
        return RotationGrid(order - 1).children(family)
    return 8 * family[..., None] + torch.arange(8, device=family.device)


def _families(order: int, cells: Tensor) -> Tensor:
    """Which families eights of cells [C] are, [C / 8]."""
    return RotationGrid(order).parent(cells[::8]) if order else cells[::8] // 8


def _support(chain: list[Level]) -> Tensor:
    """Whether a cell of the first grid holds any of the poses of the finest, [Q]."""
    order, cells = chain[-1].rotation.order, chain[-1].rotation.cells()
    for above in range(order, chain[0].rotation.order, -1):
        cells = RotationGrid(above).parent(cells)
    found = torch.zeros(len(chain[0].rotation.grid), dtype=torch.bool, device=cells.device)
    found[cells] = True
    return found
