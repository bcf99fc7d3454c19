"""Normal laws of maps: their density, draws and divergence held against dense Gaussians."""

import pytest
import torch
from dense_maps import covariance, some_variance
from scipy import stats
from torch.distributions import MultivariateNormal, kl_divergence

from cryoprob.fourier.shells import shell_index_3d
from cryoprob.models.volumes.fourier_gaussian import FourierGaussian
from cryoprob.models.volumes.fourier_voxels import SpectralGaussian

F64 = torch.float64
TIGHT = {"rtol": 1e-10, "atol": 1e-10}  # 64 numbers in float64


def some_law(box, generator):
    loc = torch.randn(box, box, box, generator=generator, dtype=F64)
    return FourierGaussian(loc, some_variance(box, generator))


def dense(law):
    return MultivariateNormal(law.loc.flatten(), covariance(law.spectrum))


def draws(law, count, seed=2):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return law.rsample((count,))


def test_density_is_that_of_all_voxels(generator):
    law = some_law(4, generator)
    maps = torch.randn(3, 4, 4, 4, generator=generator, dtype=F64)
    wanted = dense(law).log_prob(maps.flatten(1))
    torch.testing.assert_close(law.log_prob(maps), wanted, **TIGHT)


def test_draws_follow_the_density(generator, false_alarm):
    law = some_law(4, generator)
    maps = draws(law, 1000)
    root = torch.linalg.cholesky(covariance(law.spectrum))
    away = (maps - law.loc).flatten(1).T
    white = torch.linalg.solve_triangular(root, away, upper=False)
    assert stats.kstest(white.flatten().numpy(), "norm").pvalue > false_alarm / 2
    square = white.square().sum(0).numpy()
    assert stats.kstest(square, stats.chi2(64).cdf).pvalue > false_alarm / 2


def test_gradients_go_through_the_draws(generator):
    law = some_law(4, generator)
    loc, spectrum = law.loc.requires_grad_(), law.spectrum.requires_grad_()
    assert FourierGaussian.has_rsample
    draws(FourierGaussian(loc, spectrum), 2).square().sum().backward()
    assert float(loc.grad.abs().min()) > 0 and float(spectrum.grad.abs().max()) > 0


def test_divergence_is_that_of_dense_gaussians(generator):
    one, other = some_law(4, generator), some_law(4, generator)
    torch.testing.assert_close(kl_divergence(one, other), kl_divergence(dense(one), dense(other)))
    assert float(kl_divergence(one, one)) == pytest.approx(0, abs=1e-12)
    tau2 = torch.tensor([2.0, 1.0, 0.5, 0.2], dtype=F64)
    prior = SpectralGaussian(tau2, 4)
    wide = covariance(tau2[shell_index_3d(4)])
    wanted = kl_divergence(dense(one), MultivariateNormal(torch.zeros(64, dtype=F64), wide))
    torch.testing.assert_close(kl_divergence(one, prior), wanted)
    assert kl_divergence(one, prior).dtype == F64


def test_divergence_by_draws(generator):
    one, other = some_law(6, generator), some_law(6, generator)
    maps = draws(one, 2000)
    ratio = one.log_prob(maps) - other.log_prob(maps)
    error = float(ratio.std()) / 2000**0.5
    # four standard errors, at a fixed seed
    assert abs(float(ratio.mean() - kl_divergence(one, other))) < 4 * error


def test_batches_of_maps(generator):
    law = some_law(4, generator)
    many = law.expand([5])
    assert draws(many, 2).shape == (2, 5, 4, 4, 4) and many.log_prob(law.loc).shape == (5,)
    assert many.mean.shape == many.variance.shape == (5, 4, 4, 4)
    voxels = covariance(law.spectrum).diagonal().view(4, 4, 4)
    torch.testing.assert_close(law.variance, voxels, **TIGHT)
    prior = SpectralGaussian(torch.ones(4, dtype=F64), 4).expand([3])
    assert isinstance(prior, SpectralGaussian) and draws(prior, 2).shape == (2, 3, 4, 4, 4)
    assert kl_divergence(many, prior.expand([5])).shape == (5,)
