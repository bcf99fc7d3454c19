"""Laws of one number are the vector laws of one number, without its axis."""

import pytest
import torch

from cryoprob.inference.laws.scalars import DiracScalar, NormalScalar
from cryoprob.inference.laws.vectors import DiracVector, NormalVector

VALUE = torch.tensor([0.3, -250.0, 40.0], dtype=torch.float64)
PAIRS = [
    (NormalScalar(100.0, 30.0), NormalVector(1, 100.0, 30.0)),
    (NormalScalar(100.0, 30.0, fixed=True), NormalVector(1, 100.0, 30.0, fixed=True)),
    (DiracScalar(100.0), DiracVector(1, 100.0)),
]


@pytest.mark.parametrize("scalar, vector", PAIRS, ids=["normal", "fixed", "dirac"])
def test_they_are_vectors_of_one_number(scalar, vector):
    numbers, away = scalar.numbers(VALUE), VALUE + 20
    assert numbers.equal(vector.numbers(VALUE[:, None]))
    assert scalar.size == vector.size == numbers.shape[1]
    torch.testing.assert_close(scalar.mode(numbers), VALUE)
    found = scalar.log_score(numbers, away)
    assert found.shape == (3,)
    assert found.equal(vector.log_score(numbers, away[:, None]))
    spread = torch.tensor([4.0, 9.0, 25.0], dtype=torch.float64)[:, None, None]
    assert scalar.around(VALUE, spread).equal(vector.around(VALUE[:, None], spread))
    assert scalar.starting(VALUE).equal(vector.starting(VALUE[:, None]))


def test_draws():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        law = NormalScalar(100.0, 30.0)
        drawn = law.draw(law.numbers(VALUE), 4000)
    assert drawn.value.shape == drawn.log_q.shape == (4000, 3)
    # six standard errors of 4000 draws: of a mean, and of a deviation
    assert float((drawn.value.mean(0) - VALUE).abs().max()) < 6 * 30 / 4000**0.5
    assert float((drawn.value.std(0) / 30 - 1).abs().max()) < 6 / 8000**0.5
    wanted = torch.distributions.Normal(VALUE, 30.0).log_prob(drawn.value)
    torch.testing.assert_close(drawn.log_q, wanted)
    law = DiracScalar(100.0)
    drawn = law.draw(law.numbers(VALUE), 4000)
    torch.testing.assert_close(drawn.value, VALUE[None])
    assert drawn.log_q.eq(0).all()
