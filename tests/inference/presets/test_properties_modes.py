"""Checkable properties of presets of linear modes, and of cryodrgn with linear modes for network."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch
from moving import moving, principal_angles
from scenes import assembled, everything
from torch.distributions import Normal, kl_divergence

from cryoprob.inference.filtered import filter_images
from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.vectors import NormalVector
from cryoprob.inference.learn import seeded
from cryoprob.inference.linear_modes_em import principal
from cryoprob.inference.linear_posterior import latents
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.presets import cryodrgn
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.volumes.linear_modes import LinearModes
from cryoprob.particles import ParticleStack

F64 = torch.float64


@cache
def seen():
    """500 images of two modes, smooth enough for two shells."""
    smooth = {"snr": 2.0, "values": (8.0, 5.0), "mean": 8.0, "blur": 3.0, "resolution": 6.0}
    return moving(n=500, dtype=torch.float32, **smooth)


def run(stack, name, **options):
    """A preset's fit, before its end."""
    options = {"zdim": 2, "max_radius": 2, "max_iterations": 9, "dtype": torch.float32} | options
    built = assembled(stack, name, **options)
    while not built.state.done:
        built.algorithm.step(built.state, stack)
    return built


@cache
def fitted(name):
    """Components of a preset's fit, and its records."""
    built = run(seen().stack, name)
    return built.half.guide.volume.coefficients.detach(), built.state.history


def test_ppca_recovers_modes_and_their_values():
    found, _ = fitted("ppca")
    true = seen().truth[1:].flatten(1).norm(dim=1)
    # measured: 7 and 13 degrees of 500 images; spans at random are more than 60 apart
    assert float(principal_angles(found[1:], seen().truth[1:]).max()) < 20
    values = principal(found).singular_values
    # a standard deviation of 500 numbers is known to 3 %; the true modes reach beyond two shells
    torch.testing.assert_close(values, true, rtol=0.1, atol=0)


def test_ppca_never_lowers_the_log_posterior():
    problem = moving(n=40, values=(20.0, 10.0), mean=20.0)
    still = {"noise": False, "tau2": False, "max_iterations": 10}
    built = assembled(problem.stack, "ppca", **still)
    # the expansion moves the scale of z, which the modes' prior has no part in
    algorithm = replace(built.algorithm, expand=False, gain=-math.inf)
    while not built.state.done:
        algorithm.step(built.state, problem.stack)
    course = torch.tensor([r["log_posterior"] for r in built.state.history], dtype=F64)
    assert float(course.diff().min()) > -1e-9  # rounding: 1e-13 of some 1e4 nats
    assert len(course) == 10 and float(course[-1] - course[0]) > 10


def test_3dva_finds_the_span_and_holds_the_scale():
    found, history = fitted("3dva")
    # measured: 9 and 11 degrees
    assert float(principal_angles(found[1:], seen().truth[1:]).max()) < 20
    assert float(principal_angles(found[1:], fitted("ppca")[0][1:]).max()) < 10
    gram = found[1:].flatten(1) @ found[1:].flatten(1).T
    torch.testing.assert_close(gram, torch.eye(2), atol=1e-5, rtol=0)  # float32
    assert all(record["kind"].startswith("profile") for record in history)


def test_3dva_tells_the_least_squares_z_of_every_image():
    """Without prior or doubt: the residual of each image has no part along its modes."""
    stack = seen().stack
    built = run(stack, "3dva")
    result, half = built.finish(), built.half
    images = filter_images(half.model, stack, torch.arange(len(stack)))
    phase = shift_phase(half.model.band, stack.shift.float(), stack.pixel_size)
    point, rotation = half.guide.volume.coefficients.detach(), stack.rotation.float()
    mean, *modes = half.model.volume.component_slices(point, rotation)
    fit = mean + sum(
        z[:, None] * mode for z, mode in zip(result.states.mean.T, modes, strict=True)
    )
    residual = images.image * phase.conj() - images.transfer * fit
    for mode in modes:
        force = (mode.conj() * residual).real.sum(1)
        scale = (images.transfer * mode.abs() ** 2).sum(1).sqrt()  # of the noise in it
        # rounding of single precision; a prior of z would leave z / scale, some 0.2
        assert float((force / scale).abs().max()) < 1e-3
    assert not result.states.std.any()
    # one step further than the last record
    assert abs(float(result.posterior.bound.mean()) - built.state.history[-1]["bound"]) < 0.01
    assert "profile log joint" in result.trust
    first = result.states.mean.std(0, correction=0)
    assert float(first[0]) > float(first[1]) and abs(float(first[0]) - 1) < 0.02


def test_3dva_does_not_depend_on_the_gray_scale():
    stack, found = moving(n=200, dtype=torch.float32, snr=2.0, blur=3.0, resolution=6.0).stack, []
    pixels = stack.images(torch.arange(len(stack)))
    parts = stack.optics, stack.rotation, stack.shift, stack.group
    for factor in (0.1, 10.0):
        scaled = ParticleStack.from_arrays(pixels * factor, stack.pixel_size, *parts)
        found.append(run(scaled, "3dva", max_iterations=5).finish().states.mean)
    torch.testing.assert_close(found[0].abs(), found[1].abs(), rtol=1e-2, atol=1e-3)  # float32


@pytest.mark.parametrize("name", ["3dva", "ppca"])
def test_amplitudes_of_images_are_found_with_contrast(name, generator):
    plain = moving(n=150, dtype=torch.float32, snr=4.0, blur=3.0, mean=20.0, resolution=6.0).stack
    amplitude = 0.7 + 0.7 * torch.rand(len(plain), generator=generator)
    pixels = amplitude[:, None, None] * plain.images(torch.arange(len(plain)))
    parts = plain.optics, plain.rotation, plain.shift, plain.group
    stack = ParticleStack.from_arrays(pixels, plain.pixel_size, *parts)
    fits = [run(stack, name, contrast=told) for told in (False, True)]
    given, scale = (fit.half.model.known_contrast.scale for fit in fits)
    assert not len(given)  # all are 1
    # a mode along the mean can tell amplitudes as well; chance is 0 +- .08
    assert float(torch.stack([scale, amplitude]).corrcoef()[0, 1]) > 0.4
    nats = [fit.state.history[-1]["bound"] for fit in fits]
    assert nats[1] > nats[0] + 0.1


def test_covariance_has_the_span_and_the_values_of_ppca():
    found, history = fitted("covariance")
    exact = fitted("ppca")[0]
    # an unweighted fit of squares; measured: 10 and 20 degrees
    assert float(principal_angles(found[1:], exact[1:]).max()) < 30
    assert float(principal_angles(found[1:], seen().truth[1:]).max()) < 30
    pair = (principal(one).singular_values for one in (found, exact))
    torch.testing.assert_close(*pair, rtol=0.15, atol=0)  # shrunk by the ridge of 0.03
    assert len(history) == 1


@cache
def few():
    """A few images of one mode."""
    return moving(box=6, n=16, values=(12.0,), mean=20.0, with_ctf=False)


HELD = {"zdim": 1, "beta": 0.2}
"""Noise at a tenth of the images' power, in both."""


@cache
def best():
    """The end of exact EM: model and guide."""
    built = assembled(few().stack, "ppca", noise=False, tau2=False, max_iterations=25, **HELD)
    algorithm = replace(built.algorithm, expand=False, gain=-math.inf, tolerance=1e-6)
    while not built.state.done:
        algorithm.step(built.state, few().stack)
    return built.half


def log_posterior(half, coefficients=None):
    """Of ppca's model and poses at components: its own, or others."""
    point = half.guide.volume.coefficients
    values = point.detach() if coefficients is None else coefficients
    guide = best().guide
    old, guide.volume.coefficients.data = guide.volume.coefficients.data, values
    found = latents(best().model, guide, few().stack)
    guide.volume.coefficients.data = old
    return float(found.log_evidence.sum() + half.model.log_prior_volume(values))


def trained(monkeypatch):
    """cryodrgn with linear modes in its network's place, trained."""

    def modes(scene, size, generator):
        signal = scene.spectrum / scene.stack.box  # as of linear.py
        return LinearModes(scene.stack.box, size, signal, 0.1 * signal, **scene.kind)

    monkeypatch.setattr(cryodrgn, "network", modes)
    small = {"width": 32, "layers": 1, "batch": 16, "epochs": 700.0, "learn_rate": 1e-2}
    built = assembled(few().stack, "cryodrgn", **small, **HELD)
    algorithm = replace(built.algorithm, volume_rate=0.05)
    while not built.state.done:
        algorithm.step(built.state, few().stack)
    return built.half


def test_cryodrgn_of_linear_modes_ends_at_ppca(monkeypatch):
    half, top = trained(monkeypatch), log_posterior(best())
    torch.testing.assert_close(half.model.noise.sigma2, best().model.noise.sigma2)
    found = half.guide.volume.coefficients.detach()
    with seeded(1), torch.no_grad():
        bound = Elbo(400)(half.model, half.guide, found, everything(few().stack))
    elbo = float(bound.sum() + half.model.log_prior_volume(found))
    # gradient steps on draws, of 350 nats between EM's first step and its last one
    assert top - 2.0 < elbo < top + 0.2  # 16 images' means of 400 draws: 0.05 nats
    assert elbo < log_posterior(half, found) + 0.2 < top + 0.3
    wanted = best().guide.volume.coefficients.detach()
    assert float(principal_angles(found[1:], wanted[1:])[0]) < 3  # degrees
    torch.testing.assert_close(found[1:].norm(), wanted[1:].norm(), rtol=0.03, atol=0)


def test_cryodrgn_counts_the_divergence_in_its_closed_form():
    stack = few().stack
    built = assembled(stack, "cryodrgn", zdim=2, width=16, layers=1)
    half, batch = built.half, everything(stack)
    half.guide.conformation.head.bias.data[:2] = torch.tensor([1.0, -0.5])  # away from the prior
    half.guide.conformation.head.bias.data[2:] = torch.tensor([-0.7, 0.3])
    with seeded(3), torch.no_grad():
        poses = half.guide.draw(batch, 4000)
        law = half.guide.conformation.law(half.guide.conformation.numbers_of(batch))
        drawn = poses.log_q - half.guide.log_prior(half.model, poses)
    closed = kl_divergence(law.base_dist, Normal(torch.zeros(2, dtype=F64), 1.0)).sum(1)
    error = drawn.std(0) / 4000**0.5
    assert float(((drawn.mean(0) - closed) / error).abs().max()) < 4.5  # of 16, at 1e-4
    assert float((closed / error).min()) > 20  # or a wrong sign would not show


def test_the_elbo_touches_the_evidence_at_ppcas_posteriors():
    """With q(z) the exact normal posterior each single draw gives the log evidence."""
    half, stack = best(), few().stack
    law = NormalVector(1)
    exact = latents(half.model, half.guide, stack)
    state = PerImage(law, exact.mean)
    state.numbers.data = law.around(exact.mean, exact.covariance)
    known = {"rotation": half.guide.rotation, "shift": half.guide.shift}
    guide = Guide(**known, conformation=state, volume=half.guide.volume)
    point = half.guide.volume.coefficients.detach()
    with seeded(2), torch.no_grad():
        bound = Elbo(1)(half.model, guide, point, everything(stack))
    torch.testing.assert_close(bound, exact.log_evidence, rtol=1e-9, atol=1e-9)
    state.numbers.data[:, 0] += 0.5
    with seeded(2), torch.no_grad():
        assert float(Elbo(200)(half.model, guide, point, everything(stack)).sum()) < float(
            exact.log_evidence.sum() - 1
        )
