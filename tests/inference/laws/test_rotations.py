"""Six numbers of a rotation, the Dirac, and the concentrated law about it."""

import pytest
import torch
from rotation_laws import fit, mass

from cryoprob.checks import InputError
from cryoprob.geometry.rotations import angle_between, random_rotations
from cryoprob.inference.laws.rotations import (
    ConcentratedLaw,
    DiracRotation,
    rotation_of_six,
    six_of_rotation,
)
from cryoprob.models.poses.concentrated_rotation import ConcentratedRotation

F64 = torch.float64


def rotations(count, seed=5):
    return random_rotations(count, torch.Generator().manual_seed(seed), F64)


def wide_numbers(law, generator):
    """Numbers of a law of unlike, correlated widths about 40 degrees."""
    extra = 0.4 * torch.randn(law.size - 6, generator=generator, dtype=F64)
    return law.numbers(rotations(1)[0]) + torch.cat([torch.zeros(6, dtype=F64), extra])


def test_six_numbers_are_onto_the_rotations(generator):
    numbers = 3 * torch.randn(1000, 6, generator=generator, dtype=F64)
    found = rotation_of_six(numbers)
    eye = torch.eye(3, dtype=F64)
    # rounding of double precision, grown by the worst of 1000 pairs of nearly parallel columns
    assert torch.allclose(found @ found.mT, eye.expand_as(found), atol=1e-9)
    assert torch.allclose(torch.linalg.det(found), found.new_ones(1000), atol=1e-9)
    every = rotations(1000)
    assert torch.allclose(rotation_of_six(six_of_rotation(every)), every, atol=1e-12)


def test_six_numbers_in_single_precision(generator):
    found = rotation_of_six(torch.randn(200, 6, generator=generator))
    assert (found @ found.mT - torch.eye(3)).abs().amax() < 1e-5  # 1e-7 times the condition
    assert (torch.linalg.det(found) - 1).abs().amax() < 1e-5


def test_six_numbers_have_finite_gradients(generator):
    numbers = torch.randn(20, 6, generator=generator, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(rotation_of_six, numbers)


@pytest.mark.parametrize("law", [DiracRotation(), ConcentratedLaw(20.0)])
def test_numbers_put_the_mode_at_the_value(law):
    value = rotations(7)
    assert float(angle_between(law.mode(law.numbers(value)), value).max()) < 1e-5


def test_dirac_counts_squared_angles():
    law, value = DiracRotation(tolerance_deg=10.0), rotations(3)
    numbers = law.numbers(value)
    assert law.log_score(numbers, value).abs().max() < 1e-12
    turn = ConcentratedRotation(value, torch.full((3,), 1e-3, dtype=F64)).sample()
    angle = torch.deg2rad(angle_between(turn, value)) / torch.deg2rad(torch.tensor(10.0))
    # chord against angle: they differ by (1e-3)^2 / 24 of themselves; the angle is an arc cosine
    assert torch.allclose(law.log_score(numbers, turn), -angle.square() / 2, rtol=1e-3)
    drawn = law.draw(numbers, 5)
    assert drawn.value.shape == (1, 3, 3, 3)
    assert not drawn.log_q.any()


def test_density_is_normalized(generator):
    law = ConcentratedLaw(40.0)
    # widths of at least 20 degrees on cells of 7.5: the midpoint rule errs by less than 2e-3
    assert mass(law(wide_numbers(law, generator))) == pytest.approx(1, abs=2e-3)


def test_draws_follow_the_density(generator, false_alarm):
    law = ConcentratedLaw(40.0)
    assert fit(law(wide_numbers(law, generator))) > false_alarm


def test_laboratory_frame(generator):
    """exp(w) mode = mode exp(mode^T w): the same law, its covariance turned."""
    mode = rotations(1)[0]
    lower = torch.eye(3, dtype=F64) * 0.3 + torch.tril(
        0.2 * torch.rand(3, 3, generator=generator, dtype=F64)
    )
    inside = torch.linalg.cholesky(mode.mT @ (lower @ lower.mT) @ mode)
    laboratory = ConcentratedRotation(mode, scale_tril=lower, frame="laboratory")
    molecule = ConcentratedRotation(mode, scale_tril=inside)
    points = rotations(50, seed=8)
    assert torch.allclose(laboratory.log_prob(points), molecule.log_prob(points), atol=1e-9)


def test_widths_about_the_viewing_axis():
    """The third width is of turns in the plane, whatever the mode."""
    mode = rotations(1)[0]
    law = ConcentratedLaw(5.0)
    covariance = torch.diag(torch.tensor([0.1, 0.1, 0.01], dtype=F64)).square()
    spread = law(law.around(mode, covariance))
    with torch.random.fork_rng():
        torch.manual_seed(2)
        turns = spread.sample((4000,)) @ mode.mT
    about = turns[:, [2, 0, 1], [1, 2, 0]] - turns[:, [1, 2, 0], [2, 0, 1]]
    width = (about / 2).square().mean(0).sqrt()
    # 4000 draws: 1.1 % per standard deviation; the sine falls behind the angle by 1 %
    assert torch.allclose(width, covariance.diagonal().sqrt(), rtol=0.06)


def test_fixed_width(generator):
    law = ConcentratedLaw(12.0, fixed=True)
    assert law.size == 6
    value = rotations(1)[0]
    wanted = ConcentratedRotation(value, torch.deg2rad(torch.full((3,), 12.0, dtype=F64)))
    points = rotations(10, seed=4)
    assert torch.allclose(law(law.numbers(value)).log_prob(points), wanted.log_prob(points))


def test_gradients_of_draws(generator):
    """d log q / d numbers at pathwise draws, against differences with the same noise."""
    law = ConcentratedLaw(20.0)
    numbers = law.numbers(rotations(2)).requires_grad_()

    def value(given):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            drawn = law.draw(given, 3)
        weights = torch.arange(9.0, dtype=F64).reshape(3, 3)
        return (drawn.value * weights).sum((-2, -1)) + drawn.log_q

    assert torch.autograd.gradcheck(value, numbers, atol=1e-5)


@pytest.mark.parametrize("width", [0.0, 98.5])
def test_impossible_widths(width):
    with pytest.raises(InputError, match="width of a rotation"):
        ConcentratedLaw(width)
