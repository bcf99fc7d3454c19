"""Laws of a shift."""

import pytest
import torch
from scipy import stats

from cryoprob.checks import InputError
from cryoprob.geometry.rotations import about_z
from cryoprob.inference.laws.shifts import DiracShift, NormalShift, TurningShift

F64 = torch.float64
VALUE = torch.tensor([[3.0, -7.0], [0.0, 2.5]], dtype=F64)

LAWS = [DiracShift(4.0), NormalShift(4.0), NormalShift(4.0, fixed=True), TurningShift(1, 4.0)]


@pytest.mark.parametrize("law", LAWS)
def test_numbers_put_the_mode_at_the_value(law):
    assert torch.allclose(law.mode(law.numbers(VALUE)), VALUE)


def test_density_is_normalized_on_a_lattice():
    law = NormalShift(4.0, 3.0)
    step = 0.5
    line = torch.arange(-30, 30, step, dtype=F64)
    mass = law(law.numbers(VALUE[0])).log_prob(torch.cartesian_prod(line, line)).exp().sum()
    # widths of 3 on a lattice of 0.5, the nearest edge 7.6 widths away: exact to rounding
    assert float(mass * step**2) == pytest.approx(1, abs=1e-6)


def test_draws_follow_the_density(false_alarm):
    law = NormalShift(4.0)
    covariance = torch.diag(torch.tensor([4.0, 9.0], dtype=F64))
    spread = law(law.around(VALUE[0], covariance))
    with torch.random.fork_rng():
        torch.manual_seed(4)
        drawn = spread.sample((3000,))
    for axis, width in enumerate((2.0, 3.0)):
        normal = stats.norm(float(VALUE[0, axis]), width).cdf
        assert stats.kstest(drawn[:, axis].numpy(), normal).pvalue > false_alarm / 2


def test_dirac_counts_squared_units():
    law = DiracShift(4.0)
    away = law.log_score(law.numbers(VALUE), VALUE + torch.tensor([3.0, 4.0]))
    assert torch.allclose(away, torch.full((2,), -((5 / 4) ** 2) / 2, dtype=F64))


def test_fixed_width():
    law = NormalShift(4.0, 2.0, fixed=True)
    wanted = torch.distributions.Normal(VALUE, 2.0).log_prob(torch.zeros_like(VALUE)).sum(-1)
    assert torch.allclose(law(law.numbers(VALUE)).log_prob(torch.zeros_like(VALUE)), wanted)


def test_widths_stay_finite():
    """Whatever a network says."""
    law = NormalShift(4.0)
    wild = torch.tensor([[0.0, 0.0, -1e4, 1e4]], dtype=F64)
    assert bool(law(wild).log_prob(VALUE[:1]).isfinite().all())


@pytest.mark.parametrize("build", [DiracShift, NormalShift, lambda unit: NormalShift(4.0, unit)])
def test_impossible_lengths(build):
    with pytest.raises(InputError, match="positive length"):
        build(0.0)


def test_what_turning_angles_say_turns(generator):
    """Numbers one position on mean a shift turned by one in-plane step, as wide as before."""
    law = TurningShift(0, 4.0)
    numbers = torch.randn(5, law.size, generator=generator, dtype=F64)
    moved = numbers.view(5, 6, 4).roll(1, 1).flatten(1)
    turn = about_z(torch.tensor(60.0, dtype=F64))[:2, :2]
    value = torch.randn(5, 2, generator=generator, dtype=F64)
    assert torch.allclose(law.mode(moved), law.mode(numbers) @ turn.mT)
    assert torch.allclose(law.log_score(moved, value @ turn.mT), law.log_score(numbers, value))


def test_turning_law_starts_at_its_width():
    law = TurningShift(0, 4.0, 3.0)
    wanted = torch.distributions.Normal(VALUE, 3.0).log_prob(torch.ones_like(VALUE)).sum(-1)
    assert torch.allclose(law.log_score(law.numbers(VALUE), torch.ones_like(VALUE)), wanted)
    wild = law.numbers(VALUE[:1]).view(1, 6, 4)
    wild[..., 3] = 1e4
    assert bool(law(wild.flatten(1)).log_prob(VALUE[:1]).isfinite().all())


def test_modal_draws_are_means(generator):
    law = TurningShift(0, 4.0, modal=True)
    numbers = torch.randn(5, law.size, generator=generator, dtype=F64)
    drawn = law.draw(numbers, 3)
    assert torch.equal(drawn.value, law.mode(numbers)[None])
    assert not drawn.log_q.any()
    assert torch.equal(
        law.log_score(numbers, drawn.value[0]),
        TurningShift(0, 4.0).log_score(numbers, drawn.value[0]),
    )
