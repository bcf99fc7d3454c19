"""The E-step: posteriors of all images by the route their treatment asks for, streamed."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from cryoprob.checks import InputError
from cryoprob.fourier.normal import Insertion
from cryoprob.geometry.symmetry import point_group
from cryoprob.inference.candidates import Candidates, Keep, fill_up, smallest_set
from cryoprob.inference.dense import DenseGrid, blocks
from cryoprob.inference.filtered import Filtered, filter_images
from cryoprob.inference.guide import Guide
from cryoprob.inference.levels import Level, levels
from cryoprob.inference.pruned import PrunedPass
from cryoprob.inference.statistics import PosteriorSummary, Statistics, reals
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.local import Local
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack

__all__ = ["e_step"]

_CHUNK_BYTES = 2**27
_CHUNK_IMAGES = 2048
_SUMMED = Keep(1 - 1e-4)
"""Posterior mass that goes into the sums of a pruned search; its evidence has all of it."""


def e_step(
    model: ParticleModel,
    guide: Guide,
    stack: ParticleStack,
    index: Tensor | None = None,
    *,
    symmetry: str = "C1",
) -> Statistics:
    """Posteriors of images ``index`` (default all) at the guide's volume, and the M-step's sums.

    With a ``symmetry`` every slice is inserted at all equivalent orientations, in equal shares.

    Memory: a chunk of filtered images (128 MiB) and one block of scores; with a whole grid
    searched at once, also its slices and their sums, [Q, 3 m].

    Raises
    ------
    InputError
        If poses are searched whose prior is continuous.
    """
    index = torch.arange(len(stack)) if index is None else index.cpu()
    with torch.no_grad():
        statistics = _nothing_yet(model, len(stack), symmetry)
        run = _route(model, guide)
        for images in _chunks(model, stack, index):
            statistics.add_power(images, model.noise.sigma2)
            run(images, statistics)
    return statistics


def _route(model: ParticleModel, guide: Guide) -> Callable[[Filtered, Statistics], None]:
    """What to do with a chunk of images; known poses alone need no grid."""
    rotation, shift, volume = guide.rotation, guide.shift, guide.volume.coefficients
    if isinstance(rotation, Known) and isinstance(shift, Known):
        return partial(_known, model, volume, rotation, shift)
    fine = Level.of(model)
    if isinstance(rotation, Local) and isinstance(shift, Local):
        return partial(_local, model, volume, fine, rotation, shift)
    if isinstance(rotation, Exact) and rotation.mass is None:
        return partial(_dense, model, volume, fine, rotation.block_bytes)
    if isinstance(rotation, Exact):
        return partial(_pruned, model, volume, rotation)
    raise InputError(
        "guide",
        expected="rotation and shift both Known, both Local or both Exact",
        got=f"rotation {type(rotation).__name__}, shift {type(shift).__name__}",
    )


def _chunks(model: ParticleModel, stack: ParticleStack, index: Tensor) -> Iterator[Filtered]:
    """Filtered images, optics group by optics group, within the memory of a chunk."""
    size = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // (12 * len(model.band))))
    group = stack.group[index]
    for one in group.unique():
        members = index[group == one]
        for part in blocks(len(members), size):
            yield filter_images(model, stack, members[part])


def _nothing_yet(model: ParticleModel, count: int, symmetry: str) -> Statistics:
    sigma2 = model.noise.sigma2
    return Statistics(
        Insertion(model.linear_volume.slicer, point_group(symmetry)),
        PosteriorSummary.empty(count, sigma2.dtype, sigma2.device),
        torch.zeros_like(sigma2, dtype=torch.float64),
        torch.zeros_like(sigma2[:, 0], dtype=torch.float64),
        sigma2.new_zeros(count, dtype=torch.float64),
        sigma2.new_zeros((), dtype=torch.float64),
    )


def _dense(
    model: ParticleModel,
    volume: Tensor,
    level: Level,
    block_bytes: int,
    images: Filtered,
    to: Statistics,
) -> None:
    """Search the whole grid in one pass (one optics group)."""
    grid = DenseGrid.at(model, volume, level)
    numerator = torch.zeros_like(grid.slices)
    weight = torch.zeros_like(grid.energy)
    for _, posterior in grid.posteriors(images, block_bytes):
        posterior.accumulate(reals(numerator), weight)
        to.shift_power += posterior.shift_power()
        to.summary.put(posterior.images.index, posterior.summary())
    group = int(images.group[0])
    sums = (numerator, weight, grid.slices, grid.rotations, model.band)
    to.add_slices(group, *sums, model.noise.sigma2[group])


def _pruned(
    model: ParticleModel, volume: Tensor, exact: Exact, images: Filtered, to: Statistics
) -> None:
    """Search coarse to fine, keeping the smallest sets of the treatment's mass at each level."""
    *steps, fine = levels(model, volume, exact.coarse_order)
    size = exact.block_bytes
    if not steps:
        _dense(model, volume, fine, size, images, to)
        return
    assert exact.mass is not None
    keep = Keep(exact.mass, exact.least, max(1, exact.least // 4))
    candidates = _coarse(model, keep, size, volume, steps[0], images)
    for level in steps[1:]:
        candidates = PrunedPass(model, volume, level, images, candidates, size).scan(keep)
    search = PrunedPass(model, volume, fine, images, candidates, size)
    search.collect(search.scan(Keep(1.0) if exact.mass == 1 else _SUMMED), to)


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


def _local(
    model: ParticleModel,
    volume: Tensor,
    fine: Level,
    rotation: Local,
    shift: Local,
    images: Filtered,
    to: Statistics,
) -> None:
    """Search the cells near given poses."""
    candidates = _neighborhood(fine, rotation, shift, images)
    search = PrunedPass(model, volume, fine, images, candidates, rotation.block_bytes)
    search.collect(search.scan(_SUMMED), to)


def _neighborhood(fine: Level, turns: Local, moves: Local, images: Filtered) -> Candidates:
    rotation, shift = fine.rotation.coarser(), fine.shift.coarser()
    turned = (rotation.turn.mT @ turns.values[images.index]).cpu()
    radius = max(turns.radius, rotation.grid.spacing_deg)
    near = [rotation.grid.cells_within(one, radius) for one in turned]
    row = torch.repeat_interleave(torch.tensor([len(cells) for cells in near]))
    away = torch.cdist(moves.values[images.index], shift.points())
    reach = max(moves.radius, shift.grid.step_A)
    inside = away <= torch.maximum(away.amin(1, keepdim=True), away.new_tensor(reach))
    every = torch.arange(inside.shape[1], device=inside.device).expand(inside.shape)
    row, cell = (pairs.to(inside.device) for pairs in (row, torch.cat(near)))
    return Candidates.of(rotation.order, row, cell, every, inside)


def _known(
    model: ParticleModel,
    volume: Tensor,
    rotations: Known,
    shifts: Known,
    images: Filtered,
    to: Statistics,
) -> None:
    """Score and insert the images at their given poses."""
    rotation = rotations.values[images.index].to(images.transfer)
    shift = shifts.values[images.index].to(images.transfer)
    numerator = images.image * shift_phase(model.band, shift, model.pixel_size).conj()
    slices = model.volume.slices(volume, rotation)
    cross = torch.linalg.vecdot(reals(numerator), reals(slices))
    energy = torch.linalg.vecdot(images.transfer, slices.abs().square())
    group, sigma2 = int(images.group[0]), model.noise.sigma2[images.group[0]]
    sums = (numerator.resolve_conj(), images.transfer, slices, rotation, model.band)
    to.add_slices(group, *sums, sigma2)
    to.shift_power += (shift**2).double().sum()
    ones, zeros = torch.ones_like(cross), torch.zeros_like(cross)
    evidence = images.noise_only + (cross - energy / 2).double()
    summary = PosteriorSummary(evidence, rotation, shift, ones, zeros, cross, energy)
    to.summary.put(images.index, summary)
