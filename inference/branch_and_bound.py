"""Branch and bound with frequency marching: the best pose of a grid, by giving up sets of poses.

Grids are searched from coarse to fine in growing bands, the finest one in a part of the band and
then in all of it. A set of poses goes on while an upper bound of its log joint
(:mod:`cryoprob.inference.bounds`) reaches the best pose known: of the finest grid where the bound
speaks for whole cells, of the same grid where it speaks for their centers.

Sources: Zhong et al. 2020 (cryoDRGN), algorithm 1; Punjani et al. 2017, Nat. Methods 14, 290.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoprob.fourier.gaussian_map import AnyMap
from cryoprob.inference.bounded_steps import Open, Step, Task, Top
from cryoprob.inference.bounds import Bound
from cryoprob.inference.filtered import Filtered
from cryoprob.inference.left_out import left_out, peaks, shells_of
from cryoprob.inference.levels import Level, levels
from cryoprob.inference.regions import Source
from cryoprob.inference.statistics import reals
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel

__all__ = ["Best", "BranchAndBound", "Ladder"]

_FAMILIES = 2**24
"""Most families open at once, a GiB with what sorting takes; what is more is searched in parts."""

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
class Ladder:
    """The steps of a search: all that it needs of model and volume, the same for all images.

    Attributes
    ----------
    model
        Its grids, band, noise and pixel size.
    whole
        Slices of the whole band.
    steps
        From the coarsest grid to the finest in the whole band.
    early
        The finest grid in a part of the band, just before the last step; or None.
    coarser
        Whether there is a grid coarser than the finest.
    """

    model: ParticleModel
    whole: Source
    steps: list[Step]
    early: Step | None
    coarser: bool

    @classmethod
    def of(cls, model: ParticleModel, volume: AnyMap, bound: Bound, coarse_order: int) -> "Ladder":
        """For a value of the ``volume`` site or a law of it.

        Parameters
        ----------
        bound
            What a score says of what it leaves out.
        coarse_order
            Order of the coarsest rotation grid, searched completely.
        """
        whole, grids = (
            Source.of(volume, model.linear_volume.slicer),
            levels(model, volume, coarse_order),
        )
        chains = _chains(grids, model.band.radius, bound)
        tables = iter(left_out(model, whole, grids) if bound.inside else [])
        steps = [Step(model, whole, bound, chain, next(tables, None)) for chain in chains]
        coarser = not steps[0].on_finest
        early = coarser and len(steps) > 1 and steps[-2].on_finest
        return cls(model, whole, steps, steps.pop(-2) if early else None, coarser)


class BranchAndBound:
    """The search for a chunk of images.

    Parameters
    ----------
    ladder
        Its steps.
    images
        The chunk: n filtered images.
    block_bytes
        Size of one block of scores.

    Attributes
    ----------
    scored
        Scores worked out per image so far, [n]; those in a part of the band count that part.
    """

    def __init__(self, ladder: Ladder, images: Filtered, block_bytes: int) -> None:
        self.ladder, self.steps = ladder, ladder.steps
        self.images, self.block_bytes = images, block_bytes
        self.power = _whitened(images, ladder.whole)
        self.peak = peaks(ladder.model.band, images.transfer)
        self.scored = torch.zeros_like(images.noise_only)
        like = images.transfer
        self.slack = _ROUNDING * torch.finfo(like.dtype).eps * self.power.sum(1)
        nowhere = like.new_full((len(like),), -torch.inf)
        self.best = Best(nowhere, like.new_zeros(len(like), 3, 3), like.new_zeros(len(like), 2))

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

    def _descend(self, found: Open, number: int) -> None:
        """Search what is open after so many steps, in halves of the images where it is much."""
        if number == len(self.steps) or not len(found.row):
            return
        step, above = self.steps[number], self.steps[number - 1].level.rotation.order
        low = found.row <= found.row.median()
        if 32 * len(low) > _FAMILIES and not step.last and not low.all():
            for part in (low, ~low):
                self._descend(found.take(part), number)
            return
        if step.last and not self.best.value[found.row.long()].isfinite().all():
            self._look(step, step.tasks(found.take(found.firsts()), above))
        self._descend(self._look(step, step.tasks(found, above)), number + 1)

    def _look(self, step: Step, tasks: Iterator[Task]) -> Open:
        """Score poses of a step; what stays open. The best pose known may rise."""
        kept, top = [Open.nothing(self.power)], Top.of(self.power)
        centers = step.last or not (step.bound.inside and self.ladder.coarser)
        known = step.on_finest or step.bound.inside
        least = self.best.value - self.slack
        least = least if known else torch.full_like(least, -torch.inf)
        order = step.level.rotation.order
        for task in tasks:
            if step.last and self.ladder.early is not None:
                task = self._possible(self.ladder.early, task, least)
            for row, shift, upper in self._upper(step, task):
                if centers:
                    top.see(row, shift, task.cells, upper)
                if not step.last:
                    kept.append(Open.of(order, row, shift, task.cells, upper, least))
        found = Open.all(kept)
        if not centers:
            return found
        reached = self._settle(step, top) - self.slack
        return found.take(found.bound >= reached[found.row.long()])

    def _upper(self, step: Step, task: Task) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Bounds of a task, counted."""
        each = torch.full_like(self.scored, step.share * len(task.cells))
        self.scored.index_add_(0, task.row, each[task.row])
        return step.upper(task, self.images, self.power, self.peak, self.block_bytes)

    def _possible(self, step: Step, task: Task, least: Tensor) -> Task:
        """The pairs of a task that a narrower band leaves open."""
        parts = self._upper(step, task)
        kept = [upper.amax(1) >= least[row] for row, _, upper in parts]
        some = torch.cat(kept)
        return Task(task.cells, task.row[some], task.shift[some])

    def _settle(self, step: Step, top: Top) -> Tensor:
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
        slices, energy = self.ladder.whole.look(rotation)
        phase = shift_phase(self.ladder.model.band, shift, self.ladder.model.pixel_size)
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


def _whitened(images: Filtered, whole: Source) -> Tensor:
    """Power of the images over the noise in each shell of the band, [n, S].

    Numbers that the CTF blanks count nothing: they are the same under every pose.
    """
    seen = images.transfer > 0
    power = images.image.abs().square() / torch.where(seen, images.transfer, 1)
    power = torch.where(seen, power, 0)
    shells = shells_of(whole.slicer.band)
    return torch.stack([power[:, shell].sum(1) for shell in shells], 1)
