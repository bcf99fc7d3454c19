"""Closed-form updates: the map solves its normal equations and raises the posterior; the rest."""

import math

import pyro
import pytest
import torch
from brute_force import BruteForce
from problems import make_problem, some_map
from pyro.infer import TraceEnum_ELBO
from scipy import stats

from cryoprob.fourier.bands import full_band
from cryoprob.fourier.normal import Insertion
from cryoprob.fourier.shells import shell_index_3d, shell_mean, spread
from cryoprob.fourier.transforms import fft3, ifft3
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.e_step import e_step
from cryoprob.inference.m_step import (
    Solution,
    fourier_weight,
    lift_tau2,
    posterior_sample,
    posterior_std,
    power,
    solve_volume,
    tau2_from_fsc,
    update_contrast,
    update_noise,
    update_shift_sigma,
    update_tau2,
)
from cryoprob.particles import ParticleStack

F64 = torch.float64


def scattered(seed=3, **options):
    """Twenty images of good signal, and a guide at another map than theirs."""
    problem = make_problem(n=20, signal=6.0, seed=seed, **options)
    start = some_map(8, torch.Generator().manual_seed(seed + 1)).to(problem.volume)
    problem.guide.volume.coefficients.data = start
    return problem


def log_posterior(problem, statistics):
    """log p(X | V) + log p(V) at the guide's volume."""
    volume = problem.guide.volume.coefficients.data
    prior = problem.model.volume.prior().log_prob(volume)
    return float(statistics.summary.bound.sum() + prior)


def course(problem, steps=8, **options):
    """Log posteriors along EM steps of the volume alone."""
    values = []
    for _ in range(steps + 1):
        statistics = e_step(problem.model, problem.guide, problem.stack)
        values.append(log_posterior(problem, statistics))
        point, equations = problem.guide.volume.coefficients, statistics.insertion.equations()
        solution = solve_volume(equations, problem.model.volume.tau2, point.data, **options)
        point.data = solution.volume
    return torch.tensor(values, dtype=F64)


CASES = {
    "linear": {},
    "nearest": {"interpolation": "nearest"},
    "weak prior": {"tau2": 50.0},
    "small band": {"radius": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_exact_em_never_lowers_the_log_posterior(name):
    gains = course(scattered(**CASES[name])).diff()
    # a step can lose rounding only: 1e-13 of 2000 nats
    assert float(gains.min()) > -1e-9
    assert float(gains.sum()) > 10  # and it went somewhere


def test_a_hasty_m_step_never_lowers_it_either():
    # conjugate gradients from the old map climb at each of their steps
    gains = course(scattered(), max_iterations=2).diff()
    assert float(gains.min()) > -1e-9 and float(gains.sum()) > 10


def test_gradient_em_is_a_step_up_the_gradient_of_pyros_own_objective():
    # Fisher's identity: d log p(X | V) = E[d log p(X, poses | V)] at the posterior of the same V
    problem = scattered()
    start, tau2 = problem.guide.volume.coefficients, problem.model.volume.tau2
    with pyro.poutine.block():
        loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(
            problem.model, problem.guide, problem.batch
        )
    (gradient,) = torch.autograd.grad(-loss, start)
    equations = e_step(problem.model, problem.guide, problem.stack).insertion.equations()
    moved = solve_volume(equations, tau2, start.data, tolerance=0.0, max_iterations=1)
    weight = moved.weight + 1 / spread(tau2, 8) + 0.03 * moved.weight.mean()
    direction = ifft3(fft3(gradient) / weight).real
    step = moved.volume - start.data
    length = (step * direction).sum() / direction.square().sum()
    assert float(length) > 0
    torch.testing.assert_close(step, length * direction, rtol=0, atol=1e-9 * float(step.norm()))


def test_single_precision_em():
    # 2000 nats to 6e-8 each, some 20 images
    gains = course(scattered(dtype=torch.float32)).diff()
    assert float(gains.min()) > -5e-3


def expected_objective(problem, equations, volume):
    """What the M-step maximizes, up to a constant: b^T V - V^T A V / 2 + log p(V)."""
    quadratic = (volume * (equations.right_side() - equations.apply(volume) / 2)).sum()
    return float(quadratic + problem.model.volume.prior().log_prob(volume))


def test_the_diagonal_update_is_not_the_maximizer():
    # RELION's update ignores that interpolated slices couple neighbors: it lands below the start
    problem = scattered()
    statistics = e_step(problem.model, problem.guide, problem.stack)
    equations, start = statistics.insertion.equations(), problem.guide.volume.coefficients.data
    tau2 = problem.model.volume.tau2
    exact = solve_volume(equations, tau2, start, tolerance=1e-8).volume
    diagonal = solve_volume(equations, tau2, start, exact=False)
    assert diagonal.iterations == 0
    heights = [expected_objective(problem, equations, v) for v in (start, diagonal.volume, exact)]
    assert heights[1] < heights[0] < heights[2]
    assert heights[2] - heights[1] > 100  # nats, of 20 images
    # and the log posterior falls with it
    gains = course(scattered(), exact=False).diff()
    assert float(gains.min()) < -100


def test_the_exact_update_is_the_maximizer():
    problem = scattered()
    statistics = e_step(problem.model, problem.guide, problem.stack)
    equations, start = statistics.insertion.equations(), problem.guide.volume.coefficients.data
    found = solve_volume(equations, problem.model.volume.tau2, start, tolerance=1e-8).volume
    top = expected_objective(problem, equations, found)
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        away = found + 0.01 * torch.randn(8, 8, 8, generator=generator, dtype=F64)
        assert expected_objective(problem, equations, away) < top
    # the expected objective touches the log posterior: its slope there is the posterior's
    volume = found.clone().requires_grad_()
    problem.model.volume.prior().log_prob(volume).backward()
    slope = equations.right_side() - equations.apply(found) + volume.grad
    assert float(slope.norm() / equations.right_side().norm()) < 1e-6


def test_normal_equations_against_a_dense_solution():
    problem = make_problem(box=6, n=8)
    statistics = e_step(problem.model, problem.guide, problem.stack)
    equations = statistics.insertion.equations()
    tau2 = 0.2 + torch.rand(5, generator=torch.Generator().manual_seed(1), dtype=F64)
    voxels = torch.eye(216, dtype=F64).reshape(-1, 6, 6, 6)
    prior = 1 / tau2[shell_index_3d(6)]
    columns = [equations.apply(v) + ifft3(fft3(v) * prior).real for v in voxels]
    matrix = torch.stack([column.flatten() for column in columns], 1)
    wanted = torch.linalg.solve(matrix, equations.right_side().flatten()).reshape(6, 6, 6)
    for start in (torch.zeros(6, 6, 6, dtype=F64), problem.volume):
        given = start.clone()
        found = solve_volume(equations, tau2, start, tolerance=1e-10)
        # the residual is 1e-10 of the right-hand side's in the preconditioner's norm
        torch.testing.assert_close(found.volume, wanted, rtol=0, atol=1e-8)
        assert start.equal(given) and 0 < found.iterations <= 100
    # from the solution there is nothing to do
    assert solve_volume(equations, tau2, wanted).iterations == 0


def test_the_solver_stops_when_told():
    problem = scattered()
    equations = e_step(problem.model, problem.guide, problem.stack).insertion.equations()
    start, tau2 = problem.guide.volume.coefficients.data, problem.model.volume.tau2
    steps = [solve_volume(equations, tau2, start, tolerance=t).iterations for t in (1e-1, 1e-3)]
    assert 0 < steps[0] < steps[1]
    assert solve_volume(equations, tau2, start, tolerance=0, max_iterations=3).iterations == 3


def test_without_data_the_map_is_the_priors_mean():
    problem = make_problem(n=2)
    equations = Insertion(problem.model.volume.slicer).equations()
    found = solve_volume(equations, problem.model.volume.tau2, problem.volume)
    assert torch.isfinite(found.volume).all()
    assert float(found.volume.norm() / problem.volume.norm()) < 1e-4


def test_single_precision_solution():
    wide, narrow = scattered(), scattered(dtype=torch.float32)
    maps = []
    for problem in (wide, narrow):
        equations = e_step(problem.model, problem.guide, problem.stack).insertion.equations()
        start = problem.guide.volume.coefficients.data
        maps.append(solve_volume(equations, problem.model.volume.tau2, start, tolerance=1e-5))
    error = (maps[1].volume - maps[0].volume).norm() / maps[0].volume.norm()
    assert float(error) < 1e-3  # float32 sums of 10^3 terms, times a condition of some 10


def test_weight_is_close_to_the_true_diagonal():
    # rotations all over; per plane wave of the map, <e, A e> against the closed form
    box, count = 16, 200
    model = make_problem(box=box, n=2).model
    insertion = Insertion(model.volume.slicer)
    rotations = random_rotations(count, torch.Generator().manual_seed(1), F64)
    ones = torch.ones(count, len(model.band), dtype=F64)
    insertion.add(ones + 0j, ones, rotations)
    equations = insertion.equations()
    weight = fourier_weight(equations)
    for z, y, x in [(0, 0, 1), (0, 3, 1), (2, 0, 0), (4, 2, 1), (0, 5, 0), (3, -3, 3)]:
        spectrum = torch.zeros(box, box, box, dtype=torch.complex128)
        spectrum[8 + z, 8 + y, 8 + x] = spectrum[8 - z, 8 - y, 8 - x] = 0.5**0.5
        wave = ifft3(spectrum).real
        true = float((wave * equations.apply(wave)).sum())
        assert float(weight[8 + z, 8 + y, 8 + x]) == pytest.approx(true, rel=0.2)


@pytest.mark.parametrize("radius", [3, 2])
def test_noise_is_the_expected_residual(radius):
    problem = make_problem(n=7, radius=radius)
    brute = BruteForce(problem)
    _, spread = problem.model.contrast(torch.arange(7))
    power_ = brute.residual_power() / spread[:, None] ** 2
    statistics = e_step(problem.model, problem.guide, problem.stack)
    before = problem.model.noise.sigma2.clone()
    update_noise(problem.model, statistics)
    numbers = full_band(8).numbers_per_shell()
    for group in (0, 1):
        mine = problem.stack.group == group
        wanted = power_[mine].mean(0) / numbers
        torch.testing.assert_close(problem.model.noise.sigma2[group], wanted, rtol=1e-9, atol=0)
    after = problem.model.noise.sigma2.clone()
    problem.model.noise.sigma2.copy_(before)
    update_noise(problem.model, statistics, rate=0.25)
    torch.testing.assert_close(problem.model.noise.sigma2, before**0.75 * after**0.25)


def test_noise_update_raises_the_evidence():
    problem = make_problem(n=8)
    problem.model.noise.sigma2.mul_(3)
    values = []
    for _ in range(4):
        statistics = e_step(problem.model, problem.guide, problem.stack)
        values.append(float(statistics.summary.bound.sum()))
        update_noise(problem.model, statistics)
    assert (torch.tensor(values, dtype=F64).diff() > 0).all()


def test_groups_without_images_keep_their_noise():
    problem = make_problem(n=6)
    before = problem.model.noise.sigma2.clone()
    index = (problem.stack.group == 1).nonzero()[:, 0]
    update_noise(problem.model, e_step(problem.model, problem.guide, problem.stack, index))
    assert problem.model.noise.sigma2[0].equal(before[0])
    assert not problem.model.noise.sigma2[1].equal(before[1])


def test_amplitudes_are_found():
    # images without noise at known poses: the factors themselves, up to their median
    problem = make_problem(n=7, signal=6.0)
    known = problem.continuous()
    truth = torch.tensor([0.7, 0.8, 0.9, 1.0, 1.2, 1.3, 1.4], dtype=F64)
    model = problem.model
    stack, volume = problem.stack, problem.volume
    clean = model.likelihood(volume, stack.rotation, stack.shift, problem.batch).mean
    clean = clean * (truth / model.contrast.scale)[:, None]
    images = full_band(8).unpack(clean)
    known.stack = ParticleStack.from_arrays(
        images, 5.0, stack.optics, stack.rotation, stack.shift, stack.group
    )
    model.contrast.scale.fill_(1.0)
    update_contrast(known.model, e_step(known.model, known.guide, known.stack))
    torch.testing.assert_close(model.contrast.scale, truth)
    # and there they stay
    update_contrast(known.model, e_step(known.model, known.guide, known.stack))
    torch.testing.assert_close(model.contrast.scale, truth)


def test_width_of_the_shifts():
    problem = make_problem(n=6)
    brute = BruteForce(problem)
    square = brute.weights.sum(1) @ brute.shifts.square().sum(1)
    update_shift_sigma(problem.model, e_step(problem.model, problem.guide, problem.stack))
    wanted = math.sqrt(float(square.mean()) / 2)
    assert wanted > 2.5 and float(problem.model.shift.sigma) == pytest.approx(wanted)


def test_width_of_the_shifts_is_at_least_half_a_pixel():
    problem = make_problem(n=6).continuous()
    statistics = e_step(problem.model, problem.guide, problem.stack)
    statistics.shift_power.zero_()
    update_shift_sigma(problem.model, statistics)
    assert float(problem.model.shift.sigma) == 2.5


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_prior_power_of_noise_alone_settles(dtype):
    # alternating with the map, on images without a particle: it shrinks, but not to nothing,
    # where 1 / tau2 would end in NaN
    problem = make_problem(n=20, signal=0.0, radius=2, dtype=dtype)
    tau2 = problem.model.volume.tau2
    equations = e_step(problem.model, problem.guide, problem.stack).insertion.equations()
    free = solve_volume(equations, torch.full_like(tau2, 1e6), problem.volume).volume
    volume = problem.volume
    for _ in range(40):
        before = tau2.clone()
        solution = solve_volume(equations, tau2, volume)
        volume = solution.volume
        update_tau2(problem.model, solution)
    assert torch.isfinite(volume).all() and (tau2 * solution.weight.max() > 0.9e-3).all()
    torch.testing.assert_close(tau2, before, rtol=0.02, atol=0)
    # nowhere more power than the data alone would give, and shells beyond the band go along
    assert (tau2[:3] <= power(free)[:3]).all() and (tau2[3:] == tau2[2]).all()


def test_a_shell_without_data_does_not_run_away():
    # weights of one shell are nil: nothing there but the prior, which must not feed itself
    problem = make_problem(n=20, signal=4.0, ctf=False)
    model, band = problem.model, problem.model.band
    insertion = Insertion(model.volume.slicer)
    generator = torch.Generator().manual_seed(5)
    rotations = random_rotations(60, generator, F64)
    weight = torch.where(band.shell == 2, 0.0, 1.0).double().expand(60, -1)
    slices = model.volume.slices(problem.volume, rotations)
    insertion.add(weight * slices, weight, rotations)
    equations, volume, course_ = insertion.equations(), problem.volume, []
    for _ in range(30):
        solution = solve_volume(equations, model.volume.tau2, volume)
        volume = solution.volume
        update_tau2(model, solution)
        course_.append(model.volume.tau2.clone())
    assert torch.isfinite(course_[-1]).all()
    # the neighbors' interpolation reaches into the shell, so it is not quite empty
    assert float(course_[-1][2]) < 3 * float(course_[-1][[1, 3]].max())
    assert float((course_[-1] / course_[-2]).log().abs().max()) < 0.05


def test_prior_power_of_a_well_measured_map_is_its_own():
    problem = make_problem(n=2)
    weight = torch.full((8, 8, 8), 1e6, dtype=F64)
    update_tau2(problem.model, Solution(problem.volume, weight, 0))
    wanted = shell_mean(fft3(problem.volume).abs() ** 2)
    torch.testing.assert_close(problem.model.volume.tau2[:4], wanted[:4], rtol=1e-4, atol=0)


def test_prior_power_from_half_maps():
    # the posterior mean keeps FSC-many of the signal: tau2 weight / (1 + tau2 weight) = FSC
    problem = make_problem(n=2)
    weight = (1.0 + shell_index_3d(8)).double()
    curve = torch.tensor([1.0, 0.9, 0.5, 0.2, 0.1], dtype=F64)
    tau2_from_fsc(problem.model, Solution(problem.volume, weight, 0), curve)
    tau2 = problem.model.volume.tau2
    gain = tau2[:4] * torch.arange(1.0, 5.0).double()
    kept = torch.tensor([0.999, 0.9, 0.5, 0.2], dtype=F64)
    torch.testing.assert_close(gain / (1 + gain), kept)
    assert (tau2[4:] == tau2[3]).all()


def dense_precision(equations, tau2):
    """A + 1 / tau2 over all voxels."""
    box = equations.slicer.band.box
    voxels = torch.eye(box**3, dtype=F64).reshape(-1, box, box, box)
    prior = 1 / tau2[shell_index_3d(box)]
    columns = [equations.apply(v) + ifft3(fft3(v) * prior).real for v in voxels]
    return torch.stack([column.flatten() for column in columns], 1)


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_posterior_draws_have_the_exact_covariance(interpolation, false_alarm):
    problem = make_problem(box=6, n=10, tau2=2.0, interpolation=interpolation)
    insertion = e_step(problem.model, problem.guide, problem.stack).insertion
    equations, tau2 = insertion.equations(), problem.model.volume.tau2
    generator = torch.Generator().manual_seed(6)
    right, start = equations.right_side(), problem.volume
    draws = [
        posterior_sample(equations, tau2, right + noise, start, generator, 1e-4)
        for noise in insertion.noise(50, generator)
    ]
    precision = dense_precision(equations, tau2)
    mean = torch.linalg.solve(precision, right.flatten())
    # in coordinates where the posterior is white, draw by draw and coordinate by coordinate
    away = (torch.stack(draws).flatten(1) - mean) @ torch.linalg.cholesky(precision)
    assert stats.kstest(away.flatten().numpy(), "norm").pvalue > false_alarm
    square = away.square()
    assert stats.kstest(square.sum(1).numpy(), stats.chi2(216).cdf).pvalue > false_alarm
    assert stats.kstest(square.sum(0).numpy(), stats.chi2(50).cdf).pvalue > false_alarm


def test_deviation_of_the_voxels():
    problem = make_problem(n=10, tau2=20.0)
    insertion = e_step(problem.model, problem.guide, problem.stack).insertion
    equations, tau2 = insertion.equations(), problem.model.volume.tau2
    wanted = dense_precision(equations, tau2).inverse().diagonal().sqrt().reshape(8, 8, 8)
    assert float(wanted.max() / wanted.min()) > 1.6  # so the map of deviations is not flat
    generator = torch.Generator().manual_seed(8)
    found = posterior_std(equations, tau2, insertion.noise(16, generator), generator)
    # 16 draws and some neighbors of each voxel; what is flattened adds to it
    ratio = (found / wanted).log()
    assert abs(float(ratio.mean())) < 0.05 and float(ratio.square().mean()) ** 0.5 < 0.1


def test_shells_beyond_the_resolved_one_stay_open():
    """A prior power of nothing becomes half the noise there; what is larger, or farther, stays."""
    problem = make_problem(box=16)
    model = problem.model
    tau2 = model.linear_volume.tau2
    weight = torch.full((16, 16, 16), 4.0, dtype=torch.float64)
    tau2.fill_(1e-9)
    tau2[:3] = 2.0
    tau2[4] = 0.7
    lift_tau2(model, Solution(problem.volume, weight, 0), 2)
    # 0.5 / 4 in shells 3 and 5, more than that in 4; shell 6 is out of reach
    wanted = [2.0, 2.0, 2.0, 0.125, 0.7, 0.125, 1e-9]
    assert tau2[:7].tolist() == pytest.approx(wanted)
    assert (tau2[8:] == tau2[7]).all()
