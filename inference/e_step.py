"""The E-step: posteriors of all images by the route their treatment asks for, streamed."""

from collections.abc import Callable, Iterator
from functools import partial
from math import pi

import torch
from torch import Tensor

from cryoprob.checks import InputError
from cryoprob.fourier.gaussian_map import AnyMap
from cryoprob.fourier.normal import Insertion
from cryoprob.geometry.symmetry import point_group
from cryoprob.inference.candidates import Candidates, Keep
from cryoprob.inference.dense import DenseGrid, blocks
from cryoprob.inference.few_poses import add_few
from cryoprob.inference.filtered import Filtered, filter_images
from cryoprob.inference.guide import Guide, Poses
from cryoprob.inference.levels import Level, levels
from cryoprob.inference.local_search import climb
from cryoprob.inference.pruned import PrunedPass
from cryoprob.inference.search import Found, candidates, searcher
from cryoprob.inference.statistics import PosteriorSummary, Statistics, reals
from cryoprob.inference.treatments.base import Drawn, Near
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.modal import Modal
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import ShiftGridPrior
from cryoprob.models.poses.uniform_rotation import RotationGridPrior
from cryoprob.particles import ParticleStack

__all__ = [
    "SUMMED",
    "chunks",
    "e_step",
    "finest",
    "near_cells",
    "neighborhood",
    "nothing_yet",
    "portions",
    "whole",
]

_CHUNK_BYTES = 2**27
_CHUNK_IMAGES = 2048
SUMMED = Keep(1 - 1e-4)
"""Posterior mass that goes into the sums of a pruned search; its evidence has all of it."""


def e_step(
    model: ParticleModel,
    guide: Guide,
    stack: ParticleStack,
    index: Tensor | None = None,
    *,
    symmetry: str = "C1",
    draws: int = 4,
) -> Statistics:
    """Posteriors of images ``index`` (default all) at the guide's volume, and the M-step's sums.

    With a ``symmetry`` every slice is inserted at all equivalent orientations, in equal shares.
    ``draws`` per image (and head) are taken of a q that has a density and is not on a grid.

    Memory: a chunk of filtered images (128 MiB) and one block of scores; with a whole grid
    searched at once, also its slices and their sums, [Q, 3 m]; with a branch and bound a GiB of
    open families at most, and tables [Q, S] of the finest grid but one.

    Raises
    ------
    InputError
        If poses are searched whose prior is continuous, or q is on a grid and the search is not;
        if contrast or defocus is a latent site.
    """
    model.require_known_imaging()
    guide.check(model)
    index = torch.arange(len(stack)) if index is None else index.cpu()
    with torch.no_grad():
        statistics = nothing_yet(model, len(stack), symmetry)
        run = _route(model, guide, stack, draws)
        for images in chunks(model, stack, index):
            statistics.add_power(images, model.noise.sigma2)
            run(images, statistics)
    return statistics


def _route(
    model: ParticleModel, guide: Guide, stack: ParticleStack, draws: int
) -> Callable[[Filtered, Statistics], None]:
    """What to do with a chunk of images; draws of poses need no grid."""
    rotation, shift, volume = guide.rotation, guide.shift, guide.volume.maps
    if isinstance(rotation, Modal) and isinstance(shift, Modal):
        search = searcher(model, volume, rotation)
        return partial(_modal, model, volume, rotation, shift, search)
    if isinstance(rotation, Drawn) and isinstance(shift, Drawn):
        return partial(_drawn, model, volume, guide, stack, draws)
    if isinstance(rotation, Exact) and whole(model, guide):
        return partial(_dense, model, volume, Level.of(model), rotation.block_bytes)
    if isinstance(rotation, Exact | Near):
        return partial(_searched, model, guide, stack)
    raise InputError(
        "guide",
        expected="rotation and shift both Exact, Modal, Local or Proposed, or both drawn",
        got=f"rotation {type(rotation).__name__}, shift {type(shift).__name__}",
    )


def chunks(model: ParticleModel, stack: ParticleStack, index: Tensor) -> Iterator[Filtered]:
    """Filtered images, optics group by optics group, within the memory of a chunk."""
    for part in portions(model, stack, index):
        yield filter_images(model, stack, part)


def portions(
    model: ParticleModel, stack: ParticleStack, index: Tensor, copies: int = 1
) -> Iterator[Tensor]:
    """Which images make a chunk, [n], where each is held in so many copies."""
    size = max(1, min(_CHUNK_IMAGES, _CHUNK_BYTES // (12 * copies * len(model.band))))
    group = stack.group[index]
    for one in group.unique():
        members = index[group == one]
        for part in blocks(len(members), size):
            yield members[part]


def nothing_yet(model: ParticleModel, count: int, symmetry: str) -> Statistics:
    """Empty sums for ``count`` images."""
    sigma2 = model.noise.sigma2
    return Statistics(
        Insertion(model.linear_volume.slicer, point_group(symmetry)),
        PosteriorSummary.empty(count, sigma2.dtype, sigma2.device),
        torch.zeros_like(sigma2, dtype=torch.float64),
        torch.zeros_like(sigma2[:, 0], dtype=torch.float64),
        sigma2.new_zeros(count, dtype=torch.float64),
        sigma2.new_zeros((), dtype=torch.float64),
        torch.zeros_like(sigma2, dtype=torch.float64),
    )


def _dense(
    model: ParticleModel,
    volume: AnyMap,
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
    sums = (numerator, weight, grid.slices, grid.energy, grid.rotations)
    to.add_slices(group, *sums, model.band, model.noise.sigma2[group])


def whole(model: ParticleModel, guide: Guide) -> bool:
    """A grid is searched whole: as asked, or as not finer than the one that a search starts on."""
    part = guide.rotation
    assert isinstance(part, Exact)
    return part.mass is None or len(levels(model, guide.volume.maps, part.coarse_order)) < 2


def _searched(
    model: ParticleModel, guide: Guide, stack: ParticleStack, images: Filtered, to: Statistics
) -> None:
    """Search coarse to fine, or the cells near given or proposed poses."""
    search, keep = finest(model, guide, stack, images)
    search.collect(search.scan(keep), to)


def finest(
    model: ParticleModel, guide: Guide, stack: ParticleStack, images: Filtered
) -> tuple[PrunedPass, Keep]:
    """The finest level of a search (not of the :func:`whole` grid), and what of it is summed.

    Of what the coarser grids keep, the smallest sets of the treatment's mass at each; or of the
    cells near given or proposed poses.
    """
    part, volume, keep = guide.rotation, guide.volume.maps, SUMMED
    assert isinstance(part, Exact | Near)
    size = part.block_bytes
    if isinstance(part, Near):
        found: Candidates | None = near_cells(model, volume, guide, stack, images)
    else:
        found = candidates(model, volume, images, part.keep, part.coarse_order, size)
        keep = Keep(1.0) if part.mass == 1 else SUMMED
    assert found is not None
    return PrunedPass(model, volume, Level.of(model), images, found, size), keep


def near_cells(
    model: ParticleModel, volume: AnyMap, guide: Guide, stack: ParticleStack, images: Filtered
) -> Candidates:
    """What a local search sums over: all cells near, or those that a descent among them keeps."""
    part = guide.rotation
    assert isinstance(part, Near)
    steps = [] if part.keep is None else levels(model, volume, part.coarse_order)[:-1]
    if len(steps) < 2:  # no level in between
        return neighborhood(model, guide, stack, images)
    assert part.keep is not None
    found = neighborhood(model, guide, stack, images, steps[0])
    for level in steps:
        found = PrunedPass(model, volume, level, images, found, part.block_bytes).scan(part.keep)
    return found


def neighborhood(
    model: ParticleModel,
    guide: Guide,
    stack: ParticleStack,
    images: Filtered,
    level: Level | None = None,
) -> Candidates:
    """Cells near the given or proposed poses of a chunk of images.

    Of the grids of a level; by default one order above the model's own, or its own where there is
    none above.
    """
    rotation, shift = (level or Level.of(model)).rotation, (level or Level.of(model)).shift
    if level is None and rotation.order > 0 and shift.grid.level > 0:
        rotation, shift = rotation.coarser(), shift.coarser()
    like = images.transfer
    look = partial(stack.batch, images.index, guide.band(model), like.dtype, like.device)
    guide.forget()
    turns, moves = guide.rotation, guide.shift
    assert isinstance(turns, Near) and isinstance(moves, Near)
    row, cell = _turns_near(rotation, turns.near(images.index, look), turns.radius)
    inside = _moves_near(shift, moves.near(images.index, look), moves.radius)
    every = torch.arange(inside.shape[1], device=inside.device).expand(inside.shape)
    pairs = row.to(inside.device), cell.to(inside.device)
    return Candidates.of(rotation.order, *pairs, every, inside)


def _turns_near(
    rotation: RotationGridPrior, values: Tensor, radius_deg: float
) -> tuple[Tensor, Tensor]:
    """Pairs (image, cell) of cells near any of the values [M, n, 3, 3], each pair once."""
    turned = (rotation.turn.mT @ values).cpu()
    radius, size = max(radius_deg, rotation.grid.spacing_deg), len(rotation.grid)
    found = [rotation.grid.cells_within(one, radius) for one in turned.flatten(0, 1)]
    image = torch.arange(values.shape[1]).repeat(values.shape[0])
    row = torch.repeat_interleave(image, torch.tensor([len(cells) for cells in found]))
    pair = (row * size + torch.cat(found)).unique()
    return pair // size, pair % size


def _moves_near(shift: ShiftGridPrior, values: Tensor, radius_A: float) -> Tensor:
    """Mask [n, T] of the points near any of the values [M, n, 2]; of the nearest at least."""
    away = torch.cdist(values, shift.points()).amin(0)
    reach = away.new_tensor(max(radius_A, shift.grid.step_A))
    return away <= torch.maximum(away.amin(1, keepdim=True), reach)


def _modal(
    model: ParticleModel,
    volume: AnyMap,
    rotation: Modal,
    shift: Modal,
    search: Callable[[Filtered], Found],
    images: Filtered,
    to: Statistics,
) -> None:
    """Search the best pose of every image, climb from there if asked, and insert it there."""
    value, turn, move = search(images)
    if rotation.polish:
        optimum = climb(model, volume, images, turn, move, rotation.polish)
        turn, move = optimum.rotation, optimum.shift
        value = optimum.log_joint - torch.log(2 * pi * model.shift.sigma**2)
    total = len(to.summary.bound)
    rotation.note(images.index, turn, total)
    shift.note(images.index, move, total)
    nothing = torch.zeros_like(value)[None]
    poses = Poses(turn[None], move[None], nothing, nothing)
    add_few(model, volume, images, poses, lambda _: (nothing, value.double()), to)


def _drawn(
    model: ParticleModel,
    volume: AnyMap,
    guide: Guide,
    stack: ParticleStack,
    draws: int,
    images: Filtered,
    to: Statistics,
) -> None:
    """Insert the images at draws from q (the given poses, where these are known)."""
    size = max(1, _CHUNK_BYTES // (40 * draws * guide.drawn[0].heads * len(model.band)))
    for part in blocks(len(images), size):
        some = images.take(part)
        like = some.transfer
        batch = stack.batch(some.index, guide.band(model), like.dtype, like.device)
        poses = guide.draw(batch, draws)
        log_prior = guide.log_prior(model, poses)
        shares = partial(guide.shares, poses, log_prior)
        add_few(model, volume, some, poses, shares, to)
