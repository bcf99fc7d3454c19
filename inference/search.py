"""Searches of the pose grid: candidates of a coarse grid, and the best pose of the fine one."""

import torch
from torch import Tensor

from cryoprob.inference.candidates import Candidates, Keep, fill_up, smallest_set
from cryoprob.inference.dense import DenseGrid
from cryoprob.inference.filtered import Filtered
from cryoprob.inference.levels import Level, levels
from cryoprob.inference.pruned import PrunedPass
from cryoprob.inference.treatments.modal import Modal
from cryoprob.models.particle_model import ParticleModel

__all__ = ["best_poses", "candidates"]


def _coarse(
    model: ParticleModel,
    keep: Keep,
    block_bytes: int,
    volume: Tensor,
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
    volume: Tensor,
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


def best_poses(
    model: ParticleModel, volume: Tensor, modal: Modal, images: Filtered
) -> tuple[Tensor, Tensor, Tensor]:
    """Best log joint over noise [n], rotation [n, 3, 3] and shift [n, 2] on the model's grid.

    With a beam, coarse to fine; a better pose outside the beam is then missed.
    """
    size, found = modal.block_bytes, None
    if modal.beam:
        keep = Keep(0.0, modal.beam, max(1, modal.beam // 2))
        found = candidates(model, volume, images, keep, modal.coarse_order, size)
    if found is not None:
        return PrunedPass(model, volume, Level.of(model), images, found, size).modes()
    grid = DenseGrid.of(model, volume)
    parts = [posterior.mode() for _, posterior in grid.posteriors(images, size)]
    value, turn, move = (torch.cat(part) for part in zip(*parts, strict=True))
    return value, turn, move
