"""Each conditional of the Gibbs sampler is exact, and so is their alternation."""

import pytest
import torch
from brute_force import BruteForce
from problems import make_problem
from scipy import stats

from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.fourier.normal import Insertion
from cryoprob.fourier.shells import shell_counts, shell_sum
from cryoprob.fourier.transforms import fft3
from cryoprob.inference.gibbs import Gibbs, GibbsState, sample_gibbs
from cryoprob.inference.m_step import posterior_sample
from cryoprob.noise import shell_power
from cryoprob.particles import ParticleStack

F64 = torch.float64


def dense_posterior(problem, rotation, shift):
    """Mean and precision of all voxels given the poses, from the model's means of unit voxels."""
    model, batch, box = problem.model, problem.batch, problem.stack.box
    voxels = torch.eye(box**3, dtype=F64).reshape(-1, box, box, box)
    law = model.likelihood(voxels[:, None], rotation, shift, batch)
    scale = law.sigma2[:, law.band.shell].sqrt()
    design = torch.view_as_real((law.mean / scale).resolve_conj()).flatten(1)
    images = torch.view_as_real(batch.image / scale).flatten()
    prior = torch.autograd.functional.hessian(
        lambda v: -model.volume.prior().log_prob(v), problem.volume
    )
    precision = design @ design.T + prior.reshape(box**3, box**3)
    return torch.linalg.solve(precision, design @ images), precision


def whitened(draws, mean, precision):
    """Coordinates [K, D^3] in which the posterior is white."""
    return (draws.flatten(1) - mean) @ torch.linalg.cholesky(precision)


def known_state(problem):
    rotation, shift = problem.stack.rotation, problem.stack.shift
    sigma2 = problem.model.noise.sigma2
    return GibbsState(problem.volume, rotation, shift, sigma2, torch.zeros((), dtype=F64))


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_volumes_have_the_exact_mean_and_covariance(interpolation, false_alarm, generator):
    # two groups, CTF, contrast, all D^3 voxels; a prior too wide to hide the images' part
    problem = make_problem(box=6, n=12, tau2=10.0, interpolation=interpolation)
    state = known_state(problem)
    sampler = Gibbs(problem.model, problem.stack, tolerance=1e-5)
    draws = torch.stack([sampler.draw_volume(state, generator) for _ in range(25)])
    mean, precision = dense_posterior(problem, state.rotation, state.shift)
    values, ways = torch.linalg.eigh(precision)
    away = (draws.flatten(1) - mean) @ ways * values.sqrt()
    seen = values > 1.0  # ten times the prior's precision
    assert 40 < int(seen.sum()) < 180
    for part in (away[:, seen], away[:, ~seen]):
        assert stats.kstest(part.flatten().numpy(), "norm").pvalue > false_alarm / 4
        square, count = float(part.square().sum()), part.numel()
        assert abs(square - count) / (2 * count) ** 0.5 < stats.norm.isf(false_alarm / 8)
    # draw by draw they are independent
    assert abs(float((away[1:] * away[:-1]).mean())) < 4 / (24 * 216) ** 0.5


def test_poses_follow_their_posterior(false_alarm, generator):
    problem = make_problem(n=3)
    sampler, weights = Gibbs(problem.model, problem.stack, block_bytes=1), BruteForce(problem)
    turns, moves = problem.model.rotation.matrices(), problem.model.shift.points()
    counts = torch.zeros(3, 72, 5)
    for _ in range(400):
        state = sampler.init(problem.volume, generator)
        turn = (state.rotation[:, None] - turns).abs().sum((-1, -2)).argmin(1)
        move = (state.shift[:, None] - moves).abs().sum(-1).argmin(1)
        counts[torch.arange(3), turn, move] += 1
    prior = problem.model.volume.prior().log_prob(problem.volume)
    assert float(state.log_joint) == pytest.approx(float(weights.evidence.sum() + prior))
    for found, wanted in zip(counts.flatten(1), weights.weights.flatten(1), strict=True):
        order = wanted.argsort(descending=True)
        many = order[wanted[order] * 400 > 5]
        assert len(many) > 2
        expected = torch.cat([wanted[many] * 400, (1 - wanted[many].sum())[None] * 400])
        seen = torch.cat([found[many].double(), 400 - found[many].double().sum()[None]])
        fit = stats.chisquare(seen.numpy(), expected.numpy())
        assert fit.pvalue > false_alarm / 3


def test_noise_follows_its_inverse_gamma(false_alarm, generator):
    problem = make_problem(n=6)
    state = known_state(problem)
    sampler = Gibbs(problem.model, problem.stack, noise_prior=(3.0, 2.0))
    draws = torch.stack([sampler._draw_noise(problem.volume, state, generator) for _ in range(60)])
    # residuals in real space, by the shells of their transform
    model, batch = problem.model, problem.batch
    law = model.likelihood(problem.volume, state.rotation, state.shift, batch)
    _, spread = model.contrast(torch.arange(6))
    pixels = full_band(8).unpack((batch.image - law.mean) / spread[:, None])
    power, numbers = shell_power(pixels), full_band(8).numbers_per_shell()
    for group in (0, 1):
        mine = problem.stack.group == group
        rate = 2.0 + power[mine].sum(0) / 2
        shape = 3.0 + int(mine.sum()) * numbers / 2
        uniform = stats.invgamma(shape.numpy(), scale=rate.numpy()).cdf(draws[:, group].numpy())
        assert stats.kstest(uniform.flatten(), "uniform").pvalue > false_alarm / 2


def fresh_images(problem, state):
    """Images anew from the model, at a state."""
    problem.model.noise.sigma2.copy_(state.sigma2)
    law = problem.model.likelihood(state.volume, state.rotation, state.shift, problem.batch)
    stack = problem.stack
    pixels = full_band(stack.box).unpack(law.sample())
    return ParticleStack.from_arrays(pixels, 5.0, stack.optics, group=stack.group)


def prior_state(problem, noise_prior):
    """Everything hidden, from the model's priors."""
    model, count = problem.model, len(problem.stack)
    sigma2 = 1 / torch.distributions.Gamma(*torch.tensor(noise_prior, dtype=F64)).sample(
        model.noise.sigma2.shape
    )
    rotation, shift = (
        site.prior().expand((count,)).sample() for site in (model.rotation, model.shift)
    )
    return GibbsState(model.volume.prior().sample(), rotation, shift, sigma2, torch.zeros(()))


def alternate(kind, rounds, count):
    """States after alternations of step and fresh images, from draws of the joint prior."""
    problem = make_problem(box=4, n=6, tau2=2.0)
    generator, noise_prior, found = torch.Generator().manual_seed(3), (3.0, 1.0), []
    with torch.random.fork_rng():
        torch.manual_seed(5)
        for _ in range(count):
            state = prior_state(problem, noise_prior)
            for _ in range(rounds):
                images = fresh_images(problem, state)
                sampler = kind(problem.model, images, noise_prior=noise_prior, tolerance=1e-5)
                state = sampler.step(state, generator)
            found.append(state)
    return problem, found


def departures(problem, states):
    """Chance of the states, were they draws from the prior, number by number."""
    power = torch.stack([shell_sum(fft3(s.volume).abs() ** 2) for s in states])
    counts = shell_counts(4)
    chance = [
        stats.kstest((power[:, s] / 2.0).numpy(), stats.chi2(float(counts[s])).cdf).pvalue
        for s in range(3)
    ]
    sigma2 = torch.stack([s.sigma2 for s in states]).flatten(0, 1).numpy()
    law = stats.invgamma(3.0, scale=1.0)
    chance += [stats.kstest(sigma2[:, shell], law.cdf).pvalue for shell in range(4)]
    points, mass = problem.model.shift.points(), problem.model.shift.log_mass().exp()
    moves = torch.cat([s.shift for s in states])
    seen = (moves[:, None] == points).all(-1).sum(0)
    chance.append(stats.chisquare(seen.numpy(), (mass * len(moves)).numpy()).pvalue)
    turns = torch.cat([s.rotation for s in states])
    grid = problem.model.rotation.matrices()
    seen = torch.bincount((turns[:, None] - grid).abs().sum((-1, -2)).argmin(1), minlength=72)
    chance.append(stats.chisquare(seen.numpy()).pvalue)
    # what ties volume, poses and noise together: the whitened energy of the images' means
    with torch.random.fork_rng():
        torch.manual_seed(11)
        others = [prior_state(problem, (3.0, 1.0)) for _ in range(300)]
    energies = [[energy(problem, state) for state in both] for both in (states, others)]
    chance.append(stats.ks_2samp(*energies).pvalue)
    return chance


def energy(problem, state):
    """Of the images' noiseless means, whitened."""
    problem.model.noise.sigma2.copy_(state.sigma2)
    law = problem.model.likelihood(state.volume, state.rotation, state.shift, problem.batch)
    return float((law.mean.abs() ** 2 / law.sigma2[:, law.band.shell]).sum())


class NoNoise(Gibbs):
    """Forgets the noise of the images when it draws a map."""

    def draw_volume(self, state, generator):
        images, linear = self._images, self.model.linear_volume
        insertion = Insertion(linear.slicer)
        insertion.add(self._turned_back(state.shift), images.transfer, state.rotation)
        equations = insertion.equations()
        right, start = equations.right_side(), state.volume
        return posterior_sample(equations, linear.tau2, right, start, generator, self.tolerance)


class NoShift(Gibbs):
    """Forgets to move the images back."""

    def _turned_back(self, shift):
        return self._images.image


class HalfCount(Gibbs):
    """Counts complex coefficients where it should count numbers."""

    def _residual(self, volume, state):
        residual, count = super()._residual(volume, state)
        return residual, count / 2


def test_alternation_leaves_the_joint_law_as_it_is(false_alarm):
    # Geweke 2004, JASA 99, 799, from independent exact starts: no autocorrelation to guess
    chance = departures(*alternate(Gibbs, 2, 100))
    assert min(chance) > false_alarm / len(chance)


@pytest.mark.parametrize("wrong", [NoNoise, NoShift, HalfCount])
def test_the_alternation_finds_wrong_samplers(wrong):
    assert min(departures(*alternate(wrong, 2, 30))) < 1e-6


def test_chains_at_known_poses(false_alarm):
    problem = make_problem(box=6, n=8)
    poses = problem.stack.rotation, problem.stack.shift
    sampler = Gibbs(problem.model, problem.stack, poses=poses, tolerance=1e-4)
    starts = 10 * torch.stack([problem.volume, -problem.volume])
    chains = sample_gibbs(sampler, starts, warmup=1, draws=40, seed=3)
    assert chains.volume.shape == (2, 40, 6, 6, 6) and chains.rotation.shape == (2, 40, 8, 3, 3)
    assert (chains.rotation == poses[0]).all() and (chains.shift == poses[1]).all()
    away = whitened(chains.volume.flatten(0, 1), *dense_posterior(problem, *poses))
    assert stats.kstest(away.square().sum(1).numpy(), stats.chi2(216).cdf).pvalue > false_alarm
    assert stats.kstest(away.flatten().numpy(), "norm").pvalue > false_alarm
    # log joint: images at their poses and the prior
    volume = chains.volume[1, 7]
    law = problem.model.likelihood(volume, *poses, problem.batch)
    wanted = law.log_prob(problem.batch.image).sum() + problem.model.volume.prior().log_prob(
        volume
    )
    assert float(chains.log_joint[1, 7]) == pytest.approx(float(wanted))
    again = sample_gibbs(sampler, starts, warmup=1, draws=2, seed=3)
    assert again.volume.equal(chains.volume[:, :2])
    assert not again.volume[0].equal(again.volume[1])


def test_poses_and_density_are_of_the_new_noise(generator):
    problem = make_problem(box=6, n=4)
    sampler = Gibbs(problem.model, problem.stack, noise_prior=(3.0, 2.0))
    state = sampler.init(problem.volume, generator)
    problem.model.noise.sigma2.fill_(7.0)  # what the model has does not matter, only the state's
    state = sampler.step(state, generator)
    assert not (state.sigma2 == 7.0).any()
    problem.model.noise.sigma2.copy_(state.sigma2)
    problem.volume = state.volume
    wanted = BruteForce(problem).evidence.sum()
    wanted = wanted + problem.model.volume.prior().log_prob(state.volume)
    assert float(state.log_joint) == pytest.approx(float(wanted))


def test_chains_leave_the_models_noise_as_it_was():
    problem = make_problem(box=4, n=3)
    before = problem.model.noise.sigma2.clone()
    sampler = Gibbs(problem.model, problem.stack, noise_prior=(3.0, 2.0))
    chains = sample_gibbs(sampler, problem.volume[None], warmup=0, draws=3, seed=1)
    assert problem.model.noise.sigma2.equal(before)
    assert len(chains.sigma2.flatten(0, 1).unique(dim=0)) == 3
    assert chains.sigma2.shape == (1, 3, 2, 4)


def test_no_draws_are_refused():
    problem = make_problem(box=4, n=3)
    with pytest.raises(InputError, match="one or more"):
        sample_gibbs(
            Gibbs(problem.model, problem.stack), problem.volume[None], warmup=1, draws=0, seed=1
        )
