"""Mixtures of heads: shares, density, draws, and exact gradients of the weights."""

import pytest
import torch
from problems import make_problem
from rotation_laws import fit, mass

from cryoprob.checks import InputError
from cryoprob.geometry.rotations import angle_between, random_rotations
from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.heads import Heads
from cryoprob.inference.laws.rotations import ConcentratedLaw, DiracRotation
from cryoprob.inference.laws.shifts import NormalShift
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.objectives.profile_log_joint import ProfileLogJoint
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point

F64 = torch.float64


def rotations(count, seed=5):
    return random_rotations(count, torch.Generator().manual_seed(seed), F64)


def apart(law, logits=(0.3, -0.6, 0.0), images=4):
    """Numbers [images, size] of heads at unlike places, of these weights."""
    one = law.starting(rotations(law.heads))
    one[: law.heads] = torch.tensor(logits, dtype=F64)
    return one.repeat(images, 1)


def test_density_is_the_mixtures():
    law, part = Heads(ConcentratedLaw(30.0), 3), ConcentratedLaw(30.0)
    numbers, points = apart(law), rotations(4, seed=9)
    weights = torch.softmax(numbers[0, :3], 0)
    each = torch.stack([part(part.numbers(place)).log_prob(points) for place in rotations(3)])
    wanted = (weights[:, None] * each.exp()).sum(0).log()
    assert torch.allclose(law.log_score(numbers, points), wanted)
    assert torch.allclose(law(numbers).log_prob(points), wanted)


def test_mass_and_draws(false_alarm):
    law = Heads(ConcentratedLaw(40.0), 3)
    mixture = law(apart(law)[0])
    assert mass(mixture) == pytest.approx(1, abs=2e-3)  # cells of 7.5 degrees, widths of 40
    assert fit(mixture) > false_alarm


@pytest.mark.parametrize("part", [ConcentratedLaw(2.0), DiracRotation()])
def test_draws_cover_every_head_in_its_share(part):
    law, count = Heads(part, 3), 2 if part.has_density else 1
    numbers = apart(law)
    drawn = law.draw(numbers, 2)
    assert drawn.value.shape == (3 * count, 4, 3, 3)
    assert torch.allclose(drawn.log_weight.exp().sum(0), torch.ones(4, dtype=F64))
    wanted = torch.softmax(numbers, -1)[..., :0].new_tensor([0.3, -0.6, 0.0]).softmax(0)
    shares = drawn.log_weight.exp()[:, 0].unflatten(0, (3, count)).sum(1)
    assert torch.allclose(shares, wanted)
    away = angle_between(drawn.value, rotations(3).repeat_interleave(count, 0)[:, None])
    assert float(away.max()) < 12  # 6 widths
    if part.has_density:
        assert torch.allclose(drawn.log_q, law(numbers).log_prob(drawn.value))


def test_mode_is_the_heaviest_heads():
    law = Heads(ConcentratedLaw(20.0), 3)
    assert float(angle_between(law.mode(apart(law)), rotations(3)[0]).max()) < 1e-5
    value = rotations(2, seed=1)
    assert float(angle_between(law.mode(law.numbers(value)), value).max()) < 1e-5


@pytest.mark.parametrize("dirac", [False, True])
def test_weights_have_exact_gradients(dirac):
    """Of the objective with the same draws, which do not depend on the weights."""
    problem = make_problem(n=3, contrast=False).continuous()
    law = Heads(DiracRotation() if dirac else ConcentratedLaw(30.0), 3)
    rotation = PerImage(law, problem.stack.rotation)
    rotation.numbers.data = apart(law, images=3)
    guide = Guide(
        rotation=rotation,
        shift=PerImage(NormalShift(4.0), problem.stack.shift),
        volume=Point(problem.volume),
    )
    objective = ProfileLogJoint() if dirac else Elbo(2)

    def value():
        with torch.random.fork_rng():
            torch.manual_seed(6)
            return objective(problem.model, guide, problem.volume, problem.batch).sum()

    (found,) = torch.autograd.grad(value(), rotation.numbers)
    step = 1e-5
    for head in range(3):
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                rotation.numbers[1, head] += sign * step
                ends.append(value())
                rotation.numbers[1, head] -= sign * step
        slope = (ends[0] - ends[1]) / (2 * step)
        assert float(found[1, head]) == pytest.approx(float(slope), rel=1e-5, abs=1e-6)


def test_one_head_is_no_mixture():
    with pytest.raises(InputError, match="two or more"):
        Heads(ConcentratedLaw(), 1)
    with pytest.raises(InputError, match="one head"):
        Heads(Heads(ConcentratedLaw(), 2), 2)
