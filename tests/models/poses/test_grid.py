"""Distributions on a grid: masses, enumeration, and draws."""

import pytest
import torch
from scipy import stats

from cryoprob.models.poses.grid import GridDistribution

F64 = torch.float64


@pytest.fixture
def grid(generator):
    points = torch.randn(5, 2, generator=generator, dtype=F64)
    mass = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=F64)
    return GridDistribution(points, mass.log())


def test_enumeration(grid):
    wide = grid.expand(torch.Size((3,)))
    assert wide.has_enumerate_support and wide.batch_shape == (3,) and wide.event_shape == (2,)
    assert wide.enumerate_support(expand=False).shape == (5, 1, 2)
    assert wide.enumerate_support().shape == (5, 3, 2)
    every = wide.log_prob(wide.enumerate_support(expand=False))
    assert every.shape == (5, 3)
    torch.testing.assert_close(every.exp().sum(0), torch.ones(3, dtype=F64))
    assert wide.log_prob(wide.enumerate_support()).equal(every)
    # as pyro moves it when another site has taken the dimension before
    moved = wide.log_prob(wide.enumerate_support(expand=False).unsqueeze(1))
    assert moved.shape == (5, 1, 3) and moved[:, 0].equal(every)


@pytest.mark.parametrize("count", [1, 4, 5, 6])
def test_masses_of_given_points(grid, count, generator):
    # in any order, and of any number of particles: also of as many as the grid has points
    index = torch.randint(5, (count,), generator=generator)
    found = grid.expand(torch.Size((count,))).log_prob(grid.points[index])
    assert found.equal(grid.log_mass[index])
    near = grid.points[index] + 1e-9
    assert grid.expand(torch.Size((count,))).log_prob(near).equal(grid.log_mass[index])


def test_one_point_without_a_batch(grid):
    assert grid.log_prob(grid.points[3]) == grid.log_mass[3]


def test_draws_are_points_with_their_masses(grid, false_alarm):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        draws = grid.expand(torch.Size((3,))).sample((2000,))
    assert draws.shape == (2000, 3, 2)
    same = (draws[..., None, :] == grid.points).all(-1)
    assert (same.sum(-1) == 1).all()
    counts = same.sum((0, 1)).numpy()
    expected = 6000 * grid.log_mass.exp().numpy()
    assert stats.chisquare(counts, expected).pvalue > false_alarm


def test_masses_are_differentiable(grid):
    weight = grid.log_mass.clone().requires_grad_()
    law = GridDistribution(grid.points, torch.log_softmax(weight, 0))
    law.log_prob(grid.points[[1, 1]]).sum().backward()
    wanted = -2 * grid.log_mass.exp()
    wanted[1] += 2
    torch.testing.assert_close(weight.grad, wanted)
