"""Bounds of branch and bound: what they promise, pose by pose, against brute force."""

from dataclasses import replace

import problems
import pytest
import torch
from brute_force import BruteForce
from problems import make_problem
from scipy.stats import binom

from cryoprob.inference.bounds import BOUNDS, Block, floor, margin
from cryoprob.inference.branch_and_bound import BranchAndBound, Ladder
from cryoprob.inference.dense import DenseGrid
from cryoprob.inference.filtered import filter_images
from cryoprob.inference.left_out import (
    _distances,
    left_above,
    left_out,
    peaks,
    shells_of,
    whitened,
)
from cryoprob.inference.levels import Level, levels
from cryoprob.inference.regions import Source
from cryoprob.inference.statistics import reals
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.particles import ParticleStack

F64 = torch.float64
FOUR_SIGMA = 3.17e-5
"""Chance that a standard normal number exceeds 4."""


def everything(problem, level, left=None):
    """Every image against every cell of a level in its band, shifts as rows of images [n T]."""
    model, count = problem.model, len(problem.stack)
    whole = Source.of(problem.volume, model.linear_volume.slicer)
    images = filter_images(model, problem.stack, torch.arange(count))
    band = model.linear_volume.slicer_at(level.radius).band
    inside, points = len(band), level.shift.points()
    slices, energy = whole.look(level.rotation.matrices())
    phase = shift_phase(band, points, model.pixel_size).conj()
    filtered = (images.image[:, None, :inside] * phase).flatten(0, 1)
    image = torch.arange(count).repeat_interleave(len(points))
    seen = images.transfer > 0
    power = torch.where(seen, images.image.abs() ** 2 / images.transfer, 0)
    power = torch.stack([power[:, s].sum(1) for s in shells_of(model.band)], 1)
    narrow = slices[:, :inside], energy[:, :inside], images.transfer[:, :inside]
    return Block(filtered, image, *narrow, power, shells_of(band), left)


def exact(problem):
    """Log likelihood over noise of every pose, [n, T, Q], by another route."""
    model = problem.model
    images = filter_images(model, problem.stack, torch.arange(len(problem.stack)))
    grid = DenseGrid.of(model, problem.volume)
    prior = grid.log_shift[:, None] + grid.log_rotation
    return grid.posterior(images).logits - prior


def by_pose(problem, upper):
    return upper.unflatten(0, (len(problem.stack), -1))


def left(problem, grids):
    """What centers of the first grid leave out, [n, C, S]."""
    model = problem.model
    whole = Source.of(problem.volume, model.linear_volume.slicer)
    images = filter_images(model, problem.stack, torch.arange(len(problem.stack)))
    peak = peaks(model.band, images.transfer)
    if len(grids) > 1:
        return whitened(peak, left_out(model, whole, grids)[0])
    slices = whole.look(grids[0].rotation.matrices())[0]
    return whitened(peak, left_above(model.band, slices, grids[0].radius))


def best_inside(problem, above, below, values):
    """The largest of values [n, T, Q] of a grid inside every pose of a coarser one."""
    order, cells = below.rotation.order, torch.arange(len(below.rotation.grid))
    shifts = torch.arange(len(below.shift.points()))
    for _ in range(order - above.rotation.order):
        cells = type(below.rotation.grid)(order).parent(cells)
        shifts, order = shifts // 4, order - 1
    count, turns = len(above.shift.points()), len(above.rotation.grid)
    place = (shifts[:, None] * turns + cells).flatten().expand(len(values), -1)
    found = torch.full((len(values), count * turns), -torch.inf, dtype=F64)
    found = found.scatter_reduce(1, place, values.flatten(1), "amax")
    return found.view(-1, count, turns)


def test_energy_of_all_predictions_within_a_distance(generator):
    # the least is found along the residual, and nothing within the distance has less
    image, center = torch.randn(2, 500, 6, generator=generator, dtype=F64)
    radius = 4 * torch.rand(500, generator=generator, dtype=F64)
    residual = image - center
    energy = residual.square().sum(1)
    least = floor(energy, radius)
    away = torch.randn(2000, 500, 6, generator=generator, dtype=F64)
    away = away / away.norm(dim=2, keepdim=True) * radius[:, None]
    found = (residual - away * torch.rand(2000, 1, 1, generator=generator, dtype=F64)).square()
    assert (found.sum(2) >= least - 1e-12).all()
    step = residual * (radius / energy.sqrt()).clamp(max=1)[:, None]
    torch.testing.assert_close((residual - step).square().sum(1), least)


@pytest.mark.parametrize("signal", [0.3, 3.0, 30.0])
def test_a_part_of_the_band_never_has_more_energy(signal):
    # frequency marching at a pose: no violation in any band, at any pose, for any image
    problem = make_problem(box=12, n=5, signal=signal)
    joint = BruteForce(problem)
    brute = (joint.joint - joint.log_prior).transpose(1, 2)
    images = filter_images(problem.model, problem.stack, torch.arange(5))
    brute = brute - images.noise_only[:, None, None]
    fine, least, violated = Level.of(problem.model), torch.inf, 0
    for radius in range(problem.model.band.radius, -1, -1):
        block = everything(problem, replace(fine, radius=radius))
        upper = by_pose(problem, BOUNDS["points"].upper(block))
        least = min(least, float((upper - brute).min()))
        scores = by_pose(problem, block.gain())
        violated += int((scores < brute - 1e-9).sum())
    # some 1000 nats in float64
    assert least > -1e-9
    # without the power above the band it would be none: the criterion of cryoDRGN2
    assert violated > 0


def stack_at(problem, cells, shifts, seed=11):
    """Images of a model at poses of its own grid."""
    generator = torch.Generator().manual_seed(seed)
    rotation = problem.model.rotation.matrices(cells)
    shift, old = problem.model.shift.points()[shifts], problem.stack
    blank = torch.randn(len(cells), old.box, old.box, generator=generator, dtype=F64)
    empty = ParticleStack.from_arrays(blank, old.pixel_size, old.optics, rotation, shift)
    images = problems._images(problem.model, empty, problem.volume, generator)
    return ParticleStack.from_arrays(images, old.pixel_size, old.optics, rotation, shift)


@pytest.mark.parametrize("radius", [1, 2])
def test_punjanis_bound_at_every_pose(radius, false_alarm):
    # scores in a band, and B^2 / 2 + 4 B of the strongest slice above it. A pose breaks that at
    # odds of 3e-5 at most, an image somewhere at 360 times that, and images are independent
    problem = make_problem(n=1000, groups=1, contrast=False, signal=6.0)
    generator = torch.Generator().manual_seed(5)
    cells, shifts = (torch.randint(size, (1000,), generator=generator) for size in (72, 5))
    problem.stack = stack_at(problem, cells, shifts)
    narrow = replace(Level.of(problem.model), radius=radius)
    strongest = left(problem, [narrow]).square().sum(2).amax(1).sqrt()[:, None, None]
    score, truth = by_pose(problem, everything(problem, narrow).gain()), exact(problem)
    allowed = binom.isf(false_alarm, 1000, 360 * FOUR_SIGMA)
    broken = (score + margin(strongest) < truth).flatten(1).any(1)
    assert int(broken.sum()) <= allowed
    # without the noise's share it breaks for more
    broken = (score + strongest.square() / 2 < truth).flatten(1).any(1)
    assert int(broken.sum()) > allowed


def test_the_pose_of_the_own_signal_keeps_its_bound(false_alarm):
    # there a score falls short by |left|^2 / 2 + z |left| with z standard normal
    problem = make_problem(n=2000, groups=1, contrast=False, signal=4.0, order=1, refine=1)
    generator = torch.Generator().manual_seed(3)
    cells = torch.randint(576, (2000,), generator=generator)
    shifts = torch.randint(20, (2000,), generator=generator)
    problem.stack = stack_at(problem, cells, shifts)
    grids = levels(problem.model, problem.volume, 0)
    gap = left(problem, grids)
    upper = BOUNDS["probable"].upper(everything(problem, grids[0], gap))
    own = by_pose(problem, upper)[
        torch.arange(2000), shifts // 4, grids[1].rotation.grid.parent(cells)
    ]
    truth = exact(problem)[torch.arange(2000), shifts, cells]
    assert int((own < truth).sum()) <= binom.isf(false_alarm, 2000, FOUR_SIGMA)
    # a quarter of a standard deviation is too little for some of so many
    size = gap.square().sum(2).sqrt()[torch.arange(2000), grids[1].rotation.grid.parent(cells)]
    assert int((own - 3.75 * size < truth).sum()) > 0


@pytest.mark.parametrize("signal", [0.3, 3.0, 30.0])
@pytest.mark.parametrize("order", [1, 2])
def test_no_pose_in_a_cell_beats_its_bound(signal, order):
    problem = make_problem(n=4, order=order, refine=order, signal=signal)
    grids = levels(problem.model, problem.volume, 0)
    inside = best_inside(problem, grids[0], grids[-1], exact(problem))
    gap = left(problem, grids)
    for radius in range(1, 4):
        grids[0] = replace(grids[0], radius=radius)
        gap = left(problem, grids)
        upper = by_pose(problem, BOUNDS["cells"].upper(everything(problem, grids[0], gap)))
        assert float((upper - inside).min()) > -1e-9
    # the centers' own scores do not bound what is inside
    sure = by_pose(problem, BOUNDS["cells"].upper(everything(problem, grids[0], 0 * gap)))
    assert float((sure - inside).min()) < -1e-3


def test_what_centers_leave_out_by_brute_force():
    problem = make_problem(n=3, order=2, refine=2)
    grids = levels(problem.model, problem.volume, 0)
    model, images = problem.model, filter_images(problem.model, problem.stack, torch.arange(3))
    for start, radius, below in ((1, 2, 3), (1, 3, 3), (0, 1, 3), (0, 3, 3), (0, 3, 1)):
        chain = [replace(grids[start], radius=radius), *grids[start + 1 :]]
        chain[1] = replace(chain[1], radius=below)  # need not grow from grid to grid
        found = left(problem, chain)
        fine, step = chain[-1], chain[0].shift.grid.step_A
        moves = fine.shift.points()[: 4 ** (len(chain) - 1)] - chain[0].shift.points()[0]
        assert float(moves.mean(0).abs().max()) < 1e-12 and float(moves.abs().max()) < step / 2
        phase = shift_phase(model.band, moves, model.pixel_size)
        cells = torch.arange(len(fine.rotation.grid))
        for level in reversed(chain[1:]):
            cells = level.rotation.grid.parent(cells)
        center = model.volume.slices(problem.volume, chain[0].rotation.matrices())
        center = center * (model.band.shell <= radius)
        around = model.volume.slices(problem.volume, fine.rotation.matrices())
        wanted, exact = torch.zeros_like(found), torch.zeros_like(found)
        for move in phase:
            away = (around * move - center[cells]).abs() ** 2
            for number, shell in enumerate(shells_of(model.band)):
                weight, index = images.transfer[:, shell], cells.expand(3, -1)
                norms = (weight.amax(1)[:, None] * away[:, shell].sum(1)).sqrt()
                wanted[..., number].scatter_reduce_(1, index, norms, "amax")
                norms = (weight @ away[:, shell].T).sqrt()
                exact[..., number].scatter_reduce_(1, index, norms, "amax")
        if len(chain) == 2:
            # rounding of squares, 16 eps, under the root
            torch.testing.assert_close(found, wanted, rtol=1e-7, atol=1e-6)
        assert (wanted >= exact - 1e-9).all()
        # over several grids distances are added up: never less, and not much more
        assert (found >= wanted - 1e-9).all()
        assert float(found.sum()) < 1.6 * float(wanted.sum())


def test_distances_are_not_too_small_for_rounding(generator):
    """In single precision, of slices that are almost equal."""
    center = torch.randn(40, 64, generator=generator, dtype=torch.complex64)
    away = 1e-4 * torch.randn(40, 8, 64, generator=generator, dtype=torch.complex64)
    around, shells = (center[:, None] + away).flatten(0, 1), [slice(0, 10), slice(10, 64)]
    still = reals(torch.ones(1, 64, dtype=torch.complex64))
    norms = [(center[:, None] + away).flatten(0, 1).abs()[:, s].norm(dim=1) for s in shells]
    found = _distances(around, center, torch.stack(norms, 1), still, shells)
    exact = around.to(torch.complex128) - center.to(torch.complex128).repeat_interleave(8, 0)
    wanted = torch.stack([exact[:, s].abs().norm(dim=1) for s in shells], 1)
    assert bool((found >= wanted).all())
    # 16 units of rounding of both squares, under the root
    assert float((found - wanted).max()) < (32 * 1.2e-7) ** 0.5 * float(torch.stack(norms).max())


@pytest.mark.parametrize("signal", [0.01, 3.0])
def test_a_search_counts_the_best_prior_inside(signal):
    # shifts so far apart that the prior is not the same all over a cell
    problem = make_problem(n=4, order=2, refine=2, step=12.0, groups=1, signal=signal)
    model, rows = problem.model, torch.arange(4)
    images = filter_images(model, problem.stack, rows)
    joint = DenseGrid.of(model, problem.volume).posterior(images).logits
    search = BranchAndBound(Ladder.of(model, problem.volume, BOUNDS["cells"], 0), images, 2**23)
    for step in search.steps:
        inside = best_inside(problem, step.level, Level.of(model), joint)
        for task in step.everything(rows):
            for row, shift, upper in step.upper(task, images, search.power, search.peak, 2**23):
                assert (upper >= inside[row, shift][:, task.cells] - 1e-9).all()
