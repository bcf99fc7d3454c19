"""Objectives: Pyro's own values, bounds that bound, signs, gradients, symmetries."""

from dataclasses import replace

import pytest
import torch
from problems import make_problem
from pyro.infer import Trace_ELBO

from cryoprob.checks import InputError
from cryoprob.geometry.rotations import about_z
from cryoprob.inference.e_step import e_step
from cryoprob.inference.encoders.fourier_mlp import FourierMLP
from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.heads import Heads
from cryoprob.inference.laws.rotations import ConcentratedLaw, DiracRotation
from cryoprob.inference.laws.shifts import DiracShift, NormalShift
from cryoprob.inference.learn import seeded
from cryoprob.inference.objectives.augmented import Augmented, turn_batch
from cryoprob.inference.objectives.distillation import Distillation
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.objectives.iwae import Iwae
from cryoprob.inference.objectives.profile_log_joint import ProfileLogJoint
from cryoprob.inference.objectives.sleep import Sleep
from cryoprob.inference.objectives.symmetric import Symmetric, turned
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.importance import Importance
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.inference.treatments.prior import Prior


@pytest.fixture
def problem():
    return make_problem(contrast=False, signal=1.5).continuous()


def law_guide(problem, rotation=None, width=3.0):
    rotation = rotation or ConcentratedLaw(30.0)
    turns = PerImage(rotation, problem.stack.rotation)
    moves = PerImage(NormalShift(width), problem.stack.shift)
    return Guide(rotation=turns, shift=moves, volume=Point(problem.volume))


def dirac_guide(problem):
    turns = PerImage(DiracRotation(), problem.stack.rotation)
    moves = PerImage(DiracShift(3.0), problem.stack.shift)
    return Guide(rotation=turns, shift=moves, volume=Point(problem.volume))


def value(problem, guide, objective, batch=None):
    batch = problem.batch if batch is None else batch
    return objective(problem.model, guide, problem.volume, batch).detach()


def test_elbo_is_pyros(problem):
    """The same number from Trace_ELBO on the unmodified model and guide, within Monte Carlo error."""
    guide = law_guide(problem)
    with seeded(1), torch.no_grad():
        ours = torch.stack([value(problem, guide, Elbo(1)).sum() for _ in range(400)])
    with seeded(2):
        elbo = Trace_ELBO()
        log_prior = problem.model.volume.prior().log_prob(problem.volume)
        theirs = torch.tensor(
            [-elbo.loss(problem.model, guide, problem.batch) for _ in range(400)]
        )
    theirs = theirs - log_prior
    error = (ours.var() / 400 + theirs.var() / 400).sqrt()
    assert abs(float(ours.mean() - theirs.mean())) < 4.5 * float(error)


def test_the_e_step_counts_the_same_bound(problem):
    guide = law_guide(problem)
    with seeded(3):
        ours = e_step(problem.model, guide, problem.stack, draws=2)
    # optics groups are drawn one after the other
    for group in (0, 1):
        index = (problem.stack.group == group).nonzero()[:, 0]
        with seeded(4):
            one = e_step(problem.model, guide, problem.stack, index, draws=3).summary.bound[index]
        with seeded(4):
            two = value(problem, guide, Elbo(3), problem.part(index))
        torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)
    assert torch.isfinite(ours.summary.bound).all()


def evidence(problem):
    """Log evidence on the continuum, by very many prior draws (an IWAE of the prior), and its error."""
    prior = Prior(problem.model.rotation), Prior(problem.model.shift)
    guide = Guide(
        rotation=Importance(prior[0], 2000), shift=prior[1], volume=Point(problem.volume)
    )
    with seeded(5):
        parts = torch.stack([value(problem, guide, Iwae(2000)) for _ in range(20)])
    ratio = (parts - parts.amax(0)).exp()
    log_mean = parts.amax(0) + ratio.mean(0).log()
    return log_mean, ratio.std(0) / ratio.mean(0) / 20**0.5


def test_bounds_lie_below_the_evidence_and_iwae_rises(problem):
    wanted, error = evidence(problem)
    guide = law_guide(problem, ConcentratedLaw(60.0), 4.0)
    before = None
    with seeded(6):
        for count in (1, 4, 16, 64, 256):
            parts = torch.stack([value(problem, guide, Iwae(count)) for _ in range(100)])
            mean, own = parts.mean(0), parts.std(0) / 10
            assert (mean < wanted + 5 * (own + error)).all()
            if before is not None:
                assert (mean > before[0] - 5 * (own + before[1])).all()
            before = mean, own
    # 256 draws leave under a third of the gap of one
    with seeded(7):
        one = torch.stack([value(problem, guide, Elbo(1)) for _ in range(400)]).mean(0)
    assert float((wanted - before[0]).mean()) < 0.34 * float((wanted - one).mean())


def test_signs_of_the_divergence(problem):
    """q = prior has none; elsewhere the ELBO lies below the mean log likelihood, by the closed KL."""
    prior = Prior(problem.model.rotation), Prior(problem.model.shift)
    free = Guide(rotation=prior[0], shift=prior[1], volume=Point(problem.volume))
    with seeded(8):
        one = value(problem, free, Elbo(50))
    with seeded(8):
        other = value(problem, free, Elbo(50, beta=7.0))
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-9)
    guide = law_guide(problem, ConcentratedLaw(20.0), 2.0)
    with seeded(9):
        one = value(problem, guide, Elbo(4000))
    with seeded(9):
        double = value(problem, guide, Elbo(4000, beta=2.0))
    index = problem.batch.index
    q_turn = guide.rotation.law(guide.rotation.numbers[index])
    q_move = guide.shift.law(guide.shift.numbers[index]).base_dist
    sigma = problem.model.shift.sigma
    normal = torch.distributions.Normal(torch.zeros_like(sigma), sigma)
    divergence = -q_turn.entropy() + torch.distributions.kl_divergence(
        torch.distributions.Normal(q_move.loc, q_move.scale), normal
    ).sum(-1)
    assert (divergence > 0).all()
    # 4000 draws of log q - log p, whose standard deviation is about 1.7
    torch.testing.assert_close(one - double, divergence.detach(), rtol=0, atol=0.15)


def test_a_weight_on_the_divergence(problem):
    """Weights multiply, values are linear in them, and what has no divergence refuses one."""
    guides = (
        (law_guide(problem, ConcentratedLaw(20.0), 2.0), Elbo(2)),
        (
            dirac_guide(problem),
            ProfileLogJoint(),
        ),
    )
    for guide, objective in guides:
        found = []
        for weight in (1.0, 0.5, 0.1):
            with seeded(10):
                found.append(value(problem, guide, objective.weighted(0.5).weighted(2 * weight)))
        assert not torch.allclose(found[0], found[2])
        torch.testing.assert_close(4 * found[0] + 5 * found[2], 9 * found[1])
        assert objective.beta == 1
    assert Augmented(Elbo()).weighted(0.3).objective.beta == 0.3
    assert Iwae(2).weighted(1.0).draws == 2
    with pytest.raises(InputError, match="divergence"):
        Iwae(2).weighted(0.5)


@pytest.mark.parametrize("law", [ConcentratedLaw(30.0), Heads(ConcentratedLaw(30.0), 2)])
@pytest.mark.parametrize("objective", [Elbo(2), Iwae(3)])
def test_gradients_by_differences(problem, law, objective):
    guide = law_guide(problem, law)
    numbers = guide.rotation.numbers
    numbers.data += 0.1 * torch.randn(
        numbers.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )

    def total():
        with seeded(11):
            return objective(problem.model, guide, problem.volume, problem.batch).sum()

    total().backward()
    gradient = numbers.grad.clone()
    for place in [(0, 0), (1, 3), (2, numbers.shape[1] - 1), (3, 7)]:
        step = 1e-5
        with torch.no_grad():
            numbers[place] += step
            up = total()
            numbers[place] -= 2 * step
            down = total()
            numbers[place] += step
        # slices are piecewise linear in the pose: a kink inside the step is unlikely, not impossible
        assert float((up - down) / (2 * step)) == pytest.approx(
            float(gradient[place]), rel=1e-4, abs=1e-4
        )


def test_a_dirac_has_no_elbo_and_a_law_no_profile(problem):
    with pytest.raises(InputError, match="Train it by ProfileLogJoint"):
        value(problem, dirac_guide(problem), Elbo())
    with pytest.raises(InputError, match="iwae"):
        value(problem, dirac_guide(problem), Iwae(2))
    with pytest.raises(InputError, match="Train it by Elbo"):
        value(problem, law_guide(problem), ProfileLogJoint())


def test_profile_is_the_log_joint(problem):
    found = value(problem, dirac_guide(problem), ProfileLogJoint())
    known = Known(problem.stack.rotation), Known(problem.stack.shift)
    guide = Guide(rotation=known[0], shift=known[1], volume=Point(problem.volume))
    likelihood = e_step(problem.model, guide, problem.stack).summary.bound
    sigma = problem.model.shift.sigma
    prior = -problem.stack.shift.square().sum(1) / (2 * sigma**2)
    prior = prior - torch.log(2 * torch.pi * sigma**2)
    torch.testing.assert_close(found, likelihood + prior, rtol=1e-10, atol=1e-10)


def encoder_guide(problem):
    with seeded(12):
        encoder = FourierMLP(8, problem.model.noise.sigma2.mean(0), width=16, layers=1).double()
        turns = Amortized(encoder, DiracRotation(), problem.stack.rotation[:1])
        moves = Amortized(encoder, DiracShift(3.0), problem.stack.shift[:1])
    turns.head.weight.data *= 10
    return Guide(rotation=turns, shift=moves, volume=Point(problem.volume))


def test_the_symmetric_loss(problem):
    guide = encoder_guide(problem)
    plain = value(problem, guide, ProfileLogJoint())
    found, smooth = (
        value(problem, guide, Symmetric()),
        value(problem, guide, Symmetric(smooth=True)),
    )
    assert (found >= plain - 1e-9).all() and (found > plain + 1e-6).any()
    assert (smooth <= found + 1e-9).all() and (
        smooth >= found - torch.log(torch.tensor(2.0)) - 1e-9
    ).all()
    # the turned image has the same two candidates
    batch = turned(problem.batch)
    torch.testing.assert_close(
        value(problem, guide, Symmetric(), batch), found, rtol=1e-9, atol=1e-9
    )
    # twice turned is not turned
    torch.testing.assert_close(turned(batch).image, problem.batch.image)


def test_the_better_candidate_alone_is_taught(problem):
    guide = encoder_guide(problem)
    (-Symmetric()(problem.model, guide, problem.volume, problem.batch).sum()).backward()
    assert all(torch.isfinite(p.grad).all() for p in guide.rotation.parameters())


def test_sleep_draws_poses_of_the_prior_and_images_of_the_model(problem, monkeypatch):
    """What it hands to q: poses uniform, images whose residual at them is the noise."""
    guide, seen = law_guide(problem), []
    monkeypatch.setattr(
        guide,
        "log_score",
        lambda batch, rotation, shift: seen.append((batch, rotation, shift)) or shift[:, 0] * 0,
    )
    with seeded(13):
        for _ in range(60):
            value(problem, guide, Sleep())
    power, count = 0.0, 0
    for batch, rotation, shift in seen:
        known = replace(batch)
        law = problem.model.likelihood(problem.volume, rotation, shift, known)
        sigma2 = problem.model.noise(batch.group)[:, batch.band.shell]
        residual = (batch.image - law.mean).abs().square() / sigma2
        power, count = power + float(residual.sum()), count + len(batch) * batch.band.box**2
    # a chi-square of so many numbers, 4.5 standard deviations
    assert abs(power / count - 1) < 4.5 * (2 / count) ** 0.5
    shifts = torch.cat([shift for _, _, shift in seen])
    sigma = float(problem.model.shift.sigma)
    assert abs(float(shifts.std()) / sigma - 1) < 4.5 / (2 * shifts.numel()) ** 0.5


def test_sleep_draws_images_at_the_poses_that_are_known(problem, monkeypatch):
    guide = law_guide(problem)
    guide = Guide(rotation=guide.rotation, shift=Known(problem.stack.shift), volume=guide.volume)
    seen = {}

    def spy(batch, rotation, shift):
        seen.update(rotation=rotation, shift=shift)
        return rotation.new_zeros(len(rotation))

    monkeypatch.setattr(guide, "log_score", spy)
    value(problem, guide, Sleep())
    assert seen["shift"].equal(problem.stack.shift)
    assert not seen["rotation"].equal(problem.stack.rotation)


def test_distillation_is_the_cross_entropy(problem):
    guide = law_guide(problem)
    generator = torch.Generator().manual_seed(4)
    shift = torch.randn(6, 5, 2, generator=generator, dtype=torch.float64)
    rotation = problem.stack.rotation[:, None].expand(6, 5, 3, 3)
    found = value(problem, guide, Distillation(rotation, shift))
    law_r = guide.rotation.law(guide.rotation.numbers)
    law_t = guide.shift.law(guide.shift.numbers)
    wanted = torch.stack(
        [law_r.log_prob(rotation[:, s]) + law_t.log_prob(shift[:, s]) for s in range(5)]
    ).mean(0)
    torch.testing.assert_close(found, wanted.detach())
    with pytest.raises(InputError, match=r"\[N, S, 3, 3\]"):
        Distillation(rotation[:, 0], shift)


def test_a_turned_image_is_as_likely_at_the_turned_pose(problem):
    """Slices at turned poses are turned slices, to interpolation's rounding: equal log densities."""
    quarters = torch.arange(len(problem.batch)) % 4
    turn = about_z(90.0 * quarters.double())
    batch, rotation, shift = problem.batch, problem.stack.rotation, problem.stack.shift
    law = problem.model.likelihood(problem.volume, rotation, shift, batch)
    moved = (turn[:, :2, :2] @ shift[..., None])[..., 0]
    turned_batch = turn_batch(batch, quarters)
    other = problem.model.likelihood(problem.volume, turn @ rotation, moved, turned_batch)
    found, wanted = other.log_prob(turned_batch.image), law.log_prob(batch.image)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-9)
    # half of that is the conjugate of the symmetric loss
    twice = turn_batch(batch, torch.full_like(quarters, 2))
    torch.testing.assert_close(twice.image, turned(batch).image)


def test_augmentation_of_what_turns_with_the_image(problem, monkeypatch):
    """Draws of the posterior are turned along; whatever turn came up, some four for each image."""
    guide, seen = encoder_guide(problem), []

    def spy(batch, rotation, shift):
        seen.append((batch, rotation, shift))
        return rotation.new_zeros(rotation.shape[:2])

    monkeypatch.setattr(guide, "log_score", spy)
    rotation, shift = problem.stack.rotation[:, None], problem.stack.shift[:, None]
    with seeded(14):
        for _ in range(20):
            value(problem, guide, Augmented(Distillation(rotation, shift)))
    for batch, turned_rotation, turned_shift in seen:
        law = problem.model.likelihood(problem.volume, turned_rotation[0], turned_shift[0], batch)
        known = problem.stack.rotation, problem.stack.shift
        own = problem.model.likelihood(problem.volume, *known, problem.batch)
        wanted = own.log_prob(problem.batch.image)
        torch.testing.assert_close(law.log_prob(batch.image), wanted, rtol=1e-10, atol=1e-9)
    psi = torch.stack([r[0] @ problem.stack.rotation.mT for _, r, _ in seen])
    # 20 draws of 4 turns: one is missing for an image with probability 4 * 0.75^20 = 1.3 %, and
    # the seed is one where none is
    assert all(len(psi[:, n].round(decimals=3).unique(dim=0)) == 4 for n in range(len(rotation)))


def test_augmentation_refuses_poses_tied_to_the_image(problem):
    with pytest.raises(InputError, match="Leave Augmented out"):
        value(problem, law_guide(problem), Augmented(Elbo()))
