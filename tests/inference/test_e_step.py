"""The streamed E-step: blocks, order and precision change nothing; summaries by brute force."""

import sys

import pytest
import torch
from brute_force import BruteForce, direct_slices
from problems import PIXEL_SIZE, make_problem, some_map

from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.fourier.shells import frequency_3d
from cryoprob.geometry.rotations import mean_rotation, random_rotations
from cryoprob.geometry.symmetry import point_group
from cryoprob.inference.e_step import e_step
from cryoprob.inference.guide import Guide
from cryoprob.inference.levels import levels
from cryoprob.inference.m_step import solve_volume
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.point import Point
from cryoprob.metrics.fsc import fsc
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.particles import ParticleStack

F64 = torch.float64
MODULE = sys.modules[e_step.__module__]
FIELDS = ("bound", "rotation", "shift", "probability", "entropy", "cross", "energy")
# the same numbers added up in another order: a few times 1e-16 of some 100 nats
ROUNDING = {"rtol": 1e-10, "atol": 1e-10}


def same(one, other, rows=slice(None)):
    """Assert that two E-steps found the same, up to rounding."""
    for name in FIELDS:
        found = getattr(other.summary, name)
        torch.testing.assert_close(found, getattr(one.summary, name)[rows], **ROUNDING)
    torch.testing.assert_close(other.residual, one.residual, **ROUNDING)
    torch.testing.assert_close(other.counts, one.counts)
    torch.testing.assert_close(other.shift_power, one.shift_power, **ROUNDING)
    ours, theirs = one.insertion.equations(), other.insertion.equations()
    torch.testing.assert_close(theirs.right, ours.right, **ROUNDING)
    torch.testing.assert_close(theirs.stencil, ours.stencil, **ROUNDING)


def routes(problem):
    """Guides of every route through the E-step, for a model of order 1 and refined shifts."""
    point = Point(problem.volume)
    known = Known(problem.stack.rotation), Known(problem.stack.shift)
    return {
        "dense": problem.guide,
        "pruned": Guide(rotation=Exact(0.9, coarse_order=0), shift=Exact(), volume=point),
        "known": Guide(rotation=known[0], shift=known[1], volume=point),
    }


@pytest.mark.parametrize("route", ["dense", "pruned", "known"])
def test_blocks_and_chunks_change_nothing(route, monkeypatch):
    problem = make_problem(n=11, order=1, refine=1, signal=4.0)
    guide = routes(problem)[route]
    whole = e_step(problem.model, guide, problem.stack)
    for block, chunk, images in [(1, 1, 9), (30_000, 12 * 34 * 3, 9), (2**25, 2**28, 2)]:
        guide.rotation.block_bytes = block
        monkeypatch.setattr(MODULE, "_CHUNK_BYTES", chunk)
        monkeypatch.setattr(MODULE, "_CHUNK_IMAGES", images)
        same(whole, e_step(problem.model, guide, problem.stack))


@pytest.mark.parametrize("route", ["dense", "pruned", "known"])
def test_order_of_the_images_changes_nothing(route):
    problem = make_problem(n=11, order=1, refine=1, signal=4.0)
    guide = routes(problem)[route]
    whole = e_step(problem.model, guide, problem.stack)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(4))
    same(whole, e_step(problem.model, guide, problem.stack, order))


def test_order_of_the_stack_changes_nothing():
    problem = make_problem(n=11, contrast=False)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(4))
    whole = e_step(problem.model, problem.guide, problem.stack)
    same(whole, e_step(problem.model, problem.guide, problem.stack.subset(order)), order)


@pytest.mark.parametrize("route", ["dense", "pruned", "known"])
def test_parts_add_up(route):
    # what the stochastic steps and half sets rely on
    problem = make_problem(n=7, order=1, refine=1)
    guide = routes(problem)[route]
    whole = e_step(problem.model, guide, problem.stack)
    halves = [torch.tensor([0, 3, 4]), torch.tensor([1, 2, 6, 5])]
    parts = [e_step(problem.model, guide, problem.stack, half) for half in halves]
    for one, other in (halves, parts), (halves[::-1], parts[::-1]):
        evidence = other[0].summary.bound
        torch.testing.assert_close(evidence[one[0]], whole.summary.bound[one[0]])
        assert (evidence[one[1]] == -torch.inf).all()
    torch.testing.assert_close(parts[0].residual + parts[1].residual, whole.residual)
    assert (parts[0].counts + parts[1].counts).equal(whole.counts)
    both = parts[0].insertion.equations() + parts[1].insertion.equations()
    torch.testing.assert_close(both.right, whole.insertion.equations().right)
    torch.testing.assert_close(both.stencil, whole.insertion.equations().stencil)


@pytest.mark.parametrize("signal", [1.0, 6.0])
def test_summary_by_brute_force(signal):
    problem = make_problem(n=5, signal=signal)
    brute = BruteForce(problem)
    summary = e_step(problem.model, problem.guide, problem.stack).summary
    weights = brute.weights
    close = {"rtol": 1e-7, "atol": 1e-9}
    by_rotation = weights.sum(2)
    torch.testing.assert_close(summary.probability, by_rotation.max(1).values, **close)
    entropy = -torch.special.xlogy(weights, weights).sum((1, 2))
    torch.testing.assert_close(summary.entropy, entropy, **close)
    torch.testing.assert_close(summary.shift, weights.sum(1) @ brute.shifts, **close)
    # <x, mean> / variance and <mean, mean> / variance under the full covariance
    inverse = torch.linalg.inv(brute.noise.covariance_matrix)
    means = brute.means.flatten(3)  # [Q, N, T, D^2]
    white = torch.einsum("nab,qntb->qnta", inverse, means)
    cross = torch.einsum("na,qnta,nqt->n", brute.pixels.flatten(1), white, weights)
    energy = torch.einsum("qnta,qnta,nqt->n", means, white, weights)
    torch.testing.assert_close(summary.cross, cross, **close)
    torch.testing.assert_close(summary.energy, energy, **close)


@pytest.mark.parametrize("signal", [1.0, 6.0])
def test_mean_rotation_is_that_around_the_mode(signal):
    # cells within 2.5 steps (150 degrees at order 0) of the most probable one
    problem = make_problem(n=5, signal=signal)
    brute = BruteForce(problem)
    found = e_step(problem.model, problem.guide, problem.stack).summary.rotation
    by_rotation = brute.weights.sum(2)
    for n in range(5):
        mode = brute.rotations[by_rotation[n].argmax()]
        trace = torch.einsum("ij,qij->q", mode, brute.rotations)
        angle = torch.rad2deg(((trace - 1) / 2).clamp(-1, 1).acos())
        near = angle <= 150 + 1e-9
        mean = mean_rotation(brute.rotations[near], by_rotation[n, near])
        torch.testing.assert_close(found[n], mean, rtol=0, atol=1e-8)


def test_expected_residual_and_shift_power_by_brute_force():
    problem = make_problem(n=6, radius=2)
    brute = BruteForce(problem)
    statistics = e_step(problem.model, problem.guide, problem.stack)
    _, spread = problem.model.contrast(torch.arange(6))
    power = brute.residual_power() / spread[:, None] ** 2
    wanted = torch.zeros_like(statistics.residual).index_add_(0, problem.stack.group, power)
    torch.testing.assert_close(statistics.residual, wanted, rtol=1e-9, atol=1e-9)
    assert statistics.counts.tolist() == [3.0, 3.0]
    square = (brute.weights.sum(1) @ brute.shifts.square().sum(1)).sum()
    torch.testing.assert_close(statistics.shift_power, square, rtol=1e-9, atol=0)


def test_residual_at_known_poses():
    problem = make_problem(n=6).continuous()
    statistics = e_step(problem.model, problem.guide, problem.stack)
    batch = problem.batch
    law = problem.model.likelihood(
        problem.volume, problem.stack.rotation, problem.stack.shift, batch
    )
    _, spread = problem.model.contrast(batch.index)
    power = (batch.image - law.mean).abs().square() / spread[:, None] ** 2
    wanted = torch.zeros_like(statistics.residual)
    for n, group in enumerate(problem.stack.group.tolist()):
        wanted[group].index_add_(0, full_band(8).shell, power[n])
    torch.testing.assert_close(statistics.residual, wanted, rtol=1e-9, atol=1e-9)
    square = problem.stack.shift.square().sum()
    torch.testing.assert_close(statistics.shift_power, square)


def test_symmetry_inserts_every_equivalent_orientation():
    # the normal operator commutes with the group, and the sums are the group's mean
    problem = make_problem(n=6)
    statistics = e_step(problem.model, problem.guide, problem.stack, symmetry="C2")
    equations = statistics.insertion.equations()
    plain = e_step(problem.model, problem.guide, problem.stack).insertion.equations()
    half_turn = lambda v: v[:, 1:, 1:].flip(1, 2)  # noqa: E731  about z, off the first row
    inner = torch.zeros(8, 8, 8, dtype=F64)
    inner[:, 1:, 1:] = problem.volume[:, 1:, 1:]
    turned = torch.zeros_like(inner)
    turned[:, 1:, 1:] = half_turn(inner)
    mean = (half_turn(plain.apply(turned)) + plain.apply(inner)[:, 1:, 1:]) / 2
    torch.testing.assert_close(equations.apply(inner)[:, 1:, 1:], mean, **ROUNDING)
    right = plain.right_side()[:, 1:, 1:]
    wanted = (right + right.flip(1, 2)) / 2
    torch.testing.assert_close(equations.right_side()[:, 1:, 1:], wanted, **ROUNDING)
    assert len(point_group("C2")) == 2


def test_a_volume_of_zero_leaves_the_prior():
    problem = make_problem(n=4)
    problem.guide.volume.coefficients.data.zero_()
    summary = e_step(problem.model, problem.guide, problem.stack).summary
    prior = problem.model.shift.log_mass().exp()
    entropy = -(prior * prior.log()).sum() + torch.tensor(72.0, dtype=F64).log()
    torch.testing.assert_close(summary.entropy, entropy.expand(4))
    torch.testing.assert_close(summary.shift, torch.zeros(4, 2, dtype=F64), rtol=0, atol=1e-12)
    band = full_band(8)
    _, spread = problem.model.contrast(torch.arange(4))
    sigma2 = problem.model.noise(problem.stack.group) * spread[:, None] ** 2
    sd = sigma2[:, band.shell].sqrt()
    law = torch.distributions.Normal(0.0, sd)
    image = problem.batch.image
    wanted = law.log_prob(image.real) + law.log_prob(image.imag) * (band.weight > 1)
    torch.testing.assert_close(summary.bound, wanted.sum(1))


def test_shells_left_out_count_as_noise():
    # a smaller band changes what is explained, not the data: all D^2 numbers stay in the evidence
    problem = make_problem(n=4, radius=2)
    problem.guide.volume.coefficients.data.zero_()
    small = e_step(problem.model, problem.guide, problem.stack).summary.bound
    problem.model.volume.set_band(3)
    large = e_step(problem.model, problem.guide, problem.stack).summary.bound
    torch.testing.assert_close(small, large)


def test_levels():
    problem = make_problem(order=2, refine=2)
    found = levels(problem.model, problem.volume, 0)
    assert [level.rotation.order for level in found] == [0, 1, 2]
    assert [level.shift.grid.level for level in found] == [0, 1, 2]
    assert found[-1].rotation is problem.model.rotation and found[-1].blur is None
    large = make_problem(box=32, order=3, refine=3, n=2)
    radii = [level.radius for level in levels(large.model, large.volume, 0)]
    # finer cells tell more shells, and the finest level is scored in all of the band
    assert radii == sorted(radii) and radii[0] < radii[-1] == 15
    with pytest.raises(InputError, match="refinements of the shift grid"):
        levels(make_problem(order=2, refine=1).model, problem.volume, 0)


def test_reconstruction_from_noiseless_projections():
    # at known poses, in single precision, from projections that the slicer had no part in
    generator = torch.Generator().manual_seed(8)
    truth = some_map(16, generator) * (frequency_3d(16) < 6)  # a ball of radius 6
    rotation, shift = random_rotations(150, generator, F64), torch.zeros(150, 2)
    problem = make_problem(box=16, n=2, ctf=False, contrast=False, groups=1, dtype=torch.float32)
    band = problem.model.band
    images = band.unpack(direct_slices(truth, rotation, band))
    stack = ParticleStack.from_arrays(images, PIXEL_SIZE, None, rotation, shift)
    zero = torch.zeros(16, 16, 16)
    guide = Guide(rotation=Known(rotation.float()), shift=Known(shift), volume=Point(zero))
    problem.model.noise.sigma2.fill_(1e-3)
    equations = e_step(problem.model, guide, stack).insertion.equations()
    found = solve_volume(equations, torch.full((10,), 1e3), zero, tolerance=1e-6).volume
    # interpolation errs by 1.5 % in an object of half the box: 2e-4 of the power; the last shell
    # is only half covered
    curve = fsc(found, truth)
    assert float(curve[:7].min()) > 0.9995 and float(curve[7]) > 0.99
    # and the scale is right
    low = full_band(16).prefix(6)
    ratio = low.pack(found.double().sum(0)).abs().sum() / low.pack(truth.sum(0)).abs().sum()
    assert float(ratio) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("site", ["rotation", "shift"])
def test_a_continuous_prior_is_searched_on_a_grid_only(site):
    problem = make_problem(n=4, order=1, refine=1)
    prior = UniformRotation(F64) if site == "rotation" else GaussianShift(5.0, F64)
    setattr(problem.model, site, prior)
    words = rf"{site} prior: .* got {type(prior).__name__}, .* model\.{site}\.discretize"
    with pytest.raises(InputError, match=words):
        levels(problem.model, problem.volume, 0)
    found = routes(problem)
    for name in ("dense", "pruned"):
        with pytest.raises(InputError, match=words):
            e_step(problem.model, found[name], problem.stack)
    known = e_step(problem.model, found["known"], problem.stack)
    assert known.summary.bound.isfinite().all()
