"""Draws of the map, and likelihoods of images, whose contrast and defocus are summed out."""

from types import SimpleNamespace

import pytest
import torch
from imaged import F64, imaged_model, make_imaged

from cryoprob.checks import InputError
from cryoprob.inference.expectation import expectation
from cryoprob.inference.half import Half
from cryoprob.inference.imaging import exact_imaging
from cryoprob.inference.m_step import solve_volume
from cryoprob.inference.model_comparison import held_out
from cryoprob.inference.volume_draws import draw_volumes, log_likelihood
from cryoprob.models.gaussian_contrast import GaussianContrast
from cryoprob.models.gaussian_defocus import GaussianDefocus

COUNT, SPREAD, ERROR_A = 24, 0.2, 300.0


@pytest.fixture(scope="module")
def imaged():
    return make_imaged(box=12, n=COUNT, power=2000.0, spread=SPREAD, error_A=ERROR_A)


def half_of(imaged, *priors, index=None):
    """True map and known poses, with priors of what is latent."""
    model = imaged_model(12, *priors)
    guide = imaged.guide(**exact_imaging(model))
    return Half(model, guide, torch.arange(COUNT) if index is None else index)


@pytest.fixture(scope="module")
def half(imaged):
    return half_of(imaged, GaussianContrast(SPREAD, F64), GaussianDefocus(ERROR_A, 5, F64))


def test_the_likelihood_of_a_map_by_quadrature(imaged, half):
    # posteriors of the contrast are 0.02 wide or more, and so trapezoids of 0.01 are exact
    points = torch.arange(-1.2, 1.2, 0.01, dtype=F64)
    mass = -((points / SPREAD) ** 2) / 2
    mass, each = mass - mass.logsumexp(0), []
    nodes, volume, batch = half.model.defocus, 0.9 * imaged.volume, imaged.batch
    for node, share in zip(nodes.points, nodes.log_mass, strict=True):
        off = node.expand(COUNT)
        for point, weight in zip(points, mass, strict=True):
            seen = (1 + point).expand(COUNT)
            law = half.model.likelihood(volume, *imaged.poses, batch, None, seen, off)
            each.append(law.log_prob(batch.image) + share + weight)
    found = log_likelihood(half, volume, imaged.stack)
    torch.testing.assert_close(found, torch.stack(each).logsumexp(0), rtol=1e-9, atol=1e-7)


def test_draws_of_the_map_are_of_its_posterior(imaged, half):
    """Whitened distances from the mean are chi-square with as many degrees as there are voxels."""
    found = draw_volumes(half, imaged.stack, chains=4, draws=10, seed=3)
    sums = expectation(half.model, half.guide, imaged.stack).parts[0].insertion
    equations, prior = sums.equations(release=False), half.model.linear_volume.prior()
    tau2, zero = half.model.linear_volume.tau2, torch.zeros_like(imaged.volume)
    mean = solve_volume(equations, tau2, zero, tolerance=1e-9, max_iterations=500).volume
    away = [one - mean for one in found.volume.flatten(0, 1)]
    square = torch.stack(
        [
            (d * equations.apply(d)).sum() + 2 * (prior.log_prob(zero) - prior.log_prob(d))
            for d in away
        ]
    )
    size, count = mean.numel(), len(away)
    # the mean of 40 numbers of variance 2 * 1728 at five standard errors, and their variance
    assert float(square.mean()) == pytest.approx(size, abs=5 * (2 * size / count) ** 0.5)
    assert 0.3 < float(square.var()) / (2 * size) < 2.5
    wrong = torch.stack([(d * equations.apply(d)).sum() for d in away])
    assert float(wrong.mean()) < size - 5 * (2 * size / count) ** 0.5
    assert found.log_likelihood.shape == (4, 10, COUNT)


def test_images_that_were_not_fitted_tell_which_model_is_right(imaged, half):
    told, plain = (
        held_out(SimpleNamespace(fitted=one), imaged.stack) for one in (half, half_of(imaged))
    )
    gain = told.above(plain)
    assert gain.mean > 3 * gain.error > 0  # odds of a thousandth, were they alike


def test_classes_refuse():
    model = SimpleNamespace(conformation=object())
    with pytest.raises(InputError, match="draws of the map: expected one map"):
        draw_volumes(SimpleNamespace(model=model), None, seed=1)
