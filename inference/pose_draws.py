"""Draws of poses from a guide's q at a map: from the grid's exact posterior, or from its laws."""

import torch
from torch import Tensor

from cryoprob.inference.candidates import Candidates, Keep
from cryoprob.inference.dense import DenseGrid
from cryoprob.inference.e_step import chunks, near_cells
from cryoprob.inference.filtered import Filtered
from cryoprob.inference.guide import Guide
from cryoprob.inference.learn import seeded
from cryoprob.inference.levels import Level
from cryoprob.inference.pruned import PrunedPass
from cryoprob.inference.search import candidates
from cryoprob.inference.statistics import reals
from cryoprob.inference.treatments.base import Near
from cryoprob.inference.treatments.exact import Exact
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack
from cryoprob.types import Rotations, Shifts

__all__ = ["draw_poses"]

_KEPT = Keep(1 - 1e-6)
_Pair = tuple[Tensor, Tensor]


def draw_poses(
    model: ParticleModel,
    guide: Guide,
    volume: Tensor,
    stack: ParticleStack,
    index: Tensor,
    count: int,
    seed: int,
) -> tuple[Rotations, Shifts]:
    """Equally likely poses of images ``index`` [n], each drawn from the guide's q at ``volume``.

    Exact and local searches draw from the posterior on the model's grid (all but a millionth of
    its mass); laws and tables from themselves; a mode or a given pose is its own only draw.

    Parameters
    ----------
    count
        Draws of each image, K.
    seed
        Torch's own random state is left as it was.

    Returns
    -------
    [K, n, 3, 3] and [K, n, 2] (Angstrom).
    """
    with torch.no_grad(), seeded(seed):
        if not isinstance(guide.rotation, Exact | Near):
            return _from_guide(model, guide, volume, stack, index, count)
        place = {int(image): row for row, image in enumerate(index)}
        like = model.linear_volume.tau2
        rotation = like.new_empty(count, len(index), 3, 3)
        shift = like.new_empty(count, len(index), 2)
        for images in chunks(model, stack, index):
            rows = [place[int(image)] for image in images.index]
            drawn = _from_grid(model, guide, volume, stack, images, count)
            rotation[:, rows], shift[:, rows] = drawn
        return rotation, shift


def _from_guide(
    model: ParticleModel,
    guide: Guide,
    volume: Tensor,
    stack: ParticleStack,
    index: Tensor,
    count: int,
) -> _Pair:
    """Weighted draws of the guide, drawn from again in their shares."""
    like = model.noise.sigma2
    batch = stack.batch(index, guide.band(model), like.dtype, like.device)
    poses = guide.draw(batch, count)
    weight = poses.log_weight
    if guide.reweights:
        likelihood = model.likelihood(volume, poses.rotation, poses.shift, batch)
        log_likelihood = likelihood.log_prob(batch.image)
        weight, _ = guide.shares(poses, guide.log_prior(model, poses), log_likelihood)
    chosen = torch.multinomial(weight.exp().T, count, replacement=True).T
    images = torch.arange(len(index), device=chosen.device)
    return poses.rotation[chosen, images], poses.shift[chosen, images]


def _from_grid(
    model: ParticleModel,
    guide: Guide,
    volume: Tensor,
    stack: ParticleStack,
    images: Filtered,
    count: int,
) -> _Pair:
    rotation, fine = guide.rotation, Level.of(model)
    if isinstance(rotation, Near):
        near = near_cells(model, volume, guide, stack, images)
        return _from_cells(model, volume, fine, images, near, rotation.block_bytes, count)
    assert isinstance(rotation, Exact)
    size, found = rotation.block_bytes, None
    if rotation.mass is not None:
        found = candidates(model, volume, images, rotation.keep, rotation.coarse_order, size)
    if found is None:
        return _from_all(DenseGrid.of(model, volume), images, size, count)
    return _from_cells(model, volume, fine, images, found, size, count)


def _from_all(grid: DenseGrid, images: Filtered, block_bytes: int, count: int) -> _Pair:
    """Draws over every cell of the grid."""
    cells = [
        _drawn(posterior.logits.flatten(1), count)
        for _, posterior in grid.posteriors(images, block_bytes)
    ]
    cell, turns = torch.cat(cells).T, len(grid.rotations)
    return grid.rotations[cell % turns], grid.shifts[cell // turns]


def _from_cells(
    model: ParticleModel,
    volume: Tensor,
    level: Level,
    images: Filtered,
    held: Candidates,
    block_bytes: int,
    count: int,
) -> _Pair:
    """Draws over the cells that hold nearly all of the candidates' posterior."""
    search = PrunedPass(model, volume, level, images, held, block_bytes)
    found = search.scan(_KEPT)
    parts = [
        _one_image(model, volume, level, images.take(slice(row, row + 1)), found, row, count)
        for row in range(len(images))
    ]
    turn, move = (torch.stack(part, 1) for part in zip(*parts, strict=True))
    return turn, move


def _one_image(
    model: ParticleModel,
    volume: Tensor,
    level: Level,
    image: Filtered,
    found: Candidates,
    row: int,
    count: int,
) -> _Pair:
    """Draws of one image over its own rotation cells and shifts."""
    turns = level.rotation.matrices(found.cell[found.row == row])
    place = found.shift[row][found.shift[row] >= 0]
    moves = level.shift.points()[place]
    slices = model.volume.slices(volume, turns)
    phase = shift_phase(model.band, moves, model.pixel_size)
    cross = reals(image.image * phase.conj()) @ reals(slices).T
    energy = image.transfer @ slices.abs().square().T
    logits = cross - energy / 2 + level.shift.log_mass()[place][:, None]
    cell = _drawn(logits.flatten()[None], count)[0]
    return turns[cell % len(turns)], moves[cell // len(turns)]


def _drawn(logits: Tensor, count: int) -> Tensor:
    """Cells [n, count] of logits [n, K]."""
    return torch.multinomial(logits.double().softmax(1), count, replacement=True)
