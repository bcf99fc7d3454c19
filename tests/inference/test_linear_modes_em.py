"""EM of linear modes: the exact update, what it recovers, and what hard EM does in its place."""

import io
import math

import pytest
import torch
from moving import moving, principal_angles, smooth_maps
from torch.distributions import kl_divergence

from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.fourier.shells import spread
from cryoprob.fourier.transforms import fft3, ifft3
from cryoprob.inference.linear_modes_em import ModesEM, principal, random_modes
from cryoprob.inference.linear_posterior import latents
from cryoprob.inference.loop import Quiet, run_loop
from cryoprob.inference.modes_m_step import (
    BlockEquations,
    ModesSolution,
    expanded,
    mode_tau2,
    modes_divergence,
    solve_modes,
)
from cryoprob.inference.modes_statistics import modes_e_step
from cryoprob.inference.treatments.known import Known
from cryoprob.models.volumes.fourier_gaussian import FourierGaussian
from cryoprob.models.volumes.fourier_voxels import SpectralGaussian

F64 = torch.float64
FIXED = {"noise": False, "tau2": False, "expand": False, "gain": -math.inf}


def scattered(**options):
    """Two dozen images, and a start that is another set of maps than theirs."""
    problem = moving(**{"n": 24, "values": (20.0, 10.0), "mean": 20.0} | options)
    start = 5 * smooth_maps(
        len(problem.truth), problem.stack.box, torch.Generator().manual_seed(1)
    )
    return problem, start


def log_posterior(problem, coefficients):
    """log p(X | V) + log p(V), differentiable, by the model and its quadratic form in z."""
    model, stack = problem.model, problem.stack
    batch = stack.batch(torch.arange(len(stack)), full_band(stack.box), F64)
    size = coefficients.shape[0] - 1

    def joint(z):
        law = model.likelihood(coefficients, stack.rotation, stack.shift, batch, z)
        return law.log_prob(batch.image) + model.conformation.prior().log_prob(z)

    unit, nothing = torch.eye(size, dtype=F64), torch.zeros(len(stack), size, dtype=F64)
    base = joint(nothing)
    ups, downs = (torch.stack([joint(nothing + s * e) for e in unit], 1) for s in (1, -1))
    pairs = torch.stack([torch.stack([joint(nothing + a + b) for b in unit], 1) for a in unit], 1)
    force = (ups - downs) / 2
    precision = ups[:, :, None] + ups[:, None] - pairs - base[:, None, None]
    value = base + (force * torch.linalg.solve(precision, force)).sum(1) / 2
    value = value - torch.logdet(precision) / 2 + size * math.log(2 * math.pi) / 2
    return value.sum() + model.volume.prior().log_prob(coefficients)


def prior_precision(problem, maps):
    return ifft3(fft3(maps) / spread(problem.model.volume.tau2, problem.stack.box)).real


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_the_equations_residual_is_the_slope_of_the_log_posterior(interpolation):
    # Fisher's identity: the slope of the evidence is the mean slope of the log joint
    problem, start = scattered(n=6, interpolation=interpolation, groups=2)
    values = start.requires_grad_()
    log_posterior(problem, values).backward()
    sums = modes_e_step(problem.model, problem.guide(start.detach()), problem.stack)
    equations, start = BlockEquations.of(sums), start.detach()
    residual = equations.right_side() - equations.apply(start) - prior_precision(problem, start)
    torch.testing.assert_close(residual, values.grad, atol=1e-8, rtol=1e-8)


def test_the_bound_is_the_log_evidence():
    problem, start = scattered(n=6)
    sums = modes_e_step(problem.model, problem.guide(start), problem.stack)
    prior = problem.model.volume.prior().log_prob(start)
    value = float(sums.common.summary.bound.sum() + prior)
    assert value == pytest.approx(float(log_posterior(problem, start)), abs=1e-8)


def test_the_update_solves_the_equations():
    problem, start = scattered()
    sums = modes_e_step(problem.model, problem.guide(start), problem.stack)
    equations, tau2 = BlockEquations.of(sums), problem.model.volume.tau2
    found = solve_modes(equations, tau2, start, tolerance=1e-9, max_iterations=500)
    left = equations.apply(found.coefficients) + prior_precision(problem, found.coefficients)
    torch.testing.assert_close(left, equations.right_side(), atol=1e-5, rtol=0)
    assert 0 < found.iterations < 500


def test_components_that_are_held_stay():
    problem, start = scattered()
    sums = modes_e_step(problem.model, problem.guide(start), problem.stack)
    equations, tau2 = BlockEquations.of(sums), problem.model.volume.tau2
    free = torch.tensor([False, True, True])
    options = {"tolerance": 1e-9, "max_iterations": 500}
    found = solve_modes(equations, tau2, start, free=free, **options).coefficients
    assert found[0].equal(start[0])
    left = equations.apply(found) + prior_precision(problem, found)
    torch.testing.assert_close(left[1:], equations.right_side()[1:], atol=1e-5, rtol=0)


def test_the_residual_is_the_mean_over_the_posterior():
    # the mean of a quadratic over a normal number is its mean at one deviation left and right
    problem, start = scattered(n=5, values=(6.0,), groups=2)
    found = latents(problem.model, problem.guide(start), problem.stack)
    sums = modes_e_step(problem.model, problem.guide(start), problem.stack)
    model, stack, index = problem.model, problem.stack, torch.arange(5)
    batch = stack.batch(index, full_band(8), F64)
    total = torch.zeros_like(sums.common.residual)
    for sign in (-1, 1):
        z = found.mean + sign * found.covariance[:, 0].sqrt()
        law = model.likelihood(start, stack.rotation, stack.shift, batch, z)
        power = (batch.image - law.mean).abs() ** 2 / 2
        for one, group in zip(power, stack.group, strict=True):
            total[group].index_add_(0, batch.band.shell, one)
    torch.testing.assert_close(sums.common.residual, total)


CASES = {
    "two modes": {},
    "one mode": {"values": (20.0,)},
    "nearest": {"interpolation": "nearest"},
    "weak prior": {"tau2": 5.0, "mode_tau2": 5.0, "box": 6},
    "mean held": {"mean_held": True},
}


@pytest.mark.parametrize("name", CASES)
def test_exact_em_never_lowers_the_log_posterior(name):
    options = dict(CASES[name])
    held = options.pop("mean_held", False)
    problem, start = scattered(**options)
    state = problem.state(start)
    algorithm = ModesEM(seed=1, mean=not held, max_iterations=11, **FIXED)
    while not state.done:
        algorithm.step(state, problem.stack)
    values = torch.tensor([record["log_posterior"] for record in state.history], dtype=F64)
    assert len(values) == 11
    # a step can lose rounding only: 1e-13 of 3000 nats
    assert float(values.diff().min()) > -1e-9
    assert float(values[-1] - values[0]) > 10  # and it went somewhere
    assert state.half.guide.volume.coefficients[0].equal(start[0]) == held


def test_em_of_one_mode_rises_to_what_a_general_optimizer_finds():
    problem, start = scattered(n=10, box=6, values=(20.0,), mode_tau2=1.0)
    values = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [values], max_iter=2000, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        value = -log_posterior(problem, values)
        value.backward()
        return value

    optimizer.step(loss)
    best = values.detach()
    highest = float(log_posterior(problem, best))
    state = problem.state(best)  # it stays there
    ModesEM(seed=1, tolerance=1e-7, **FIXED).step(state, problem.stack)
    torch.testing.assert_close(state.half.guide.volume.coefficients, best, atol=1e-4, rtol=0)
    state, algorithm = problem.state(start), ModesEM(seed=1, max_iterations=40, **FIXED)
    while not state.done:
        algorithm.step(state, problem.stack)
    course = [highest - record["log_posterior"] for record in state.history]
    assert course[0] > 4000 and -1e-6 < course[-1] < 10  # EM's own pace


@pytest.fixture(scope="module")
def recovered():
    """Two modes at SNR 0.1 in the shells that they reach, poses known."""
    problem = moving(
        box=16,
        n=6000,
        snr=0.1,
        resolution=7.0,
        values=(8.0, 6.0),
        mean=8.0,
        radius=4,
        dtype=torch.float32,
    )
    state, algorithm = problem.state(), ModesEM(seed=1, max_iterations=9)
    while not state.done:
        algorithm.step(state, problem.stack)
    return problem, state


def test_modes_and_their_values_are_recovered(recovered):
    problem, state = recovered
    found = principal(state.half.guide.volume.coefficients.detach())
    angles = principal_angles(found.coefficients[1:], problem.truth[1:])
    true = problem.truth[1:].flatten(1).norm(dim=1)
    assert float(angles.max()) < 5, angles
    torch.testing.assert_close(found.singular_values, true, rtol=0.05, atol=0)


def test_posteriors_of_z_cover_the_truth(recovered):
    problem, state = recovered
    coefficients = state.half.guide.volume.coefficients.detach()
    found = principal(coefficients)
    law = latents(state.half.model, state.half.guide, problem.stack)
    z, covariance = found.latent(law.mean), found.covariance(law.covariance)
    true = problem.truth[1:].flatten(1)
    turn = found.coefficients[1:].double().flatten(1) @ true.T
    turn = turn / turn.abs().amax(1, keepdim=True)  # signs, and angles of some degrees
    away = z - problem.z @ turn.round().T
    score = (away * torch.linalg.solve(covariance, away[..., None])[..., 0]).sum(1)
    # chi squared of 2 numbers has mean 2; the modes' own error adds some per cent
    assert 1.9 < float(score.mean()) < 2.5


def test_noise_is_recovered(recovered):
    _, state = recovered
    sigma2 = state.half.model.noise.sigma2[0, 1:]
    # a shell has at least 6000 * 8 numbers
    torch.testing.assert_close(sigma2, torch.ones_like(sigma2), rtol=0.05, atol=0)


def test_hard_em_runs_away_in_scale():
    options = {"n": 1500, "snr": 0.2, "values": (8.0, 6.0), "mean": 8.0, "radius": 3}
    ends, kinds = {}, {"exact": {}, "hard": {"hard": True}}
    kinds["orthonormal"] = {"hard": True, "orthonormal": True}
    for name, kind in kinds.items():
        problem = moving(**options, blur=3.0, dtype=torch.float32)
        state = problem.state()
        algorithm = ModesEM(seed=1, max_iterations=16, gain=-math.inf, **kind)
        while not state.done:
            algorithm.step(state, problem.stack)
        modes = state.half.guide.volume.coefficients.detach()[1:]
        # the subspaces are alike, of 1500 images
        assert float(principal_angles(modes, problem.truth[1:]).max()) < 18
        ends[name] = state.history
    true = problem.truth[1:].flatten(1).norm(dim=1)
    last = {name: history[-1]["singular_values"] for name, history in ends.items()}
    values = {name: torch.tensor(found, dtype=F64) for name, found in last.items()}
    assert float((values["exact"] / true - 1).abs().max()) < 0.1
    assert float((values["hard"] / true).min()) > 2
    before = torch.tensor(ends["orthonormal"][-4]["singular_values"], dtype=F64)
    torch.testing.assert_close(values["orthonormal"], before, rtol=0.01, atol=0)  # it stands
    first = [record["singular_values"][0] for record in ends["hard"]]
    assert first[-1] > 1.02 * first[-3] > 1.02**2 * first[-5]  # and on it goes
    assert ends["exact"][-1]["z_variance"] > 0.7  # of the posterior means; 1 less their variance
    assert ends["hard"][-1]["z_variance"] < 0.2
    assert ends["exact"][0]["kind"].startswith("log_evidence")
    assert ends["hard"][0]["kind"].startswith("profile_log_joint")


@pytest.mark.parametrize("doubt", [False, True])
def test_a_resumed_fit_is_the_uninterrupted_one(doubt):
    problem, saved = moving(n=20), []
    algorithm = ModesEM(seed=3, max_iterations=5, doubt=doubt)
    first = problem.state()

    def save():
        buffer = io.BytesIO()
        torch.save(first.pack(), buffer)
        saved.append(buffer.getvalue())

    run_loop(algorithm, first, problem.stack, stage="modes", steps=5, observer=Quiet(), save=save)
    again = moving(n=20)
    second = again.state()
    second.unpack(torch.load(io.BytesIO(saved[1]), weights_only=True))
    assert second.iteration == 2
    while not second.done:
        algorithm.step(second, again.stack)
    found, wanted = (s.half.guide.volume.coefficients for s in (second, first))
    assert found.equal(wanted)
    assert again.model.noise.sigma2.equal(problem.model.noise.sigma2)
    assert again.model.volume.tau2.equal(problem.model.volume.tau2)
    assert second.history == first.history


def test_single_precision_agrees():
    ends = []
    for kind in (F64, torch.float32):
        problem = moving(n=60, values=(20.0, 10.0), mean=20.0, dtype=kind)
        state, algorithm = problem.state(), ModesEM(seed=2, max_iterations=6, tolerance=1e-5)
        while not state.done:
            algorithm.step(state, problem.stack)
        ends.append(state)
    bounds = [state.history[-1]["bound"] for state in ends]
    assert bounds[1] == pytest.approx(bounds[0], abs=1e-2)
    modes = [principal(s.half.guide.volume.coefficients.detach()) for s in ends]
    values = [one.singular_values for one in modes]
    torch.testing.assert_close(values[1], values[0], rtol=1e-3, atol=0)


def jumping(shells, generator, last=2):
    """Covariances of two components per shell, a hundred times larger beyond shell ``last``."""
    root = 0.1 * torch.randn(shells, 2, 2, generator=generator, dtype=F64)
    root[last + 1 :] *= 10
    return root @ root.mT


def drawn_maps(covariance, box, generator):
    """Two maps whose modes have these covariances, shell by shell, [2, D, D, D]."""
    white = torch.randn(2, box, box, box, generator=generator, dtype=F64)
    root = spread(torch.linalg.cholesky(covariance).movedim(0, -1), box)
    return ifft3(torch.einsum("abzyx,bzyx->azyx", root.to(torch.complex128), fft3(white))).real


def test_doubt_is_the_mean_over_components(generator):
    """Log densities at z, averaged over components drawn from their law."""
    problem, start = scattered(n=4, values=(6.0,))
    model, guide, stack = problem.model, problem.guide(start), problem.stack
    covariance = jumping(6, generator)
    z = torch.randn(4, 1, generator=generator, dtype=F64)

    def at_z(one):  # all are quadratic in z
        return one.log_joint - (z - one.mean)[:, 0] ** 2 / one.covariance[:, 0, 0] / 2

    wanted = at_z(latents(model, guide, stack, covariance=covariance))
    found = []
    for _ in range(400):
        drawn = problem.guide(start + drawn_maps(covariance, 8, generator))
        found.append(at_z(latents(model, drawn, stack)))
    found = torch.stack(found)
    assert float(found.std(0).min()) > 1  # nats: it matters
    error = found.std(0) / len(found) ** 0.5
    assert float(((found.mean(0) - wanted) / error).abs().max()) < 4  # of 4, at 1e-4


def test_the_divergence_is_that_of_normal_maps(generator):
    parts, tau2 = smooth_maps(2, 8, generator), 0.2 + torch.rand(2, 6, dtype=F64)
    variance = 0.1 + torch.rand(2, 6, generator=generator, dtype=F64)
    found = modes_divergence(parts, torch.diag_embed(variance.T), tau2)
    wanted = sum(
        kl_divergence(FourierGaussian(map_, spread(v, 8)), SpectralGaussian(t, 8))
        for map_, v, t in zip(parts, variance, tau2, strict=True)
    )
    assert found == pytest.approx(float(wanted))


@pytest.mark.parametrize("doubt", [False, True])
def test_a_mode_that_is_not_there_vanishes(doubt):
    problem = moving(n=150, values=(1e-3,), mean=20.0, dtype=torch.float32, radius=3)
    state = problem.state()
    algorithm = ModesEM(seed=1, doubt=doubt, noise=False, gain=-math.inf, max_iterations=20)
    while not state.done:
        algorithm.step(state, problem.stack)
    first, last = state.history[0], state.history[-1]
    assert last["singular_values"][0] < 0.01 * first["singular_values"][0]
    assert last["kind"].startswith("elbo") == doubt
    assert ("volume_kl" in last) == doubt


def test_principal_modes_are_orthogonal_and_give_the_same_maps(generator):
    parts, scale = smooth_maps(4, 8, generator), torch.tensor([0.5, 2.0, 1.0], dtype=F64)
    found = principal(parts, scale)
    flat = found.coefficients[1:].flatten(1)
    gram = torch.diag(found.singular_values**2)
    torch.testing.assert_close(flat @ flat.T, gram, atol=1e-12, rtol=0)
    z = scale * torch.randn(5, 3, generator=generator, dtype=F64)
    maps = torch.einsum("nk,kx->nx", z, parts[1:].flatten(1))
    torch.testing.assert_close(found.latent(z) @ flat, maps)
    law = torch.diag(scale**2)
    torch.testing.assert_close(found.covariance(law), torch.eye(3, dtype=F64))
    largest = flat.gather(1, flat.abs().argmax(1, keepdim=True))
    assert (largest > 0).all() and (found.singular_values.diff() < 0).all()


def test_expansion_takes_the_law_of_z_into_the_modes(generator):
    parts, scale = smooth_maps(3, 8, generator), torch.tensor([0.5, 2.0], dtype=F64)
    mean = torch.randn(30, 2, generator=generator, dtype=F64)
    covariance = torch.eye(2, dtype=F64).expand(30, 2, 2) * 0.3
    spreads = torch.eye(3, dtype=F64).expand(6, 3, 3)
    blank = ModesSolution(parts, torch.ones_like(parts), spreads, 0)
    after = expanded(blank, mean, covariance, scale, move_mean=True)
    found = after.coefficients.flatten(1)
    law = mean.T.cov(correction=0) + 0.3 * torch.eye(2, dtype=F64)
    old, new = parts.flatten(1)[1:], found[1:] * scale[:, None]
    torch.testing.assert_close(new.T @ new, old.T @ law @ old)
    torch.testing.assert_close(found[0], parts[0].flatten() + mean.mean(0) @ old)
    turn = torch.linalg.lstsq(parts.flatten(1).T, found.T).solution  # columns: new of old
    torch.testing.assert_close(after.covariance[0], turn.T @ turn)
    held = expanded(blank, mean, covariance, scale, move_mean=False).coefficients
    assert held[0].equal(parts[0])


def test_prior_powers_are_a_fixed_point_where_the_data_say_all(generator):
    parts = smooth_maps(3, 8, generator)
    nothing = torch.zeros(6, 3, 3, dtype=F64)
    sure = ModesSolution(parts, torch.full_like(parts, 1e6), nothing, 0)
    found = mode_tau2(torch.ones(3, 6, dtype=F64), sure, 2)
    assert found.equal(mode_tau2(torch.ones(3, 6, dtype=F64), sure, 2, doubt=True))
    assert found.shape == (3, 6) and (found > 0).all()
    power = (fft3(parts).abs() ** 2)[:, 4, 4, 4]
    torch.testing.assert_close(found[:, 0], power)
    assert found[:, 3:].equal(found[:, 2:3].expand(3, 3))


def test_random_modes_are_repeatable_and_of_the_asked_norm(generator):
    mean = smooth_maps(1, 8, generator)[0]
    one, two = (random_modes(mean, 3, 0.3, torch.Generator().manual_seed(4)) for _ in range(2))
    assert one.equal(two)
    norms = one.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, 0.3 * mean.norm() * torch.ones(3, dtype=F64))


def test_wrong_ways_are_told():
    with pytest.raises(InputError, match="hard EM"):
        ModesEM(seed=1, orthonormal=True)
    with pytest.raises(InputError, match="hard EM"):
        ModesEM(seed=1, hard=True, doubt=True)
    problem = moving(n=4)
    state = problem.state()
    state.half.guide.conformation = Known(problem.z)
    with pytest.raises(InputError, match="ConditionalGaussian"):
        ModesEM(seed=1).step(state, problem.stack)
