"""Posteriors on a fine grid, only where a coarser grid left mass (RELION's oversampling).

Every region of orientation space is visited once: all images that still hold it possible are
scored against its slices by one matrix product, and their M-step sums are inserted together,
whatever the number of images. Scheres 2012, J. Struct. Biol. 180, 519, sec. 2.5.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import roma
import torch
from torch import Tensor

from cryoprob.fourier.gaussian_map import AnyMap
from cryoprob.inference.amplitude_law import AmplitudeLaw, Amplitudes
from cryoprob.inference.candidates import Candidates, Keep, smallest_pairs, smallest_set
from cryoprob.inference.dense import within
from cryoprob.inference.filtered import Filtered
from cryoprob.inference.levels import Level
from cryoprob.inference.regions import Region, Source, regions
from cryoprob.inference.statistics import PosteriorSummary, Statistics, reals
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel

__all__ = ["PrunedPass"]

_NEGLIGIBLE = 700.0
"""Nats below the sum so far at which a cell is forgotten at once: exp(-700) is still a number."""


@dataclass(frozen=True, eq=False)
class _Scores:
    """Log joint [n, T, C] of some images (``rows`` of the chunk) against one region."""

    rows: Tensor
    shift: Tensor
    filtered: Tensor
    transfer: Tensor
    energy: Tensor
    logits: Tensor
    amplitudes: Amplitudes | None = None


class PrunedPass:
    """One level of the search for a chunk of images.

    Parameters
    ----------
    model
        Its volume, band, noise and pixel size score the poses.
    volume
        Value of the ``volume`` site, or a law of it.
    level
        The fine grid and its band.
    images
        The chunk: n filtered images.
    candidates
        What the coarser level kept of them.
    block_bytes
        Size of one block of scores.

    Attributes
    ----------
    contrast
        Posterior mean and mean square of the contrast - 1, [2, n] (float64), where it is summed
        out with the poses; after :meth:`collect`.
    """

    contrast: Tensor

    def __init__(
        self,
        model: ParticleModel,
        volume: AnyMap,
        level: Level,
        images: Filtered,
        candidates: Candidates,
        block_bytes: int,
    ) -> None:
        self.model, self.level, self.block_bytes = model, level, block_bytes
        self.slicer = model.linear_volume.slicer_at(level.radius)
        self.source, self.law = Source.of(volume, self.slicer), AmplitudeLaw.of(model)
        self.images = level.view(images, self.slicer.band)
        self.points = _padded(level.shift.points(), 0)
        self.log_shift = _padded(level.shift.log_mass(), -torch.inf)
        self.log_rotation = float(level.rotation.log_mass)
        phase = shift_phase(self.slicer.band, self.points, model.pixel_size)
        self.phase = phase.conj().resolve_conj()
        self.log_sum = torch.full_like(images.noise_only, -torch.inf)
        self.peak = self.log_sum.clone()
        self.best = torch.zeros_like(images.index)
        self.share: Tensor | None = None
        self._look_at(candidates)

    def scan(self, keep: Keep) -> Candidates:
        """Sum out the poses; return the cells of this level that ``keep`` asks for."""
        pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        by_shift = self.log_sum.new_full(self.shift.shape, -torch.inf)
        for region in self._regions():
            for scores in self._scores(region):
                top = scores.logits.amax((1, 2))
                weights = scores.logits.sub_(top[:, None, None]).exp_()
                by_rotation = weights.sum(1).log_().add_(top[:, None])
                self._note(scores.rows, region.cells, by_rotation)
                shifts = weights.sum(2).double().log_().add_(top[:, None])
                width = (scores.rows, slice(0, shifts.shape[1]))
                by_shift[width] = torch.logaddexp(by_shift[width], shifts)
                pairs.append(self._possible(scores.rows, region.cells, by_rotation))
        return self._select(pairs, by_shift, keep)

    def collect(
        self, candidates: Candidates, statistics: Statistics, share: Tensor | None = None
    ) -> None:
        """Add the M-step sums and write the images' summaries.

        Over ``candidates`` of this level, which :meth:`scan` returned. Each image counts by its
        ``share`` [n] in the sums, where given, and whole in its summary.
        """
        self._look_at(candidates)
        self.share = share
        moments = _Moments(self)
        for region in self._regions():
            groups = self.images.group[region.rows]
            for group in groups.unique():
                part = region.take(groups == group)
                numerator = torch.zeros_like(part.slices)
                weight = torch.zeros_like(part.energy)
                for scores in self._scores(part):
                    self._weigh(scores, part, numerator, weight, moments)
                inserted = (numerator, weight, part.slices, part.energy, part.rotations)
                sigma2 = self.model.noise.sigma2[group]
                statistics.add_slices(int(group), *inserted, self.slicer.band, sigma2)
        statistics.shift_power += moments.shift_power
        self.contrast = moments.contrast[1:] / moments.contrast[0]
        statistics.summary.put(self.images.index, moments.summary())

    def peaks(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best poses of the best ``count`` regions, best first.

        Log joint over noise [n, count] (``-inf`` where there are fewer regions), [n, count, 3, 3]
        and [n, count, 2] (A).
        """
        best = self.images.transfer.new_full((len(self.images), count), -torch.inf)
        cell, move = (torch.zeros_like(best, dtype=torch.long) for _ in "Rt")
        for region in self._regions():
            for scores in self._scores(region):
                rows, width = scores.rows, scores.logits.shape[2]
                value, place = scores.logits.flatten(1).max(1, keepdim=True)
                value, order = torch.cat([best[rows], value], 1).topk(count, 1)
                best[rows] = value
                at = scores.shift.gather(1, place // width)
                for target, found in ((cell, region.cells[place % width]), (move, at)):
                    target[rows] = torch.cat([target[rows], found], 1).gather(1, order)
        turn = self.level.rotation.matrices(cell.flatten()).unflatten(0, cell.shape)
        return best, turn, self.points[move]

    @property
    def log_evidence(self) -> Tensor:
        """Log p(image | volume) over the poses scanned, [n] (float64)."""
        return self.images.noise_only + self.log_sum

    def _look_at(self, candidates: Candidates) -> None:
        self.candidates = candidates
        self.shift = candidates.shifts_at(self.level.rotation.order)

    def _regions(self) -> Iterator[Region]:
        return regions(self.level, self.candidates, self.source)

    def _scores(self, region: Region) -> Iterator[_Scores]:
        """Score a region in blocks of images of like numbers of shifts."""
        counts = (self.shift[region.rows] >= 0).sum(1)
        counts, order = counts.sort(descending=True, stable=True)
        region, start, numbers = region.take(order), 0, 2 * len(self.slicer.band)
        while start < len(order):
            width = int(counts[start])
            size = max(1, self.block_bytes // (4 * width * (len(region.cells) + numbers)))
            yield self._score(region.take(slice(start, start + size)), width)
            start += size

    def _score(self, region: Region, width: int) -> _Scores:
        rows = region.rows
        shift, inside = self.shift[rows, :width], len(self.slicer.band)
        image = self.images.image[rows, None, :inside]
        filtered = reals(image * self.phase[shift]).flatten(0, 1)
        transfer = self.images.transfer[rows, :inside]
        energy = transfer @ region.energy.T
        logits = (filtered @ reals(region.slices).T).reshape(len(rows), width, -1)
        amplitudes = None
        if self.law is None:
            closed = energy.masked_fill(~region.kept, torch.inf)
            logits -= (closed - self.log_rotation)[:, None]
        else:
            logits, amplitudes = self.law.summed(logits, 2 * energy[:, None])
            logits.masked_fill_(~region.kept[:, None], -torch.inf).add_(self.log_rotation)
        logits += self.log_shift[shift][..., None]
        return _Scores(rows, shift, filtered, transfer, energy, logits, amplitudes)

    def _weigh(
        self, scores: _Scores, region: Region, numerator: Tensor, weight: Tensor, to: "_Moments"
    ) -> None:
        """Turn scores into posterior weights and add them to the sums of a region."""
        log_sum = self.log_sum[scores.rows].to(weight)
        relative, width = scores.logits.sub_(log_sum[:, None, None]), scores.shift.shape[1]
        weights = relative.exp()
        filtered, transfer = scores.filtered, scores.transfer
        if self.share is not None:
            share = self.share[scores.rows].to(transfer)[:, None]
            filtered, transfer = filtered * share.repeat_interleave(width, 0), transfer * share
        by_rotation = weights.sum(1)
        if scores.amplitudes is None:
            reals(numerator).addmm_(weights.flatten(0, 1).T, filtered)
            weight.addmm_(by_rotation.T, transfer)
        else:
            scaled = weights * scores.amplitudes.mean
            square = (weights * scores.amplitudes.square).sum(1)
            reals(numerator).addmm_(scaled.flatten(0, 1).T, filtered)
            weight.addmm_(square.T, transfer)
            to.contrast[:, scores.rows] += scores.amplitudes.moments(weights)
        safe = relative.masked_fill_(weights == 0, 0)
        log_weight = torch.linalg.vecdot(weights.flatten(1), safe.flatten(1))
        to.add(scores, region, by_rotation, weights.sum(2), log_weight)

    def _note(self, rows: Tensor, cells: Tensor, by_rotation: Tensor) -> None:
        """Remember the sum over poses and the best rotation of each image."""
        log_mass = by_rotation.double().logsumexp(1)
        self.log_sum[rows] = torch.logaddexp(self.log_sum[rows], log_mass)
        peak, place = by_rotation.double().max(1)
        better = peak > self.peak[rows]
        self.peak[rows] = torch.where(better, peak, self.peak[rows])
        self.best[rows] = torch.where(better, cells[place], self.best[rows])

    def _possible(
        self, rows: Tensor, cells: Tensor, by_rotation: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs (image, cell) of a block that may still be kept, and their log mass."""
        near = by_rotation > self.log_sum[rows, None] - _NEGLIGIBLE
        row, column = near.nonzero(as_tuple=True)
        return rows[row], cells[column], by_rotation[row, column]

    def _select(
        self, pairs: list[tuple[Tensor, Tensor, Tensor]], by_shift: Tensor, keep: Keep
    ) -> Candidates:
        row, cell, value = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        weight = (value.double() - self.log_sum[row]).exp()
        kept = smallest_pairs(row, weight, len(self.images), keep.share, keep.rotations)
        shift_mass = (by_shift - self.log_sum[:, None]).exp()
        moves = smallest_set(shift_mass, keep.share, keep.shifts)
        order = self.level.rotation.order
        return Candidates.of(order, row[kept], cell[kept], self.shift, moves)


class _Moments:
    """Posterior means per image, gathered region by region."""

    def __init__(self, owner: PrunedPass) -> None:
        self.owner = owner
        like = owner.images.transfer[:, 0]
        self.turn = like.new_zeros(len(like), 9)
        self.shift = like.new_zeros(len(like), 2)
        self.mass, self.log_weight = torch.zeros_like(like), torch.zeros_like(like)
        self.energy, self.log_shift = torch.zeros_like(like), torch.zeros_like(like)
        self.contrast = like.new_zeros(3, len(like), dtype=torch.float64)
        self.shift_power = torch.zeros((), dtype=torch.float64, device=like.device)
        self.modes = owner.level.rotation.matrices(owner.best)

    def add(
        self,
        scores: _Scores,
        region: Region,
        by_rotation: Tensor,
        by_shift: Tensor,
        log_weight: Tensor,
    ) -> None:
        """Add one block of weights, summed over shifts [n, C] and over rotations [n, T]."""
        rows, owner = scores.rows, self.owner
        spacing = owner.level.rotation.grid.spacing_deg
        near = within(region.rotations, self.modes[rows], 2.5 * spacing)
        self.turn[rows] += (by_rotation * near) @ region.rotations.flatten(1)
        points, log_shift = owner.points[scores.shift], owner.log_shift[scores.shift]
        self.shift[rows] += (by_shift[..., None] * points).sum(1)
        self.mass[rows] += by_rotation.sum(1)
        self.log_weight[rows] += log_weight
        self.log_shift[rows] += torch.where(by_shift > 0, by_shift * log_shift, 0).sum(1)
        self.energy[rows] += 2 * torch.linalg.vecdot(by_rotation, scores.energy)
        power = (by_shift * (points**2).sum(-1)).double().sum(1)
        self.shift_power += (power if owner.share is None else power * owner.share[rows]).sum()

    def summary(self) -> PosteriorSummary:
        """The chunk's posterior in a few numbers per image."""
        owner = self.owner
        prior = self.log_shift + self.mass * owner.log_rotation
        logit = self.log_weight + self.mass * owner.log_sum
        return PosteriorSummary(
            bound=owner.log_evidence,
            rotation=roma.special_procrustes(self.turn.reshape(-1, 3, 3)),
            shift=self.shift / self.mass[:, None],
            probability=(owner.peak - owner.log_sum).exp(),
            entropy=(-self.log_weight).clamp(min=0),
            cross=logit - prior + self.energy / 2,  # of a given contrast
            energy=self.energy,
        )


def _padded(values: Tensor, fill: float) -> Tensor:
    """Values with one more entry at the end, which index -1 finds."""
    return torch.cat([values, torch.full_like(values[:1], fill)])
