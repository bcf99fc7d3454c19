"""Branch and bound with frequency marching: the best pose of a grid, by giving up sets of poses.

Grids are searched from coarse to fine, each in a wider band, and the finest one in two. Poses are
held by families: an image, a shift cell, and eight sibling rotation cells. A family goes on while
an upper bound of its log joint (:mod:`cryoprob.inference.bounds`) reaches the best pose known.

Sources: Zhong et al. 2020 (cryoDRGN), algorithm 1; Punjani et al. 2017, Nat. Methods 14, 290.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from cryoprob.fourier.gaussian_map import AnyMap
from cryoprob.geometry.grids import RotationGrid
from cryoprob.inference.bounds import Block, Bound, Points
from cryoprob.inference.dense import blocks
from cryoprob.inference.filtered import Filtered
from cryoprob.inference.left_out import LeftOut, shells_of
from cryoprob.inference.levels import Level, levels
from cryoprob.inference.regions import Source
from cryoprob.inference.statistics import reals
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel

__all__ = ["Best", "BranchAndBound"]

_FAMILIES = 2**23
"""Most families that may be open at once, 128 MiB; what is more is searched in parts."""

_EARLY = 0.5
"""Part of the band in which the finest grid is scored first."""

_FIRST = 0.375
"""Part of the band that a bound at points starts from: 12 of 32 shells (Zhong et al. 2020)."""

_ROUNDING = 64
"""Rounding of a score, in units of the precision times the image's whitened power."""


@dataclass(frozen=True, eq=False)
class Best:
    """The best poses known of n images: log joint over noise [n], [n, 3, 3] and [n, 2] (A)."""

    value: Tensor
    rotation: Tensor
    shift: Tensor

    def raised(self, rows: Tensor, other: "Best") -> "Best":
        """With the poses ``other`` of images ``rows``, where these are better."""
        better = other.value > self.value[rows]
        rows, part = rows[better], (other.value, other.rotation, other.shift)
        mine = (self.value.clone(), self.rotation.clone(), self.shift.clone())
        for target, found in zip(mine, part, strict=True):
            target[rows] = found[better]
        return Best(*mine)


@dataclass(frozen=True, eq=False)
class _Open:
    """Families of a step's poses [K] (int32), and the upper bound of each."""

    row: Tensor
    shift: Tensor
    family: Tensor
    bound: Tensor

    @classmethod
    def of(
        cls,
        step: "_Step",
        row: Tensor,
        shift: Tensor,
        cells: Tensor,
        upper: Tensor,
        least: Tensor | None,
    ) -> "_Open":
        """Those of a block of bounds [k, C] that reach what their images ask for."""
        bound = upper.unflatten(1, (-1, 8)).amax(2)
        lowest = -torch.inf if least is None else least[row, None]
        place, eight = (bound.ge(lowest) & (bound > -torch.inf)).nonzero(as_tuple=True)
        family = _families(step.level.rotation.order, cells)[eight]
        found = row[place].int(), shift[place].int(), family.int()
        return cls(*found, bound[place, eight])

    @classmethod
    def nothing(cls, like: Tensor) -> "_Open":
        none = like.new_zeros(0)
        return cls(none.int(), none.int(), none.int(), none)

    @classmethod
    def all(cls, parts: "list[_Open]") -> "_Open":
        """Several as one."""
        names = ("row", "shift", "family", "bound")
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in names))

    def take(self, part: Tensor) -> "_Open":
        """Some of them."""
        return _Open(self.row[part], self.shift[part], self.family[part], self.bound[part])


@dataclass(frozen=True, eq=False)
class _Task:
    """Pairs of image and shift cell [k] to be scored against rotation cells [C]."""

    cells: Tensor
    row: Tensor
    shift: Tensor


class _Step:
    """One grid, scored in one band: the first of ``chain``, which goes on to the finest grid."""

    def __init__(
        self, model: ParticleModel, whole: Source, bound: Bound, chain: list[Level]
    ) -> None:
        self.level, finest, radius = chain[0], chain[-1], chain[0].radius
        self.on_finest = len(chain) == 1
        self.last = self.on_finest and radius == model.band.radius
        self.bound = Points() if self.last else bound
        narrow = model.linear_volume.slicer_at(radius)
        self.source = whole if self.bound.inside else Source.of(whole.volume, narrow)
        self.left = LeftOut.of(model, whole, chain) if self.bound.inside else None
        band, self.points = narrow.band, self.level.shift.points()
        self.shells, self.share = shells_of(band), len(band) / len(model.band)
        self.phase = shift_phase(band, self.points, model.pixel_size).conj().resolve_conj()
        below = finest.shift.log_mass().view(len(self.points), -1).amax(1)
        here = finest.shift.log_mass(self.points)
        self.log_prior = (below if self.bound.inside else here) + finest.rotation.log_mass
        self.support = _support(chain)

    def everything(self, rows: Tensor) -> Iterator[_Task]:
        """All poses of the grid, for some images."""
        shifts = torch.arange(len(self.points), device=rows.device)
        row, shift = rows.repeat_interleave(len(shifts)), shifts.repeat(len(rows))
        families = torch.arange(len(self.support) // 8, device=rows.device)
        for part in families.split(8):
            cells = _siblings(self.level.rotation.order, part).flatten()
            yield _Task(cells, row, shift)

    def tasks(self, found: _Open, order: int) -> Iterator[_Task]:
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
            yield _Task(cells, row, shift)

    def upper(
        self, task: _Task, images: Filtered, power: Tensor, block_bytes: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Rows and shifts [k] of a task, and upper bounds of their log joint [k, C], by blocks."""
        slices, energy = self.source.look(self.level.rotation.matrices(task.cells))
        if not self.on_finest:  # of the mean map alone, from which other poses are measured
            energy = slices.abs().square().div_(2)
        who, image = task.row.unique(return_inverse=True)
        transfer, closed, left = images.transfer[who], ~self.support[task.cells], None
        if self.left is not None:
            left = self.left.norms(transfer, task.cells, slices)
        inside = self.phase.shape[1]
        block = partial(
            Block,
            slices=slices[:, :inside],
            energy=energy[:, :inside],
            transfer=transfer[:, :inside],
            power=power[who],
            shells=self.shells,
            left=left,
        )
        size = max(1, block_bytes // (4 * (len(task.cells) + 2 * inside)))
        for part in blocks(len(task.row), size):
            row, shift = task.row[part], task.shift[part]
            filtered = images.image[row, :inside] * self.phase[shift]
            found = self.bound.upper(block(filtered=filtered, image=image[part]))
            found += self.log_prior[shift, None]
            yield row, shift, found.masked_fill_(closed, -torch.inf)


@dataclass(frozen=True, eq=False)
class _Top:
    """The best bound seen of each image, [n], with its cells."""

    value: Tensor
    cell: Tensor
    shift: Tensor

    @classmethod
    def of(cls, like: Tensor) -> "_Top":
        nowhere = torch.zeros_like(like[:, 0], dtype=torch.long)
        return cls(torch.full_like(like[:, 0], -torch.inf), nowhere, nowhere.clone())

    def see(self, row: Tensor, shift: Tensor, cells: Tensor, upper: Tensor) -> None:
        """Note the best of a block of bounds [k, C]; of equal ones the first."""
        value, place = upper.max(1)
        order = torch.argsort(value, descending=True, stable=True)
        order = order[torch.argsort(row[order], stable=True)]
        first = row[order].diff(prepend=row.new_full((1,), -1)) != 0
        best = order[first]
        best = best[value[best] > self.value[row[best]]]
        rows = row[best]
        self.value[rows], self.shift[rows] = value[best], shift[best]
        self.cell[rows] = cells[place[best]]


class BranchAndBound:
    """The search for a chunk of images.

    Parameters
    ----------
    model
        Its grids, band, noise and pixel size.
    volume
        Value of the ``volume`` site, or a law of it.
    images
        The chunk: n filtered images.
    bound
        What a score says of what it leaves out.
    coarse_order
        Order of the coarsest rotation grid, searched completely.
    block_bytes
        Size of one block of scores.

    Attributes
    ----------
    scored
        Scores worked out per image so far, [n]; those in a part of the band count that part.
    """

    def __init__(
        self,
        model: ParticleModel,
        volume: AnyMap,
        images: Filtered,
        bound: Bound,
        coarse_order: int,
        block_bytes: int,
    ) -> None:
        self.images, self.block_bytes = images, block_bytes
        self.model, self.whole = model, Source.of(volume, model.linear_volume.slicer)
        chains = _chains(levels(model, volume, coarse_order), model.band.radius, bound)
        self.steps = [_Step(model, self.whole, bound, chain) for chain in chains]
        self.power = _whitened(images, self.whole)
        self.scored = torch.zeros_like(images.noise_only)
        like = images.transfer
        self.slack = _ROUNDING * torch.finfo(like.dtype).eps * self.power.sum(1)
        nowhere = like.new_full((len(like),), -torch.inf)
        self.best = Best(nowhere, like.new_zeros(len(like), 3, 3), like.new_zeros(len(like), 2))

    @property
    def coarser(self) -> bool:
        """There are grids above the finest."""
        return not self.steps[0].on_finest

    def search(self, start: Best | None = None) -> Best:
        """The best pose of the model's grid, no worse than ``start``."""
        step, rows = self.steps[0], torch.arange(len(self.images), device=self.images.index.device)
        if start is not None:
            self.best = self.best.raised(*self._on_grid(start))
        size = max(1, 8 * _FAMILIES // (len(step.points) * len(step.support)))
        for part in rows.split(size):
            self._descend(self._look(step, step.everything(part)), 1)
        return self.best

    def _on_grid(self, start: Best) -> tuple[Tensor, Best]:
        """Rows and poses of a start that are the grid's: of a symmetry's, one of its unit."""
        rotation = self.steps[-1].level.rotation
        cell = rotation.grid.cell(rotation.turn.mT @ start.rotation)
        rows = self.steps[-1].support[cell].nonzero()[:, 0]
        return rows, Best(start.value[rows], start.rotation[rows], start.shift[rows])

    def _descend(self, found: _Open, number: int) -> None:
        """Search what is open after so many steps, in halves of the images where it is much."""
        if number == len(self.steps) or not len(found.row):
            return
        step, above = self.steps[number], self.steps[number - 1].level.rotation.order
        more = 32 if step.level.rotation.order > above else 1
        middle = found.row.median()
        low = found.row <= middle
        if len(low) * more > _FAMILIES and not step.last and not low.all():
            for part in (low, ~low):
                self._descend(found.take(part), number)
            return
        self._descend(self._look(step, step.tasks(found, above)), number + 1)

    def _look(self, step: _Step, tasks: Iterator[_Task]) -> _Open:
        """Score poses of a step; what stays open. The best pose known may rise."""
        kept, top = [_Open.nothing(self.power)], _Top.of(self.power)
        centers = step.on_finest or not step.bound.inside
        known = step.on_finest or step.bound.inside
        fixed = self.best.value - self.slack if known else None
        for task in tasks:
            cells, share = task.cells, step.share * len(task.cells)
            for row, shift, upper in step.upper(task, self.images, self.power, self.block_bytes):
                self.scored.index_add_(0, row, torch.full_like(self.scored[row], share))
                if centers:
                    top.see(row, shift, cells, upper)
                if not step.last:
                    kept.append(_Open.of(step, row, shift, cells, upper, fixed))
        found = _Open.all(kept)
        if not centers:
            return found
        least = self._settle(step, top) - self.slack
        return found.take(found.bound >= least[found.row.long()])

    def _settle(self, step: _Step, top: _Top) -> Tensor:
        """The log joint that poses of this step must reach, [n], from that of its best center."""
        rows = (top.value > -torch.inf).nonzero()[:, 0]
        shifts, value = top.shift[rows], top.value[rows]
        rotation = step.level.rotation.matrices(top.cell[rows])
        if not step.last:
            value = self._gain(rows, rotation, step.points[shifts]) + step.log_prior[shifts]
        if step.on_finest:
            self.best = self.best.raised(rows, Best(value, rotation, step.points[shifts]))
            return self.best.value
        return torch.full_like(top.value, -torch.inf).index_put((rows,), value)

    def _gain(self, rows: Tensor, rotation: Tensor, shift: Tensor) -> Tensor:
        """Log likelihood over noise of images ``rows`` at a pose each, in the whole band."""
        slices, energy = self.whole.look(rotation)
        phase = shift_phase(self.whole.slicer.band, shift, self.model.pixel_size)
        cross: Tensor = torch.linalg.vecdot(
            reals(self.images.image[rows] * phase.conj()), reals(slices)
        )
        lost: Tensor = torch.linalg.vecdot(self.images.transfer[rows], energy)
        return cross - lost


def _chains(grids: list[Level], radius: int, bound: Bound) -> list[list[Level]]:
    """What is scored step by step: a grid in a band, and the grids below it; the finest twice."""
    early = max(1, round(_EARLY * radius))
    chains = [grids[place:] for place in range(len(grids))]
    chains.insert(-1, [replace(grids[-1], radius=early)])
    if not bound.inside:
        rise = torch.linspace(_FIRST * radius, radius, len(chains)).round().int().tolist()
        bands = zip(chains, rise, strict=True)
        chains = [[replace(chain[0], radius=max(1, band)), *chain[1:]] for chain, band in bands]
    return chains if early < radius else [*chains[:-2], chains[-1]]


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


def _whitened(images: Filtered, whole: Source) -> Tensor:
    """Power of the images over the noise in each shell of the band, [n, S].

    Numbers that the CTF blanks count nothing: they are the same under every pose.
    """
    seen = images.transfer > 0
    power = images.image.abs().square() / torch.where(seen, images.transfer, 1)
    power = torch.where(seen, power, 0)
    shells = shells_of(whole.slicer.band)
    return torch.stack([power[:, shell].sum(1) for shell in shells], 1)
