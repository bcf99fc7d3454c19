"""Searches of the pose grid: candidates of a coarse grid, and the best pose of the fine one."""

from collections.abc import Callable
from functools import partial
from math import cos, radians

import torch
from torch import Tensor

from cryoprob.fourier.gaussian_map import AnyMap
from cryoprob.inference.branch_and_bound import Best, BranchAndBound, Ladder
from cryoprob.inference.candidates import Candidates, Keep, fill_up, smallest_set
from cryoprob.inference.dense import DenseGrid
from cryoprob.inference.filtered import Filtered
from cryoprob.inference.levels import Level, levels
from cryoprob.inference.pruned import PrunedPass
from cryoprob.inference.treatments.modal import Modal
from cryoprob.models.particle_model import ParticleModel

__all__ = ["Found", "best_poses", "candidates", "distinct_poses", "searcher"]

_PEAKS = 64
"""Poses among which distinct ones are looked for."""


def _coarse(
    model: ParticleModel,
    keep: Keep,
    block_bytes: int,
    volume: AnyMap,
    level: Level,
    images: Filtered,
) -> Candidates:
    """Candidates of the coarsest level, searched completely."""
    grid = DenseGrid.at(model, volume, level)
    cells, found, moves = level.rotation.cells(), [], []
    for part, posterior in grid.posteriors(level.view(images, grid.band), block_bytes):
        kept = smallest_set(posterior.rotation_weights, keep.share, keep.rotations)
        kept = fill_up(kept, posterior.logits, 1, keep.rotations)
        row, place = torch.nonzero(kept, as_tuple=True)
        found.append((row + part.start, cells[place]))
        kept = smallest_set(posterior.shift_weights, keep.share, keep.shifts)
        moves.append(fill_up(kept, posterior.logits, 2, keep.shifts))
    shift = torch.cat(moves)
    every = torch.arange(shift.shape[1], device=shift.device).expand_as(shift)
    row, cell = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Candidates.of(level.rotation.order, row, cell, every, shift)


def candidates(
    model: ParticleModel,
    volume: AnyMap,
    images: Filtered,
    keep: Keep,
    coarse_order: int,
    block_bytes: int,
) -> Candidates | None:
    """What the grids coarser than the model's keep of each image; None where there are none."""
    steps = levels(model, volume, coarse_order)[:-1]
    if not steps:
        return None
    found = _coarse(model, keep, block_bytes, volume, steps[0], images)
    for level in steps[1:]:
        found = PrunedPass(model, volume, level, images, found, block_bytes).scan(keep)
    return found


Found = tuple[Tensor, Tensor, Tensor]
"""Best log joint over noise [n], rotation [n, 3, 3] and shift [n, 2] of n images."""


def searcher(model: ParticleModel, volume: AnyMap, modal: Modal) -> Callable[[Filtered], Found]:
    """:func:`best_poses` of chunk after chunk; what all images need is worked out once."""
    beam = partial(_best, model, volume, modal)
    if modal.bound is None:
        return beam
    ladder = Ladder.of(model, volume, modal.bound, modal.coarse_order)
    start = beam if modal.beam and ladder.coarser else None
    return partial(_bounded, ladder, modal.block_bytes, start)


def best_poses(model: ParticleModel, volume: AnyMap, modal: Modal, images: Filtered) -> Found:
    """Best log joint over noise [n], rotation [n, 3, 3] and shift [n, 2] on the model's grid.

    With a beam, coarse to fine; a better pose outside the beam is then missed. With a bound, what
    the beam found is the pose to beat of a branch and bound.
    """
    return searcher(model, volume, modal)(images)


def distinct_poses(
    model: ParticleModel,
    volume: AnyMap,
    modal: Modal,
    images: Filtered,
    count: int,
    apart_deg: float,
) -> tuple[Tensor, Tensor]:
    """The best ``count`` poses that are ``apart_deg`` apart, [n, count, 3, 3] and [n, count, 2].

    Best first, searched as in :func:`best_poses`; where an image has fewer, the last ones repeat
    its best.
    """
    value, turn, move = _peaks(model, volume, modal, images, _PEAKS)
    limit, image = 1 + 2 * cos(radians(apart_deg)), torch.arange(len(turn), device=turn.device)
    chosen = []
    for _ in range(count):  # the first of all where nothing is left: they are sorted
        best = value.argmax(1)
        chosen.append(best)
        trace = (turn * turn[image, best][:, None]).sum((-2, -1))
        value = value.masked_fill(trace >= limit, -torch.inf)
    pick = torch.stack(chosen, 1)
    return turn[image[:, None], pick], move[image[:, None], pick]


def _bounded(
    ladder: Ladder, block_bytes: int, start: Callable[[Filtered], Found] | None, images: Filtered
) -> Found:
    """The best poses by branch and bound."""
    search = BranchAndBound(ladder, images, block_bytes)
    best = search.search(None if start is None else Best(*start(images)))
    return best.value, best.rotation, best.shift


def _best(model: ParticleModel, volume: AnyMap, modal: Modal, images: Filtered) -> Found:
    """The best poses of a beam, or of the whole grid."""
    value, turn, move = _peaks(model, volume, modal, images, 1)
    return value[:, 0], turn[:, 0], move[:, 0]


def _peaks(
    model: ParticleModel, volume: AnyMap, modal: Modal, images: Filtered, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Up to ``count`` good poses of each image, the best first: values, rotations and shifts."""
    size, found = modal.block_bytes, None
    if modal.beam:
        keep = Keep(0.0, modal.beam, max(1, modal.beam // 2))
        found = candidates(model, volume, images, keep, modal.coarse_order, size)
    if found is not None:
        return PrunedPass(model, volume, Level.of(model), images, found, size).peaks(count)
    grid = DenseGrid.of(model, volume)
    parts = [posterior.peaks(count) for _, posterior in grid.posteriors(images, size)]
    value, turn, move = (torch.cat(part) for part in zip(*parts, strict=True))
    return value, turn, move
