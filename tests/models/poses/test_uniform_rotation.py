"""Uniform orientations: Haar measure, its grid, asymmetric units and turns."""

from math import cos, log, radians

import pytest
import torch

from cryoprob.geometry.rotations import check_rotations, random_rotations
from cryoprob.geometry.symmetry import point_group
from cryoprob.models.poses.uniform_rotation import UniformRotation

F64 = torch.float64


def test_haar_measure(false_alarm):
    law = UniformRotation(dtype=F64).prior().expand(torch.Size((4,)))
    assert law.batch_shape == (4,) and law.event_shape == (3, 3)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        drawn = law.sample((1000,))
        again = law.sample((1000,))
    assert drawn.shape == (1000, 4, 3, 3) and not drawn.equal(again)
    check_rotations(drawn)
    assert law.log_prob(drawn[0]).equal(torch.zeros(4, dtype=F64))
    # entries have mean 0 and variance 1/3; 9 means of 4000, each within 5 standard errors (1e-6)
    assert float(drawn.mean((0, 1)).abs().max()) < 5 * (1 / 3 / 4000) ** 0.5


@pytest.mark.parametrize("symmetry", ["C1", "C3", "D2", "T"])
def test_grid_of_one_asymmetric_unit(symmetry):
    prior = UniformRotation(dtype=F64).discretize(1, symmetry=symmetry)
    law, group = prior.prior(), point_group(symmetry).double()
    assert prior.enumerable and law.points.equal(prior.matrices())
    assert float(law.log_mass.logsumexp(0)) == pytest.approx(0, abs=1e-12)
    assert prior.log_mass == pytest.approx(-log(len(prior.cells())))
    # every rotation of the whole grid has an equivalent kept within 1.25 steps: cells are kept by
    # their centers, so that at the border of the unit up to a cell may be missing
    every = prior.grid.matrices(dtype=F64)
    equivalent = torch.einsum("nij,gjk->ngik", every, group).flatten(2)
    closest = torch.einsum("nga,qa->ngq", equivalent, law.points.flatten(1)).amax((1, 2))
    assert float(closest.min()) > 1 + 2 * cos(radians(1.25 * prior.grid.spacing_deg))
    assert len(prior.cells()) / len(prior.grid) == pytest.approx(1 / len(group), rel=0.15)


def test_turn(generator):
    turn = random_rotations(1, generator, F64)[0]
    uniform = UniformRotation(dtype=F64)
    plain, turned = uniform.discretize(1), uniform.discretize(1, turn=turn)
    torch.testing.assert_close(turned.matrices(), turn @ plain.matrices())
    assert turned.coarser().order == 0
    torch.testing.assert_close(
        turned.coarser().matrices(), turn @ uniform.discretize(0).matrices()
    )
    index = torch.tensor([5, 3])
    assert turned.matrices(index).equal(turned.matrices()[index])


def test_dtype_follows():
    for dtype in (torch.float32, F64):
        prior = UniformRotation(dtype=dtype).discretize(0)
        assert prior.matrices().dtype == prior.prior().log_mass.dtype == dtype
