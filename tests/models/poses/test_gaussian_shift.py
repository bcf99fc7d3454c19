"""The shift prior on the plane and on its grids."""

import math

import pytest
import torch

from cryoprob.checks import InputError
from cryoprob.models.poses.gaussian_shift import GaussianShift

F64 = torch.float64


def test_density_on_the_plane():
    law = GaussianShift(3.0, dtype=F64).prior()
    assert law.batch_shape == () and law.event_shape == (2,)
    wanted = -(1 + 4) / (2 * 9) - math.log(2 * math.pi * 9)
    assert float(law.log_prob(torch.tensor([1.0, -2.0], dtype=F64))) == pytest.approx(wanted)


@pytest.mark.parametrize("refine", [0, 1, 2])
def test_masses_add_up_and_fall_like_the_gaussian(refine):
    prior = GaussianShift(3.0, dtype=F64).discretize(6.0, 2.0, refine=refine)
    mass, points = prior.log_mass(), prior.points()
    assert prior.enumerable and prior.infer == {"enumerate": "parallel"}
    assert float(mass.logsumexp(0)) == pytest.approx(0, abs=1e-12)
    ratio = mass - mass[0] + ((points**2).sum(1) - (points[0] ** 2).sum()) / 18
    torch.testing.assert_close(ratio, torch.zeros_like(ratio), rtol=0, atol=1e-12)
    assert prior.log_mass(points[[3, 1]]).equal(mass[[3, 1]])
    law = prior.prior()
    assert law.points.equal(points) and law.log_mass.equal(mass)


def test_a_refined_grid_has_the_right_parent():
    prior = GaussianShift(3.0).discretize(6.0, 2.0, refine=2)
    one = prior.coarser()
    assert one.grid == GaussianShift(3.0).discretize(6.0, 2.0, refine=1).grid
    assert one.coarser().grid.level == 0 and one.coarser().grid.step_A == 2.0
    away = (prior.points() - one.points()[prior.grid.parent(torch.arange(len(prior.grid)))]).abs()
    torch.testing.assert_close(away, torch.full_like(away, 0.25))  # a quarter of a step of 1


def test_fine_grids_tend_to_the_plane():
    # spread of the discretized prior against the Gaussian's, cut off at 5 sigma
    prior = GaussianShift(2.0, dtype=F64).discretize(10.0, 1.0, refine=1)
    variance = (prior.log_mass().exp()[:, None] * prior.points() ** 2).sum(0)
    torch.testing.assert_close(variance, torch.full_like(variance, 4.0), rtol=1e-3, atol=0)


def test_bad_width():
    with pytest.raises(InputError, match="positive length"):
        GaussianShift(0.0)
