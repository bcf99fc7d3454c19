"""Objectives by draws that integrate the contrast out, beside sums over a fine line."""

import math

import pytest
import torch
from imaged import CONTRAST, DEFOCUS_A, F64, imaged_model, make_imaged
from torch.distributions import Normal

from cryoprob.fourier.gaussian_map import GaussianMap
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.imaging import Imaging, exact_imaging
from cryoprob.inference.imaging_draws import note_imaging
from cryoprob.inference.joint import follow
from cryoprob.inference.laws.rotations import DiracRotation
from cryoprob.inference.laws.shifts import DiracShift, NormalShift
from cryoprob.inference.laws.vectors import NormalVector
from cryoprob.inference.learn import seeded
from cryoprob.inference.objectives.base import log_terms
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.objectives.iwae import Iwae
from cryoprob.inference.objectives.profile_log_joint import ProfileLogJoint
from cryoprob.inference.objectives.summed_poses import SummedPoses
from cryoprob.inference.objectives.symmetric import Symmetric, turned, turned_back
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.gaussian_contrast import GaussianContrast
from cryoprob.models.gaussian_defocus import GaussianDefocus
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.volumes.linear_modes import LinearModes

NODES = 3
CLOSE = {"rtol": 1e-10, "atol": 0}
"""Float64 sums of some hundred nats; the line is exact to exp(-(pi / 0.12)^2 / 2)."""


@pytest.fixture(scope="module")
def few():
    return make_imaged(n=4, power=400.0)


def priors(which):
    """Contrast, defocus, or both as sites."""
    contrast = GaussianContrast(CONTRAST, F64) if which != "defocus" else None
    nodes = GaussianDefocus(DEFOCUS_A, NODES, F64) if which != "contrast" else None
    return contrast, nodes


def line(model):
    """Contrasts [L] up to 12 standard deviations off, in steps of less than 0.12 posterior ones.

    And the log masses of the prior on it.
    """
    if not isinstance(model.contrast, GaussianContrast):
        return torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64)
    places = torch.linspace(-1.4, 3.4, 801, dtype=F64)
    step = float(places[1] - places[0])
    return places, Normal(torch.tensor(1.0, dtype=F64), CONTRAST).log_prob(places) + math.log(step)


def brute(model, volume, rotation, shift, batch, state=None):
    """Log p at every contrast and node, [L, J, *], with the masses of these."""
    places, mass = line(model)
    values, width = {}, max(rotation.dim() - 2, shift.dim() - 1)
    if len(places) > 1:
        values["contrast"] = places.view(-1, 1, *[1] * width)
    if model.defocus is not None:
        values["defocus"] = model.defocus.points.view(-1, *[1] * width)
    found = model.likelihood(volume, rotation, shift, batch, state, **values).log_prob(batch.image)
    joint = found.view(len(places), -1, *found.shape[-width:]) + mass.view(-1, *[1] * (1 + width))
    if model.defocus is not None:
        joint = joint + model.defocus.log_mass.view(-1, *[1] * width)
    return joint


def guide_of(few, model, volume=None, *, dirac=False, **parts):
    """Known rotations, shifts with a q around the true ones."""
    law = DiracShift(2.0) if dirac else NormalShift(2.0, 1.0)
    shift = PerImage(law, few.poses[1])
    turns, point = Known(few.poses[0]), Point(few.volume if volume is None else volume)
    return Guide(rotation=turns, shift=shift, volume=point, **(exact_imaging(model) | parts))


@pytest.mark.parametrize("which", ["contrast", "defocus", "both"])
def test_objectives_are_sums_over_a_fine_line(few, which):
    model = imaged_model(16, *priors(which))
    for objective, draws in (
        (Elbo(3), 3),
        (Elbo(3, 0.5), 3),
        (Iwae(3), 3),
        (ProfileLogJoint(), 1),
    ):
        dirac = isinstance(objective, ProfileLogJoint)
        guide = guide_of(few, model, dirac=dirac)
        assert guide.kind == ("profile_log_joint" if dirac else "elbo")
        with seeded(5):
            poses = guide.draw(few.batch, draws)
            assert poses.contrast is None and poses.defocus is None
            each = brute(model, few.volume, poses.rotation, poses.shift, few.batch)
            each = each.flatten(0, 1).logsumexp(0)
        ratio = model.shift.prior().log_prob(poses.shift) - poses.log_q
        if isinstance(objective, Iwae):
            wanted = (each + ratio).logsumexp(0) - math.log(draws)
        else:
            wanted = (each + objective.beta * ratio).mean(0)
        with seeded(5):
            found = objective(model, guide, few.volume, few.batch)
        torch.testing.assert_close(found, wanted, **CLOSE)


def test_the_symmetric_loss_sums_both_of_either_candidate(few):
    model = imaged_model(16, *priors("both"))
    turns = PerImage(DiracRotation(), few.poses[0])
    parts = {"shift": PerImage(DiracShift(2.0), few.poses[1]), **exact_imaging(model)}
    guide = Guide(rotation=turns, volume=Point(few.volume), **parts)
    both = []
    for batch, pair in ((few.batch, few.poses), (turned(few.batch), turned_back(*few.poses))):
        poses = (part.mode(batch) for part in guide.drawn)
        given = pair if batch is not few.batch else tuple(poses)
        each = brute(model, few.volume, *given, few.batch).flatten(0, 1).logsumexp(0)
        both.append(
            each
            + sum(
                model.local_priors[s].prior().log_prob(v)
                for s, v in zip(("rotation", "shift"), given, strict=True)
            )
        )
    found = Symmetric()(model, guide, few.volume, few.batch)
    torch.testing.assert_close(found, torch.stack(both).max(0).values, **CLOSE)


def test_summed_poses_sum_both_too(few):
    old, (contrast, nodes) = imaged_model(16), priors("both")
    turns, moves = old.rotation.discretize(0), old.shift.discretize(4.0, 4.0)
    prior = GaussianConformation(torch.ones(1, dtype=F64))
    volume = LinearModes(16, 1, dtype=F64)
    own = volume, turns, moves, old.noise, old.pixel_size, contrast, prior
    model = ParticleModel(*own, defocus=nodes)
    modes = torch.stack([few.volume, 0.1 * few.volume])
    state = PerImage(NormalVector(1), torch.zeros(4, 1, dtype=F64))
    parts = {"conformation": state, **exact_imaging(model)}
    guide = Guide(rotation=Exact(), shift=Exact(), volume=Point(modes), **parts)
    with seeded(3):
        found = SummedPoses(1)(model, guide, modes, few.batch)
    with seeded(3):
        drawn = state.draw(few.batch, 1)
    poses = turns.matrices()[:, None], moves.points()[:, None, None]
    each = brute(model, modes, *poses, few.batch, drawn.value[0])
    each = each + moves.log_mass()[:, None, None] - math.log(72)
    wanted = each.flatten(0, -2).logsumexp(0)
    wanted = wanted + model.conformation.prior().log_prob(drawn.value[0]) - drawn.log_q[0]
    torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("dirac", [False, True])
def test_gradients_are_those_of_differences(few, dirac):
    """In the map, the noise and the numbers of q, along a direction of chance in each."""
    model = imaged_model(16, *priors("both"))
    guide = guide_of(few, model, dirac=dirac)
    objective = ProfileLogJoint() if dirac else Elbo(2)
    numbers, sigma2 = guide.shift.numbers, model.noise.sigma2
    generator = torch.Generator().manual_seed(2)
    starts = [few.volume.clone(), sigma2.clone(), numbers.detach().clone()]
    ways = [0.1 * torch.randn(v.shape, generator=generator, dtype=F64) for v in starts]

    def value(volume, noise, own):
        model.noise.sigma2 = noise
        numbers.data = own.detach()
        with seeded(7):
            return objective(model, guide, volume, few.batch).sum()

    free = [v.clone().requires_grad_() for v in starts[:2]]
    found = value(*free, starts[2])
    slopes = torch.autograd.grad(found, [*free, numbers])
    for place, (slope, way) in enumerate(zip(slopes, ways, strict=True)):
        ends = []
        for sign in (1, -1):
            moved = [v + sign * 1e-4 * way if n == place else v for n, v in enumerate(starts)]
            ends.append(float(value(*moved).detach()))
        numeric = (ends[0] - ends[1]) / 2e-4
        # of differences of some thousand nats at 1e-4: rounding 1e-8, third order 1e-6 or less
        assert float((slope * way).sum()) == pytest.approx(numeric, rel=1e-5, abs=1e-6), place
    value(*starts)


def test_noise_follows_the_expected_residual(few):
    """At rate 1 it is the mean residual of the posterior of contrast and node, shell by shell."""
    model, batch = imaged_model(16, *priors("both")), few.batch
    guide = few.guide(**exact_imaging(model))
    sigma2 = model.noise.sigma2
    wanted = torch.zeros_like(sigma2[0])
    weight = brute(model, few.volume, *few.poses, batch)
    weight = (weight - weight.flatten(0, 1).logsumexp(0)).exp()
    places, _ = line(model)
    at = places[:, None, None], model.defocus.points[:, None]
    law = model.likelihood(few.volume, *few.poses, batch, None, *at)
    shell, inside = batch.band.shell, law.slices.shape[-1]
    for k in range(len(places)):  # [J, N, M] at a time
        mean = law.ctf[k] * law.phase * law.slices
        mean = torch.nn.functional.pad(mean, (0, batch.image.shape[-1] - inside))
        away = (batch.image - mean).abs().square()
        wanted.index_add_(0, shell, (weight[k][..., None] * away).sum((0, 1)))
    wanted = wanted / (4 * batch.band.numbers_per_shell().clamp(min=1))
    model.noise.sigma2 = sigma2.clone().requires_grad_()
    Elbo()(model, guide, few.volume, batch).mean().backward()
    gradient = model.noise.sigma2.grad
    model.noise.sigma2 = sigma2.clone()
    follow(model, gradient, batch, 1.0)
    torch.testing.assert_close(model.noise.sigma2[0], wanted, rtol=1e-8, atol=0)  # float64


def test_a_law_of_volumes_takes_off_what_its_variance_makes_of_each_contrast(few):
    """``log E exp(E_V log p)`` over contrasts and nodes; the energy lost goes with the square."""
    model = imaged_model(16, *priors("both"))
    guide = few.guide(**exact_imaging(model))
    law = GaussianMap(few.volume, torch.full_like(few.volume, float(few.volume.var())))
    places, _ = line(model)
    at = places[:, None, None], model.defocus.points[:, None]
    seen = model.likelihood(few.volume, *few.poses, few.batch, None, *at)
    lost = seen.log_prob_lost(law.slice_variance(model.volume.slicer, few.poses[0]))
    assert float(lost.max()) > 1
    wanted = (brute(model, few.volume, *few.poses, few.batch) - lost).flatten(0, 1).logsumexp(0)
    found = Elbo()(model, guide, law, few.batch)
    torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("which", ["contrast", "defocus", "both"])
def test_what_is_noted_is_the_mean_over_draws_of_exact_posteriors(few, which):
    model = imaged_model(16, *priors(which))
    guide = guide_of(few, model)
    found = Imaging.empty(model, 4)
    with seeded(9), torch.no_grad():
        note_imaging(found, Half(model, guide, torch.arange(4)), few.batch, 8)
    with seeded(9), torch.no_grad():
        poses = guide.draw(few.batch, 8)
        joint = brute(model, few.volume, poses.rotation, poses.shift, few.batch)
    weight = joint.flatten(0, 1).softmax(0).view_as(joint).mean(2)  # [L, J, N]
    shares = {"contrast": weight.sum(1), "defocus": weight.sum(0)}
    values = {"contrast": line(model)[0]}
    values["defocus"] = torch.zeros(1) if model.defocus is None else model.defocus.points
    for site, share in shares.items():
        if site not in model.local_priors:
            assert not len(getattr(found, site))
            continue
        mean = values[site] @ share
        std = ((values[site][:, None] - mean).square() * share).sum(0).sqrt()
        torch.testing.assert_close(getattr(found, site), mean, rtol=1e-8, atol=1e-8)
        # a difference of squares
        torch.testing.assert_close(getattr(found, f"{site}_std"), std, rtol=1e-5, atol=1e-6)


def test_a_node_that_is_summed_beside_a_contrast_that_is_drawn(few):
    """The one is noted from its posterior, the other from q."""
    model = imaged_model(16, *priors("both"))
    guide = few.guide(contrast=Known(few.contrast), defocus=Exact())
    found = Imaging.empty(model, 4)
    with torch.no_grad():
        note_imaging(found, Half(model, guide, torch.arange(4)), few.batch, 1)
        terms = log_terms(model, guide, few.volume, guide.draw(few.batch, 1), few.batch)
    assert terms.contrast is None and terms.joint.shape == (NODES, 1, 4)
    torch.testing.assert_close(found.contrast, few.contrast)
    assert not found.contrast_std.any() and bool((found.defocus_std > 0).all())
