"""Smallest sets of a given mass, against sorting."""

import pytest
import torch

from cryoprob.inference.candidates import Candidates, smallest_set


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mass", [0.1, 0.5, 0.9, 0.999])
def test_against_sorting(mass, dtype, generator):
    weights = torch.randn(50, 200, generator=generator, dtype=dtype).mul(3).softmax(1)
    found = smallest_set(weights, mass)
    ranked, order = weights.sort(1, descending=True)
    needed = (ranked.double().cumsum(1) < mass).sum(1) + 1
    # without ties the set is the smallest one (bisection may keep one weight more in 2^24)
    assert ((found.sum(1) - needed).abs() <= 1).all()
    held = (weights.double() * found).sum(1)
    assert (held >= mass - 1e-6).all()
    # the largest come first
    place = torch.arange(200).expand(50, 200)
    assert found.gather(1, order).equal(place < found.sum(1, keepdim=True))


def test_edges():
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    assert smallest_set(weights, 1.0).equal(weights > 0)
    assert smallest_set(weights, 0.9).tolist() == [
        [True, False, False],
        [True, True, False],
        [True] * 3,
    ]
    # ties are kept together: deterministic, whatever their order
    assert smallest_set(weights, 0.3).tolist()[1] == [True, True, False]
    assert smallest_set(7 * weights, 0.9).equal(smallest_set(weights, 0.9))


def test_shifts_are_padded_and_refined():
    mass = torch.tensor([[0.0, 0.6, 0.4], [0.0, 1.0, 0.0]])
    shift = torch.arange(3).expand(2, 3)
    row, cell = torch.tensor([0, 1]), torch.tensor([7, 9])
    found = Candidates.of(row, cell, mass, shift, 0.99)
    assert found.shift.tolist() == [[1, 2], [1, -1]]
    wanted = [[4, 5, 6, 7, 8, 9, 10, 11], [4, 5, 6, 7, -1, -1, -1, -1]]
    assert found.child_shifts().tolist() == wanted
