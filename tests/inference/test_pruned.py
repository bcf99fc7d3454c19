"""Coarse-to-fine search: what is looked at, what that costs, and that nothing else changes."""

import pytest
import torch
from brute_force import BruteForce
from problems import make_problem

from cryoprob.geometry.rotations import angle_between, random_rotations
from cryoprob.inference.e_step import e_step
from cryoprob.inference.guide import Guide
from cryoprob.inference.levels import levels
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.local import Local
from cryoprob.inference.treatments.point import Point
from cryoprob.models.image_likelihood import shift_phase

F64 = torch.float64
FIELDS = ("bound", "rotation", "shift", "probability", "entropy", "cross", "energy")
ROUNDING = {"rtol": 1e-9, "atol": 1e-10}


def searched(problem, mass, coarse_order=0, least=1):
    exact = Exact(mass, coarse_order=coarse_order, least=least)
    return Guide(rotation=exact, shift=exact, volume=Point(problem.volume))


def same(one, other):
    """Assert that two E-steps found the same, up to rounding."""
    for name in FIELDS:
        torch.testing.assert_close(
            getattr(other.summary, name), getattr(one.summary, name), **ROUNDING
        )
    torch.testing.assert_close(other.residual, one.residual, **ROUNDING)
    torch.testing.assert_close(other.shift_power, one.shift_power, **ROUNDING)
    ours, theirs = one.insertion.equations(), other.insertion.equations()
    torch.testing.assert_close(theirs.right, ours.right, **ROUNDING)
    torch.testing.assert_close(theirs.stencil, ours.stencil, **ROUNDING)


@pytest.mark.parametrize(("order", "coarse"), [(1, 0), (2, 0), (2, 1)])
def test_all_mass_is_the_whole_grid(order, coarse):
    # posteriors flat enough that no coarse cell is empty to rounding
    problem = make_problem(n=5, order=order, refine=order - coarse, signal=1.0)
    dense = e_step(problem.model, problem.guide, problem.stack)
    same(dense, e_step(problem.model, searched(problem, 1.0, coarse), problem.stack))


def test_one_level_is_the_dense_search():
    problem = make_problem(n=5, order=1)
    dense = e_step(problem.model, problem.guide, problem.stack)
    same(dense, e_step(problem.model, searched(problem, 0.9, 1), problem.stack))


def test_a_turned_grid():
    problem = make_problem(n=5, order=1, refine=1)
    turn = random_rotations(1, torch.Generator().manual_seed(2), F64)[0]
    old = problem.model.rotation
    problem.model.rotation = type(old)(1, turn=turn, like=turn)
    dense = e_step(problem.model, problem.guide, problem.stack)
    same(dense, e_step(problem.model, searched(problem, 1.0), problem.stack))


def smallest(weights, mass):
    """Indices of the smallest set that holds a mass, by sorting."""
    ranked, order = weights.sort(descending=True)
    return order[: int((ranked.cumsum(0) < mass).sum()) + 1]


def coarse_weights(problem, level):
    """Posterior over a coarse level's cells, [n, R, T]: each image's density at every center.

    Number by number: the mean is the gain times the center's slice, and what the cell leaves open
    is noise.
    """
    model, blur = problem.model, level.blur
    slicer = model.volume.slicer_at(level.radius)
    band, batch = slicer.band, problem.batch
    slices = slicer.slices(problem.volume, level.rotation.matrices())
    shell, inside = band.shell, len(band)
    scale, spread = model.contrast(batch.index)
    found = []
    for n in range(len(problem.stack)):
        ctf = batch.ctf[n, :inside] * scale[n]
        variance = model.noise.sigma2[batch.group[n], shell] * spread[n] ** 2
        variance = variance + ctf**2 * blur.variance[shell]
        for center in slices:
            for point in level.shift.points():
                phase = shift_phase(band, point.to(ctf), model.pixel_size)
                mean = blur.gain[shell] * ctf * phase * center
                away = (batch.image[n, :inside] - mean).abs() ** 2
                found.append(-(away / variance).sum() / 2)
    joint = torch.stack(found).reshape(len(problem.stack), len(slices), -1)
    return (joint + level.shift.log_mass()).flatten(1).softmax(1).view_as(joint)


def kept_mass(problem, mass):
    """Dense posterior mass of the children of the smallest coarse sets, per image.

    Rotations and shifts are kept apart, each with half of what may be lost.
    """
    coarse, _ = levels(problem.model, problem.volume, 0)
    above, below = coarse_weights(problem, coarse), BruteForce(problem).weights
    found = []
    for up, down in zip(above, below, strict=True):
        cells = coarse.rotation.grid.children(smallest(up.sum(1), 1 - (1 - mass) / 2)).flatten()
        shifts = coarse.shift.grid.children(smallest(up.sum(0), 1 - (1 - mass) / 2)).flatten()
        found.append(down[cells][:, shifts].sum())
    return torch.stack(found)


@pytest.mark.parametrize("signal", [2.0, 5.0])
@pytest.mark.parametrize("mass", [0.5, 0.9, 0.999])
def test_the_loss_is_the_mass_not_looked_at(mass, signal):
    # log evidence falls short by -log of the fine posterior's mass in the children of what the
    # coarse level kept: its own loss is at most -log(mass), that of the fine one is told here
    problem = make_problem(n=5, order=1, refine=1, signal=signal)
    dense = e_step(problem.model, problem.guide, problem.stack).summary
    pruned = e_step(problem.model, searched(problem, mass), problem.stack).summary
    loss = dense.bound - pruned.bound
    assert (loss > -1e-10).all()
    torch.testing.assert_close(loss, -kept_mass(problem, mass).log(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("signal", [3.0, 10.0, 30.0])
def test_no_mode_is_lost(signal):
    # as in use: 0.999 of the mass, and the best cells of the coarser grid, whatever the mass says
    problem = make_problem(n=20, box=16, order=3, refine=1, signal=signal)
    exact = Exact(0.999)
    guide = Guide(rotation=exact, shift=exact, volume=Point(problem.volume))
    dense = e_step(problem.model, problem.guide, problem.stack).summary.bound
    loss = dense - e_step(problem.model, guide, problem.stack).summary.bound
    # lost modes cost tens of nats; at the edge of a set a part of one
    assert (loss > -1e-9).all() and float(loss.max()) < 0.7
    # which the mass alone does not prevent
    alone = searched(problem, 0.999, 2)
    loss = dense - e_step(problem.model, alone, problem.stack).summary.bound
    assert float(loss.max()) > 1


@pytest.mark.parametrize("mass", [0.9, 0.999])
def test_the_loss_stays_small_where_cells_are_alike(mass):
    # little signal: the children of what is kept hold the mass that their parents held
    problem = make_problem(n=8, order=1, refine=1, signal=0.2)
    dense = e_step(problem.model, problem.guide, problem.stack).summary.bound
    pruned = e_step(problem.model, searched(problem, mass), problem.stack).summary.bound
    loss = dense - pruned
    # parents and children differ by some 10 % of a mass that is not kept
    assert (loss > -1e-10).all() and float(loss.max()) < -1.2 * torch.tensor(mass).log()


@pytest.mark.parametrize("mass", [0.5, 0.9, 0.99, 0.999])
def test_never_more_than_the_whole(mass):
    problem = make_problem(n=10, order=2, refine=2, signal=6.0)
    dense = e_step(problem.model, problem.guide, problem.stack).summary.bound
    pruned = e_step(problem.model, searched(problem, mass), problem.stack).summary.bound
    assert (pruned <= dense + 1e-10).all()


def test_more_mass_loses_less():
    problem = make_problem(n=5, order=2, refine=2, signal=4.0)
    found = [
        float(e_step(problem.model, searched(problem, m), problem.stack).summary.bound.sum())
        for m in (0.5, 0.9, 0.99, 0.999, 1.0)
    ]
    assert found == sorted(found)


def test_an_image_does_not_depend_on_its_neighbors():
    # regions are shared, but each image looks only at cells of its own, at every depth
    problem = make_problem(n=10, order=2, refine=2, signal=6.0)
    guide = searched(problem, 0.9)
    together = e_step(problem.model, guide, problem.stack).summary.bound
    for i in range(10):
        alone = e_step(problem.model, guide, problem.stack, torch.tensor([i])).summary
        assert float(alone.bound[i]) == pytest.approx(float(together[i]), abs=1e-10)


def test_sums_are_those_of_the_poses_looked_at():
    # the M-step's sums, from the summary: sum of weights times transfer, residual, shift power
    problem = make_problem(n=8, order=2, refine=2, signal=5.0, contrast=False)
    statistics = e_step(problem.model, searched(problem, 0.9), problem.stack)
    summary = statistics.summary
    sigma2 = problem.model.noise.sigma2
    wanted = torch.zeros_like(statistics.residual).index_add_(
        0, problem.stack.group, problem.batch.power
    )
    # residual / sigma2 summed over shells = power / sigma2 - 2 cross + energy
    total = (wanted / sigma2).sum() + (summary.energy - 2 * summary.cross).sum()
    assert float((statistics.residual / sigma2).sum()) == pytest.approx(float(total), rel=1e-10)
    equations, volume = statistics.insertion.equations(), problem.volume
    cross = float((volume * equations.right_side()).sum())
    assert cross == pytest.approx(float(summary.cross.sum()), rel=1e-9)
    energy = float((volume * equations.apply(volume)).sum())
    assert energy == pytest.approx(float(summary.energy.sum()), rel=1e-9)


def test_single_precision():
    wide = make_problem(n=4, order=2, refine=2, signal=5.0)
    narrow = make_problem(n=4, order=2, refine=2, signal=5.0, dtype=torch.float32)
    found = [e_step(p.model, searched(p, 0.9999), p.stack).summary for p in (wide, narrow)]
    # 100 nats to 6e-8, and cells at the edge of a set may fall on either side of it
    assert float((found[0].bound - found[1].bound).abs().max()) < 2e-3


def near(problem, rotation_radius, shift_radius, rotation=None, shift=None):
    rotation = problem.stack.rotation if rotation is None else rotation
    shift = problem.stack.shift if shift is None else shift
    rotation, shift = Local(rotation, rotation_radius), Local(shift, shift_radius)
    return Guide(rotation=rotation, shift=shift, volume=Point(problem.volume))


def test_local_search_everywhere_is_the_whole_grid():
    problem = make_problem(n=5, order=1, refine=1)
    dense = e_step(problem.model, problem.guide, problem.stack)
    found = e_step(problem.model, near(problem, 180.0, 100.0), problem.stack)
    for name in ("bound", "probability"):
        wanted = getattr(dense.summary, name)
        torch.testing.assert_close(getattr(found.summary, name), wanted, **ROUNDING)
    # the sums leave out 0.5e-4 of each image's mass for rotations, and for shifts
    ours, theirs = (part.insertion.equations() for part in (found, dense))
    off = (ours.stencil - theirs.stencil).norm() / theirs.stencil.norm()
    assert 0 < float(off) < 1e-4
    assert float((found.shift_power / dense.shift_power - 1).abs()) < 1e-4


def test_local_search_of_a_turned_grid():
    problem = make_problem(n=5, order=1, refine=1)
    turn = random_rotations(1, torch.Generator().manual_seed(2), F64)[0]
    problem.model.rotation = type(problem.model.rotation)(1, turn=turn, like=turn)
    found = e_step(problem.model, near(problem, 60.0, 6.0), problem.stack)
    # the mode's cell lies near the given pose: within the radius, a parent's reach and a step
    away = angle_between(found.summary.rotation, problem.stack.rotation)
    assert float(away.max()) < 60 + 30


@pytest.mark.parametrize("radius", [30.0, 60.0])
def test_local_search_is_the_posterior_near_the_given_poses(radius):
    problem = make_problem(n=5, order=1, refine=1, signal=4.0)
    brute = BruteForce(problem)
    found = e_step(problem.model, near(problem, radius, 6.0), problem.stack).summary
    parents = problem.model.rotation.coarser()
    reach = max(radius, 60.0)  # at least a coarse step
    for n in range(5):
        given = problem.stack.rotation[n].expand(72, 3, 3)
        cells = (angle_between(parents.matrices(), given) <= reach).nonzero()[:, 0]
        away = (problem.model.shift.coarser().points() - problem.stack.shift[n]).norm(dim=1)
        shifts = (away <= away.min().clamp(min=6.0)).nonzero()[:, 0]
        children = parents.grid.children(cells).flatten()
        shifts = problem.model.shift.coarser().grid.children(shifts).flatten()
        wanted = brute.joint[n][children][:, shifts].logsumexp((0, 1))
        assert float(found.bound[n]) == pytest.approx(float(wanted), abs=1e-9)
        assert 0 < len(cells) < 72


def test_local_search_finds_the_pose_again():
    problem = make_problem(n=6, order=2, refine=1, signal=30.0, contrast=False)
    found = e_step(problem.model, near(problem, 20.0, 6.0), problem.stack).summary
    away = angle_between(found.rotation, problem.stack.rotation)
    # 15 degrees a step: sharp posteriors land on a neighboring cell
    assert float(away.median()) < 15
    dense = e_step(problem.model, problem.guide, problem.stack).summary
    assert (found.bound <= dense.bound + 1e-10).all()
