"""The E-step: posteriors of all images by the route their treatment asks for, streamed."""

from collections.abc import Iterator

import torch
from cryoprob.inference.candidates import Candidates, smallest_set
from cryoprob.inference.dense import DenseGrid, blocks
from cryoprob.inference.filtered import Filtered, filter_images
from cryoprob.inference.guide import Guide
from cryoprob.inference.pruned import PrunedPass
from cryoprob.inference.regions import Level
from cryoprob.inference.statistics import PosteriorSummary, Statistics, reals
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.local import Local
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.normal import Insertion
from cryoprob.geometry.symmetry import point_group
from cryoprob.particles import ParticleStack

__all__ = ["e_step", "levels"]

_CHUNK_BYTES = 2**28
_CHUNK_IMAGES = 2048


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

    Memory: a chunk of filtered images (256 MiB) and one block of scores; with a whole grid
    searched at once, also its slices and their sums, [Q, 3 m].
    """
    index = torch.arange(len(stack)) if index is None else index
    with torch.no_grad():
        statistics = _nothing_yet(model, len(stack), symmetry)
        volume = guide.volume.coefficients
        run = _route(guide)
        for images in _chunks(model, stack, index):
            statistics.add_power(images.group, images.power)
            run(model, guide, volume, images, statistics)
    return statistics


def levels(model: ParticleModel, coarse_order: int) -> list[Level]:
    """Grids from ``coarse_order`` to the model's own, each with the band it can resolve.

    A step of the rotation grid moves the rim of a particle of radius 0.4 box by ``step * radius``;
    shells finer than 1.2 over that are left to the finer levels (RELION's rule).
    """
    rotation, shift = model.rotation, model.shift
    found = [Level(rotation, shift, model.band.radius)]
    while rotation.order > coarse_order:
        got = f"{shift.grid.level} refinements of the shift grid"
        remedy = "Discretize the shift with refine= the number of finer rotation orders."
        expected = f"{model.rotation.order - coarse_order} or more"
        require(shift.grid.level > 0, "shift prior", expected=expected, got=got, remedy=remedy)
        rotation, shift = rotation.coarser(), shift.coarser()
        step = torch.deg2rad(torch.tensor(rotation.grid.spacing_deg))
        radius = int(torch.ceil(1.2 / (step * 0.4)))
        found.insert(0, Level(rotation, shift, min(radius, model.band.radius)))
    return found


def _route(guide: Guide) -> object:
    if isinstance(guide.rotation, Known):
        return _known
    if isinstance(guide.rotation, Local):
        return _local
    return _dense if guide.rotation.mass is None else _pruned


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
        Insertion(model.volume.slicer, point_group(symmetry)),
        PosteriorSummary.empty(count, sigma2.dtype, sigma2.device),
        torch.zeros_like(sigma2, dtype=torch.float64),
        torch.zeros_like(sigma2[:, 0], dtype=torch.float64),
    )


def _dense(
    model: ParticleModel, guide: Guide, volume: Tensor, images: Filtered, to: Statistics
) -> None:
    """Search the whole grid in one pass (one optics group)."""
    grid = DenseGrid.of(model, volume)
    numerator = torch.zeros_like(grid.slices)
    weight = torch.zeros_like(grid.energy)
    poses = len(grid.shifts) * len(grid.rotations)
    size = max(1, guide.rotation.block_bytes // (4 * poses))
    for part in blocks(len(images), size):
        posterior = grid.posterior(images.take(part))
        posterior.accumulate(reals(numerator), weight)
        to.shift_power += posterior.shift_power()
        to.summary.put(posterior.images.index, posterior.summary())
    group = int(images.group[0])
    sums = (numerator, weight, grid.slices, grid.rotations, model.band)
    to.add_slices(group, *sums, model.noise.sigma2[group])


def _pruned(
    model: ParticleModel, guide: Guide, volume: Tensor, images: Filtered, to: Statistics
) -> None:
    """Search coarse to fine, keeping the smallest sets of the treatment's mass at each level."""
    exact: Exact = guide.rotation
    steps = levels(model, exact.coarse_order)
    if len(steps) == 1:
        _dense(model, guide, volume, images, to)
        return
    candidates = _coarse(model, exact, volume, steps[0], images)
    for level in steps[1:]:
        search = PrunedPass(model, volume, level, images, candidates, exact.block_bytes)
        candidates = search.scan(None if level is steps[-1] else exact.mass)
    search.collect(to)


def _coarse(
    model: ParticleModel, exact: Exact, volume: Tensor, level: Level, images: Filtered
) -> Candidates:
    """Candidates of the coarsest level, searched completely."""
    grid = DenseGrid.at(model, volume, level)
    share = 1 - (1 - exact.mass) / 2
    size = max(1, exact.block_bytes // (4 * len(grid.shifts) * len(grid.rotations)))
    cells, found, by_shift = level.rotation.cells(), [], []
    for part in blocks(len(images), size):
        posterior = grid.posterior(images.take(part))
        row, place = torch.nonzero(smallest_set(posterior.rotation_weights, share), as_tuple=True)
        found.append((row + part.start, cells[place]))
        by_shift.append(posterior.shift_weights)
    shift_mass = torch.cat(by_shift)
    every = torch.arange(shift_mass.shape[1]).expand_as(shift_mass)
    row, cell = (torch.cat(parts) for parts in zip(*found, strict=True))
    return Candidates.of(row, cell, shift_mass, every, share)


def _local(
    model: ParticleModel, guide: Guide, volume: Tensor, images: Filtered, to: Statistics
) -> None:
    """Search the cells near given poses."""
    fine = Level(model.rotation, model.shift, model.band.radius)
    candidates = _neighborhood(model, guide, images)
    search = PrunedPass(model, volume, fine, images, candidates, guide.rotation.block_bytes)
    search.scan(None)
    search.collect(to)


def _neighborhood(model: ParticleModel, guide: Guide, images: Filtered) -> Candidates:
    rotation, shift = model.rotation.coarser(), model.shift.coarser()
    turned = rotation.turn.mT @ guide.rotation.values[images.index]
    radius = max(guide.rotation.radius, rotation.grid.spacing_deg)
    near = [rotation.grid.cells_within(one, radius) for one in turned]
    row = torch.repeat_interleave(torch.tensor([len(cells) for cells in near]))
    away = torch.cdist(guide.shift.values[images.index], shift.points())
    reach = max(guide.shift.radius, shift.grid.step_A)
    inside = (away <= torch.maximum(away.amin(1, keepdim=True), away.new_tensor(reach))).to(away)
    every = torch.arange(inside.shape[1]).expand(inside.shape)
    return Candidates.of(row, torch.cat(near), inside, every, 1.0)


def _known(
    model: ParticleModel, guide: Guide, volume: Tensor, images: Filtered, to: Statistics
) -> None:
    """Score and insert the images at their given poses."""
    rotation = guide.rotation.values[images.index].to(images.transfer)
    shift = guide.shift.values[images.index].to(images.transfer)
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
