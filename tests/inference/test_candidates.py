"""Smallest sets of a given mass, against sorting."""

import pytest
import torch

from cryoprob.inference.candidates import (
    Candidates,
    Keep,
    fill_up,
    smallest_pairs,
    smallest_set,
)


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
    found = Candidates.of(1, row, cell, shift, smallest_set(mass, Keep(0.98).share))
    assert found.shift.tolist() == [[1, 2], [1, -1]]
    wanted = [[4, 5, 6, 7, 8, 9, 10, 11], [4, 5, 6, 7, -1, -1, -1, -1]]
    assert found.shifts_at(2).tolist() == wanted
    assert found.shifts_at(1) is found.shift


def test_never_fewer_than_the_least(generator):
    weights = torch.randn(20, 50, generator=generator).mul(8).softmax(1)
    assert float(smallest_set(weights, 0.9).sum(1).min()) < 7
    found = smallest_set(weights, 0.9, 7)
    assert found.sum(1).min() == 7
    # the best ones, and nothing is dropped that the mass asks for
    seventh = weights.topk(7, 1).values[:, -1:]
    assert found.equal(smallest_set(weights, 0.9) | (weights >= seventh))
    few = torch.tensor([[0.5, 0.5, 0.0]])
    assert smallest_set(few, 0.9, 10).tolist() == [[True, True, False]]


@pytest.mark.parametrize(("mass", "least"), [(0.5, 1), (0.999, 1), (0.9, 7), (1.0, 1)])
def test_pairs_are_sets_in_a_list(mass, least, generator):
    weights = torch.randn(20, 50, generator=generator, dtype=torch.float64).mul(4).softmax(1)
    weights[3, 10:] = 0
    shuffled = torch.randperm(1000, generator=generator)
    row = (shuffled // 50).contiguous()
    kept = smallest_pairs(row, weights.flatten()[shuffled], 20, mass, least)
    mask = torch.zeros(1000, dtype=torch.bool)
    mask[shuffled[kept]] = True
    assert mask.reshape(20, 50).equal(smallest_set(weights, mass, least))


def test_a_row_without_pairs():
    row, weight = torch.tensor([2, 2, 0]), torch.tensor([0.9, 0.1, 1.0])
    assert smallest_pairs(row, weight, 4, 0.5).tolist() == [True, False, True]


@pytest.mark.parametrize("over", [1, 2])
def test_sharp_rows_are_filled_up(over, generator):
    logits = 3000 * torch.rand(6, 7, 9, generator=generator)
    weights = logits.flatten(1).softmax(1).view_as(logits).sum(over)
    assert float((weights > 0).sum(1).min()) < 4  # all others are 0 to rounding
    kept = fill_up(smallest_set(weights, 0.999, 4), logits, over, 4)
    best = logits.amax(over)
    assert kept.equal(best >= best.topk(4, 1).values[:, -1:])
