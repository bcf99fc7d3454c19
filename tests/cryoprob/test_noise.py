"""Noise as a distribution: dense covariance, goodness of fit, no symmetry, flat spectrum."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.distributions import MultivariateNormal

from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.fourier.transforms import ifft2
from cryoprob.noise import RadialNoise, WhiteNoise, shell_power


def spectrum(box, dtype=torch.float64):
    """A steep spectrum, over a factor of 30, with an odd value in the corners."""
    shells = torch.arange(box // 2 + 2, dtype=dtype)
    sigma2 = 0.3 + 9 / (1 + shells)
    sigma2[-1] = 2.0
    return sigma2


def noises(box, dtype=torch.float64):
    return {
        "white": WhiteNoise(torch.tensor(1.7, dtype=dtype), box),
        "radial": RadialNoise(spectrum(box, dtype), box),
    }


def dense(noise):
    """The full covariance of all pixels, by sums of cosines over all D^2 frequencies."""
    box = noise.box
    if isinstance(noise, WhiteNoise):
        return torch.eye(box**2).double() * noise.sigma2
    k = np.arange(-(box // 2), box // 2)
    covariance = np.zeros((box**2, box**2))
    y, x = (g.ravel() for g in np.meshgrid(np.arange(box), np.arange(box), indexing="ij"))
    for ky in k:
        for kx in k:
            shell = min(math.floor(math.hypot(kx, ky) + 0.5), box // 2 + 1)
            phase = 2 * np.pi * (kx * (x[:, None] - x) + ky * (y[:, None] - y)) / box
            covariance += float(noise.sigma2[shell]) * np.cos(phase) / box**2
    return torch.from_numpy(covariance)


def point_mirror(images):
    """Images turned by 180 degrees about the origin D // 2 (rows and columns 1 ... D - 1)."""
    return torch.roll(images.flip(-2, -1), (1, 1), (-2, -1))


def mirror_score(images):
    """Correlation with the own point mirror, in its standard errors under independent pixels.

    Pairs of pixels appear twice in the sum and the four own mirrors are left out, so the sum of
    n D^2 - 4 n products of unit variance has a variance of twice that.
    """
    box = images.shape[-1]
    product = images * point_mirror(images)
    own = torch.zeros(box, dtype=torch.bool)
    own[[0, box // 2]] = True
    keep = ~(own[:, None] & own)
    total = product[..., keep].sum() / images.square().mean()
    return float(total / math.sqrt(2 * images[..., keep].numel()))


@pytest.mark.parametrize("kind", ["white", "radial"])
@pytest.mark.parametrize("box", [4, 6])
def test_log_prob_is_that_of_the_dense_normal(kind, box, generator):
    noise = noises(box)[kind]
    oracle = MultivariateNormal(torch.zeros(box**2).double(), dense(noise))
    images = torch.randn(5, box, box, generator=generator, dtype=torch.float64) * 2
    want = oracle.log_prob(images.flatten(1))
    # sums of 36 numbers in double; the Cholesky factor's condition number is 30
    torch.testing.assert_close(noise.log_prob(images), want, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("kind", ["white", "radial"])
def test_variance_is_the_diagonal_of_the_dense_covariance(kind):
    noise = noises(6)[kind]
    torch.testing.assert_close(noise.variance.flatten(), dense(noise).diagonal())
    torch.testing.assert_close(noise.mean, torch.zeros(6, 6).double())


@pytest.mark.parametrize("kind", ["white", "radial"])
def test_samples_have_the_dense_covariance(kind, generator, false_alarm):
    """Samples whitened by the dense Cholesky factor are independent standard normals."""
    noise = noises(6)[kind]
    root = torch.linalg.cholesky(dense(noise))
    images = noise.sample((4000,), generator).flatten(1)
    white = torch.linalg.solve_triangular(root, images.T, upper=False)
    assert stats.kstest(white.flatten().numpy(), "norm").pvalue > false_alarm
    scatter = white @ white.T  # Bartlett: 2 (log-likelihood ratio against any covariance)
    count, size = images.shape
    ratio = count * (torch.trace(scatter) / count - size - torch.logdet(scatter / count))
    # 4000 samples make the asymptotic chi-square good to a percent (Box's factor 1 - 13/4000)
    ratio = float(ratio) * (1 - (2 * size + 1 - 2 / (size + 1)) / (6 * count))
    assert stats.chi2.sf(ratio, size * (size + 1) / 2) > false_alarm


@pytest.mark.parametrize("kind", ["white", "radial"])
def test_sample_agrees_with_log_prob(kind, generator, false_alarm):
    """-2 (log density - its maximum) of a sample is chi-square with D^2 degrees of freedom."""
    noise = noises(8)[kind]
    images = noise.sample((5000,), generator)
    square = 2 * (noise.log_prob(torch.zeros(8, 8).double()) - noise.log_prob(images))
    assert stats.kstest(square.numpy(), "chi2", args=(64,)).pvalue > false_alarm


@pytest.mark.parametrize("kind", ["white", "radial"])
def test_samples_are_not_point_symmetric(kind, generator, false_alarm):
    noise = noises(32)[kind]
    white = noise.whiten(noise.sample((50,), generator))
    assert abs(mirror_score(white)) < stats.norm.isf(false_alarm / 2)


def test_the_test_of_symmetry_sees_real_coefficients(generator, false_alarm):
    """Noise from real Fourier coefficients has the right variance and is its own point mirror."""
    real = torch.randn(50, 32, 32, generator=generator, dtype=torch.float64)
    images = ifft2(real + point_mirror(real)).real / math.sqrt(2)
    assert float(images.var()) == pytest.approx(1, abs=0.1)
    assert mirror_score(images) > 10 * stats.norm.isf(false_alarm / 2)


@pytest.mark.parametrize("kind", ["white", "radial"])
def test_whitened_spectrum_is_flat(kind, generator, false_alarm):
    box, count = 16, 400
    noise = noises(box)[kind]
    power = shell_power(noise.whiten(noise.sample((count,), generator))).sum(0)
    freedom = count * full_band(box).numbers_per_shell()
    tail = 2 * np.minimum(stats.chi2.cdf(power, freedom), stats.chi2.sf(power, freedom))
    assert tail.min() > false_alarm / len(tail)


def test_power_is_per_shell_and_adds_up(generator):
    images = torch.randn(3, 2, 12, 12, generator=generator, dtype=torch.float64)
    noise = RadialNoise(spectrum(12), 12)
    power = noise.power(images)
    assert power.shape == (3, 2, 8)
    torch.testing.assert_close(power.sum(-1), images.square().sum((-2, -1)))
    wave = torch.cos(2 * torch.pi * 3 * torch.arange(12).double() / 12).expand(12, 12)
    torch.testing.assert_close(shell_power(wave)[3], wave.square().sum())


def test_flat_radial_noise_is_white_noise(generator):
    white = WhiteNoise(torch.tensor(1.7).double(), 16)
    flat = RadialNoise(torch.full((10,), 1.7).double(), 16)
    images = white.sample((4,), generator)
    torch.testing.assert_close(flat.log_prob(images), white.log_prob(images))
    torch.testing.assert_close(flat.whiten(images), white.whiten(images))


@pytest.mark.parametrize("kind", ["white", "radial"])
def test_batches_equal_loops_and_expand(kind, generator):
    one = noises(8)[kind]
    scale = torch.tensor([0.5, 1.0, 4.0]).double()
    tail = one.sigma2.dim()
    many = type(one)(scale.reshape(3, *[1] * tail) * one.sigma2, 8)
    images = torch.randn(3, 8, 8, generator=generator, dtype=torch.float64)
    alone = [type(one)(s * one.sigma2, 8).log_prob(i) for s, i in zip(scale, images, strict=True)]
    torch.testing.assert_close(many.log_prob(images), torch.stack(alone))
    wide = many.expand((2, 3))
    assert (wide.batch_shape, wide.event_shape) == ((2, 3), (8, 8))
    assert wide.sample((5,), generator).shape == (5, 2, 3, 8, 8)
    torch.testing.assert_close(wide.log_prob(images)[1], many.log_prob(images))
    assert wide.variance.shape == (2, 3, 8, 8)


@pytest.mark.parametrize("kind", ["white", "radial"])
def test_samples_repeat_with_the_generator_and_follow_the_type(kind):
    noise = noises(8, torch.float32)[kind]
    first, again = (noise.sample((2,), torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first[0], first[1])
    assert first.dtype == noise.log_prob(first).dtype == torch.float32
    assert noise.log_prob(first.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", ["white", "radial"])
def test_log_prob_and_rsample_have_gradients(kind, generator):
    sigma2 = noises(4)[kind].sigma2.clone().requires_grad_()
    image = torch.randn(4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    family = {"white": WhiteNoise, "radial": RadialNoise}[kind]
    assert torch.autograd.gradcheck(lambda s, x: family(s, 4).log_prob(x), (sigma2, image))
    again = torch.Generator
    assert torch.autograd.gradcheck(
        lambda s: family(s, 4).rsample((), again().manual_seed(1)), (sigma2,)
    )
    assert not family(sigma2, 4).sample().requires_grad


def test_bad_parameters_are_refused():
    with pytest.raises(InputError, match="even"):
        WhiteNoise(torch.tensor(1.0), 7)
    with pytest.raises(InputError, match="10 shells for a box of 16"):
        RadialNoise(torch.ones(9), 16)
    with pytest.raises(InputError, match="10 shells"):
        RadialNoise(torch.tensor(1.0), 16)
    for value in (torch.zeros(10), torch.full((10,), float("nan"))):
        with pytest.raises(ValueError, match="sigma2"):
            RadialNoise(value, 16)
    with pytest.raises(ValueError, match="sigma2"):
        WhiteNoise(torch.tensor(-1.0), 16)
    with pytest.raises(ValueError, match="event_shape|size|shape"):
        WhiteNoise(torch.tensor(1.0), 16).log_prob(torch.zeros(8, 8))
