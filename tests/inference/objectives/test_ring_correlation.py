"""Ring correlation: scale does not count, the density is one, and the concentration's estimate."""

import pytest
import torch
from problems import make_problem
from scipy import stats

from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.inference.objectives.ring_correlation import (
    RingCorrelation,
    concentration,
    log_normalizer,
    ring_correlation,
)

F64 = torch.float64


@pytest.fixture
def problem():
    return make_problem(contrast=False, signal=1.5).continuous()


def test_an_image_with_itself_and_scaled_rings(generator):
    band = full_band(12).prefix(5)
    one, other = (band.pack(torch.randn(3, 12, 12, generator=generator, dtype=F64)) for _ in "ab")
    found = ring_correlation(band, one, other)
    torch.testing.assert_close(
        ring_correlation(band, one, one)[:, :6], torch.ones(3, 6, dtype=F64)
    )
    gains = 0.5 + torch.rand(band.n_shells, generator=generator, dtype=F64)
    scaled = other * gains[band.shell]
    torch.testing.assert_close(ring_correlation(band, one, scaled), found)
    # by hand, on the whole plane
    fourier = [torch.fft.fftshift(torch.fft.fft2(band.unpack(v)), (-2, -1)) for v in (one, other)]
    k = torch.arange(12) - 6
    shell = torch.floor((k[:, None] ** 2 + k**2).double().sqrt() + 0.5)
    for ring in (1, 4):
        a, b = (v[:, shell == ring] for v in fourier)
        wanted = (a.conj() * b).real.sum(1) / (
            a.abs().square().sum(1) * b.abs().square().sum(1)
        ).sqrt()
        torch.testing.assert_close(found[:, ring], wanted)


def test_the_objective_does_not_see_the_scale(problem):
    objective = RingCorrelation(5.0, first=1)
    values = [
        objective(problem.model, problem.guide, scale * problem.volume, problem.batch)
        for scale in (1.0, 7.0)
    ]
    torch.testing.assert_close(*values)


@pytest.mark.parametrize("numbers", [2, 3, 8])
def test_the_density_is_normalized(numbers):
    """Its integral over the sphere: the constant is that of scipy's distribution."""
    kappa = torch.tensor([0.7, 4.0], dtype=F64)
    found = log_normalizer(kappa, torch.full((2,), float(numbers), dtype=F64))
    axis = [1.0] + [0.0] * (numbers - 1)
    wanted = [stats.vonmises_fisher(axis, float(k)).logpdf(axis) - float(k) for k in kappa]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=F64), rtol=1e-9, atol=1e-9)


def test_the_concentration_that_draws_have():
    """Banerjee's estimate is within 5 % where numbers are few, and better where there are more."""
    for numbers in (3, 20):
        law = stats.vonmises_fisher([1.0] + [0.0] * (numbers - 1), 12.0)
        mean = law.rvs(20000, random_state=1)[:, 0].mean()
        counts = torch.tensor([float(numbers)])
        found = concentration(torch.tensor([mean], dtype=F64), counts)
        assert abs(float(found) / 12 - 1) < 0.05


def test_a_concentration_below_zero_is_refused():
    with pytest.raises(InputError, match="positive"):
        RingCorrelation(-1.0)
