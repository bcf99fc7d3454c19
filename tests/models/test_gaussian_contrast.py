"""The contrast as a latent site: its prior, its place in the model, and where it is absent."""

import pytest
import torch
from imaged import F64, make_imaged
from problems import make_problem
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO
from pyro.infer.mcmc.util import initialize_model
from scipy import stats

from cryoprob.checks import InputError
from cryoprob.inference.treatments.known import Known
from cryoprob.models import sites
from cryoprob.models.gaussian_contrast import GaussianContrast
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.structure_factors import Positivity


@pytest.fixture(autouse=True)
def seeded():
    """Torch's random state, as it was before the test."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        yield


@pytest.fixture(scope="module")
def imaged():
    return make_imaged(n=5)


def given(imaged):
    """Values of every latent site but contrast and defocus."""
    rotation, shift = imaged.poses
    return {"volume": imaged.volume, "rotation": rotation, "shift": shift}


def test_the_sites_and_their_densities(imaged):
    values = given(imaged) | {"contrast": imaged.contrast, "defocus": imaged.defocus}
    trace = poutine.trace(poutine.condition(imaged.model, values)).get_trace(imaged.batch)
    latent = [name for name, node in trace.nodes.items() if name in sites.LATENT]
    assert latent == ["volume", "rotation", "shift", "contrast", "defocus"]
    trace.compute_log_prob()
    for name, mean, scale in (("contrast", 1.0, 0.2), ("defocus", 0.0, 300.0)):
        wanted = stats.norm(mean, scale).logpdf(values[name])
        found = trace.nodes[name]["log_prob"]
        torch.testing.assert_close(found, torch.from_numpy(wanted))  # float64, to 1e-7
    clean = trace.nodes["image"]["fn"].mean
    values["contrast"] = 2 * values["contrast"]
    twice = poutine.trace(poutine.condition(imaged.model, values)).get_trace(imaged.batch)
    torch.testing.assert_close(twice.nodes["image"]["fn"].mean, 2 * clean)


def test_a_latent_amplitude_scores_as_the_known_one_does():
    # the same images under Contrast(numbers) and under the site at these numbers
    problem = make_problem(n=4)
    old, batch = problem.continuous().model, problem.batch
    old.contrast.spread.fill_(1.0)
    poses = problem.stack.rotation, problem.stack.shift
    parts = old.volume, old.rotation, old.shift, old.noise, old.pixel_size
    new = ParticleModel(*parts, GaussianContrast(0.3, F64))
    amplitude = old.contrast.scale.clone()
    wanted = old.likelihood(problem.volume, *poses, batch)
    found = new.likelihood(problem.volume, *poses, batch, contrast=amplitude)
    # one product in another order: rounding of some hundred nats
    torch.testing.assert_close(
        found.log_prob(batch.image), wanted.log_prob(batch.image), rtol=1e-12, atol=0
    )


def test_predictive_draws_both(imaged):
    free = poutine.uncondition(poutine.condition(imaged.model, given(imaged)))
    draws = Predictive(free, num_samples=100)(imaged.batch)
    assert draws["contrast"].shape == draws["defocus"].shape == (100, 5)
    for name, law in (("contrast", stats.norm(1, 0.2)), ("defocus", stats.norm(0, 300))):
        assert stats.kstest(draws[name].flatten(), law.cdf).pvalue > 1e-4  # false alarms: 1e-4


def test_known_values_score_the_joint_density(imaged):
    guide = imaged.guide(contrast=Known(imaged.contrast), defocus=Known(imaged.defocus))
    values = given(imaged) | {"contrast": imaged.contrast, "defocus": imaged.defocus}
    trace = poutine.trace(poutine.condition(imaged.model, values)).get_trace(imaged.batch)
    loss = Trace_ELBO().loss(imaged.model, guide, imaged.batch)
    assert -loss == pytest.approx(float(trace.log_prob_sum()), rel=1e-12)


def test_the_potential_of_hamiltonian_monte_carlo(imaged):
    # what NUTS is given of the model: both sites are unconstrained as they are
    model = poutine.condition(imaged.model, given(imaged))
    first, potential, _, _ = initialize_model(model, (imaged.batch,))
    assert sorted(first) == ["contrast", "defocus"]
    values = {"contrast": imaged.contrast, "defocus": imaged.defocus}
    trace = poutine.trace(poutine.condition(model, values)).get_trace(imaged.batch)
    assert float(potential(values)) == pytest.approx(-float(trace.log_prob_sum()), rel=1e-12)


def test_models_without_the_sites_are_as_ever():
    problem = make_problem(n=4)
    batch, model = problem.batch, problem.model
    trace = poutine.trace(model).get_trace(batch)
    latent = [name for name in trace.nodes if name in sites.LATENT]
    assert latent == ["volume", "rotation", "shift"]
    law = trace.nodes["image"]["fn"]
    scale, spread = model.contrast(batch.index)
    # to the last bit
    assert law.ctf.equal(batch.ctf[:, : len(model.band)] * scale[:, None])
    assert law.sigma2.equal(model.noise(batch.group) * spread[:, None] ** 2)


def test_bad_arguments():
    with pytest.raises(InputError, match="contrast scale: expected a positive number, got 0"):
        GaussianContrast(0.0)
    old = make_problem(n=2).continuous().model
    parts = old.volume, old.rotation, old.shift, old.noise, old.pixel_size
    with pytest.raises(InputError, match="names that differ.*contrast"):
        ParticleModel(*parts, terms=[Positivity(1.0, name="contrast")])


def test_a_likelihood_without_values_is_refused(imaged):
    volume, batch = imaged.volume, imaged.batch
    with pytest.raises(InputError, match="contrast and defocus: expected known numbers, or val"):
        imaged.model.likelihood(volume, *imaged.poses, batch)
    with pytest.raises(InputError, match="^defocus: expected known numbers.*Joint with Elbo"):
        imaged.model.likelihood(volume, *imaged.poses, batch, contrast=imaged.contrast)
