"""The exact posterior of linear modes beside dense Gaussians of all pixels and quadrature."""

from math import log

import pytest
import torch
from moving import moving, pixel_components
from problems import dense_covariance, make_problem
from torch.distributions import MultivariateNormal

from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.inference.linear_posterior import components, latents, prior_scale
from cryoprob.inference.treatments.conditional_gaussian import ConditionalGaussian
from cryoprob.models.conformations.classes import Classes
from cryoprob.models.contrast import Contrast
from cryoprob.models.volumes.base import Volume

F64 = torch.float64
SCALE = torch.tensor([0.7, 1.6], dtype=F64)


def tilted(box=6, n=5, values=(6.0, 3.0), scale=SCALE, **options):
    """Two optics groups of colored noise, CTF, shifts, contrast, and a prior that is not N(0, I)."""
    problem = moving(box=box, n=n, values=values, scale=scale, groups=2, **options)
    noise = problem.model.noise.sigma2
    noise.copy_(0.5 + torch.rand(noise.shape, generator=torch.Generator().manual_seed(2)))
    contrast = Contrast(n, dtype=noise.dtype)
    contrast.scale.copy_(torch.linspace(0.8, 1.3, n))
    contrast.spread.copy_(torch.linspace(1.2, 0.9, n))
    problem.model.contrast = contrast
    return problem


@pytest.fixture(scope="module")
def problem():
    return tilted()


def posterior(problem):
    return latents(problem.model, problem.guide(problem.truth), problem.stack)


def test_posterior_and_evidence_are_those_of_dense_gaussians(problem):
    model, stack = problem.model, problem.stack
    parts = pixel_components(problem, problem.truth)
    pixels = full_band(stack.box).unpack(stack.batch(torch.arange(5), full_band(6), F64).image)
    found = posterior(problem)
    for i, x in enumerate(pixels.flatten(1)):
        spread = model.contrast.spread[i] ** 2
        noise = dense_covariance(model.noise.sigma2[stack.group[i]], stack.box) * spread
        modes = parts[1:, i].T * SCALE
        law = MultivariateNormal(parts[0, i], noise + modes @ modes.T)
        gain = (modes * SCALE) @ torch.eye(2, dtype=F64)
        weight = torch.linalg.solve(law.covariance_matrix, gain)
        mean = weight.T @ (x - parts[0, i])
        covariance = torch.diag(SCALE**2) - weight.T @ gain
        assert float(found.log_evidence[i]) == pytest.approx(float(law.log_prob(x)), abs=1e-9)
        torch.testing.assert_close(found.mean[i], mean, atol=1e-9, rtol=0)
        torch.testing.assert_close(found.covariance[i], covariance, atol=1e-9, rtol=0)


@pytest.mark.parametrize("size", [1, 2])
def test_evidence_is_the_integral_of_the_model_over_z(size):
    problem = tilted(n=3, values=(6.0, 3.0)[:size], scale=SCALE[:size])
    found, model = posterior(problem), problem.model
    step = 0.25  # the trapezoidal rule of a Gaussian: error exp(-2 pi^2 / 0.25^2) of nothing
    line = step * torch.arange(-32, 33, dtype=F64)
    unit = torch.cartesian_prod(*[line] * size).reshape(-1, size)
    root = torch.linalg.cholesky(found.covariance)
    z = found.mean + torch.einsum("nkl,ql->qnk", root, unit)
    batch = problem.stack.batch(torch.arange(3), full_band(6), F64)
    poses = problem.stack.rotation, problem.stack.shift
    law = model.likelihood(problem.truth, *poses, batch, z)
    value = law.log_prob(batch.image) + model.conformation.prior().log_prob(z)
    volume = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    total = torch.logsumexp(value, 0) + volume + size * log(step)
    torch.testing.assert_close(total, found.log_evidence, atol=1e-9, rtol=0)
    peak = value[len(unit) // 2]
    torch.testing.assert_close(peak, found.log_joint, atol=1e-9, rtol=0)


def test_moments_are_those_of_one_and_z(problem):
    found = posterior(problem)
    first, second = found.moments()
    assert first[:, 0].eq(1).all() and second[:, 0].equal(first)
    outer = found.covariance + found.mean[:, :, None] * found.mean[:, None]
    torch.testing.assert_close(second[:, 1:, 1:], outer)
    assert not found.modal().covariance.any()


def test_any_order_of_images_gives_the_same_rows(problem):
    every = posterior(problem)
    index = torch.tensor([3, 0, 4])
    some = latents(problem.model, problem.guide(problem.truth), problem.stack, index)
    torch.testing.assert_close(some.mean, every.mean[index])
    torch.testing.assert_close(some.log_evidence, every.log_evidence[index])


def test_single_precision_agrees():
    wide, narrow = (posterior(tilted(dtype=kind)) for kind in (F64, torch.float32))
    # sums of some hundred products of size 10: 1e-6 each
    torch.testing.assert_close(narrow.mean, wide.mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(narrow.log_evidence, wide.log_evidence, atol=1e-3, rtol=0)


class Wrapped(Volume):
    """Linear modes that only say that they are linear."""

    linear_in_conformation = True

    def __init__(self, inner):
        super().__init__()
        self.inner, self.conformation_size = inner, inner.conformation_size
        self.slices, self.prior, self.density = inner.slices, inner.prior, inner.density
        self.start, self.set_band, self.band = inner.start, inner.set_band, inner.band

    prior = slices = density = start = set_band = None


def test_components_of_any_volume_that_is_linear_are_found(problem):
    volume, rotation = problem.model.volume, problem.stack.rotation
    own = components(volume, problem.truth, rotation)
    found = components(Wrapped(volume), problem.truth, rotation)
    torch.testing.assert_close(found, own)


def test_what_is_not_linear_and_normal_is_refused(problem):
    other = make_problem(n=2)
    rotation = other.stack.rotation
    with pytest.raises(InputError, match="linear in the conformation"):
        components(other.model.volume, other.volume, rotation)
    with pytest.raises(InputError, match="normal prior"):
        prior_scale(other.model)
    guide = problem.guide(problem.truth)
    guide.rotation = other.guide.rotation
    with pytest.raises(InputError, match="known poses"):
        latents(problem.model, guide, problem.stack)
    classes = tilted()
    classes.model.conformation = Classes(torch.ones(2))
    with pytest.raises(InputError, match="normal prior"):
        posterior(classes)


def test_the_site_is_not_for_draws(problem):
    guide = problem.guide(problem.truth)
    batch = problem.stack.batch(torch.arange(5), full_band(6), F64)
    assert not ConditionalGaussian.enumerates
    assert guide.kind == "log_evidence"
    with pytest.raises(InputError, match="sums it out"):
        guide.draw(batch, 1)
    with pytest.raises(InputError, match="ModesEM"):
        guide(batch)
