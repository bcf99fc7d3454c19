"""Elastic networks: their energy by differences, rigid motions, and a motion that is known."""

import pytest
import torch

from cryoprob.checks import InputError
from cryoprob.elastic_network import elastic_hessian, normal_modes
from cryoprob.io.structures import adk

F64 = torch.float64
CUTOFF = 10.0


@pytest.fixture
def sites(generator):
    """Twelve sites in a ball of about 5 A; some pairs are farther apart than the cutoff."""
    found = 3.5 * torch.randn(12, 3, generator=generator, dtype=F64)
    apart = torch.pdist(found)
    assert (apart > CUTOFF).any() and (apart < CUTOFF).any()
    return found


def energy(places, rest, cutoff=CUTOFF):
    """Pair by pair."""
    total = 0.0
    for i in range(len(rest)):
        for j in range(i):
            length = (rest[i] - rest[j]).norm()
            if length <= cutoff:
                total = total + ((places[i] - places[j]).norm() - length) ** 2 / 2
    return total


def rigid(positions):
    """Orthonormal shifts and turns, [3n, 6]."""
    x = positions - positions.mean(0)
    axes = torch.eye(3, dtype=F64)
    moves = [
        *(e.expand_as(x) for e in axes),
        *(torch.linalg.cross(e.expand_as(x), x) for e in axes),
    ]
    return torch.linalg.qr(torch.stack(moves).flatten(1).T)[0]


def test_hessian_is_the_energys_curvature(sites):
    """By central differences of the slope, which itself is by autograd."""
    step, columns = 1e-4, []
    for number in range(36):
        slopes = []
        for sign in (1, -1):
            places = sites.clone().flatten()
            places[number] += sign * step
            places = places.reshape(12, 3).requires_grad_()
            (slope,) = torch.autograd.grad(energy(places, sites), places)
            slopes.append(slope.flatten())
        columns.append((slopes[0] - slopes[1]) / (2 * step))
    # the third-order term: step^2 over squared distances of 1 A and more
    torch.testing.assert_close(
        elastic_hessian(sites, CUTOFF), torch.stack(columns, 1), rtol=0, atol=1e-6
    )


def test_hessian_is_symmetric_and_only_rigid_motions_are_free(sites):
    hessian = elastic_hessian(sites, CUTOFF)
    assert hessian.equal(hessian.T)
    values = torch.linalg.eigvalsh(hessian)
    rounding = 36 * torch.finfo(F64).eps * float(values[-1])
    assert float(values.abs()[:6].max()) < 10 * rounding < 1e-6 < float(values[6])
    assert float((hessian @ rigid(sites)).abs().max()) < 10 * rounding


def test_modes_are_the_softest_eigenvectors(sites):
    modes, energies = normal_modes(sites, 30, CUTOFF)
    hessian = elastic_hessian(sites, CUTOFF)
    flat = modes.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(30, dtype=F64), rtol=0, atol=1e-12)
    torch.testing.assert_close(hessian @ flat.T, flat.T * energies, rtol=0, atol=1e-12)
    assert (energies.diff() >= 0).all() and float((flat @ rigid(sites)).abs().max()) < 1e-9
    assert (flat.gather(1, flat.abs().argmax(1, keepdim=True)) > 0).all()
    few, soft = normal_modes(sites, 3, CUTOFF)
    torch.testing.assert_close((few * modes[:3]).sum((1, 2)), torch.ones(3, dtype=F64))
    torch.testing.assert_close(soft, energies[:3])
    single, _ = normal_modes(sites.float(), 3, CUTOFF)
    assert single.dtype == torch.float32


def test_a_triangle_has_the_frequencies_of_the_textbook():
    """Equal sides and springs: one breathing mode of 3, two of 3/2 (times 1 / mass)."""
    corner = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, 3**0.5, 0.0]], dtype=F64)
    modes, energies = normal_modes(corner, 3)
    torch.testing.assert_close(energies, torch.tensor([1.5, 1.5, 3.0], dtype=F64))
    outward = corner - corner.mean(0)
    likeness = (modes[2] * outward).sum() / outward.norm()
    assert abs(float(likeness)) == pytest.approx(1)


def overlap(modes, start, end):
    """|cosine| of each mode with the change of shape from start to end, turns taken off."""
    change = (end - start).flatten()
    free = rigid(start)
    change = change - free @ (free.T @ change)
    return (modes.flatten(1) @ (change / change.norm())).abs()


def test_soft_modes_open_and_close_adenylate_kinase():
    """Measured: of the open form .82 for one mode, .92 for five; of the closed .62, .85 for twenty.

    Random directions have .04, .09 and .18. Open forms tell more of such motions than closed ones
    (Tama and Sanejouand 2001).
    """
    closed, opened = (adk(state).positions for state in ("closed", "open"))
    first = overlap(normal_modes(opened, 5)[0], opened, closed)
    assert float(first[0]) > 0.75 and float(first.norm()) > 0.88
    second = overlap(normal_modes(closed, 20)[0], closed, opened)
    assert float(second[0]) > 0.55 and float(second.norm()) > 0.8


@pytest.mark.parametrize("cutoff", [10.0, 15.0])
def test_adenylate_kinase_has_six_free_motions(cutoff):
    values = torch.linalg.eigvalsh(elastic_hessian(adk("closed").positions, cutoff))
    # 642 numbers: 642 eps times the largest, about 40, is 6e-12
    assert float(values[:6].abs().max()) < 1e-11 and float(values[6]) > 0.05


def test_what_has_no_modes(sites):
    with pytest.raises(InputError, match="420 more at a cutoff of 4.5 A.*longer cutoff"):
        normal_modes(adk("closed").positions, 5, 4.5)
    straight = torch.arange(5.0)[:, None] * torch.tensor([1.0, 2.0, 0.0])
    with pytest.raises(InputError, match="more at a cutoff"):
        normal_modes(straight, 2, 30.0)
    with pytest.raises(InputError, match="1 to 30 of 12"):
        normal_modes(sites, 31)
    with pytest.raises(InputError, match="apart"):
        elastic_hessian(torch.zeros(4, 3))
    with pytest.raises(InputError, match="finite"):
        elastic_hessian(sites * torch.nan)
    with pytest.raises(InputError, match="cutoff"):
        elastic_hessian(sites, 0.0)
    with pytest.raises(InputError, match=r"\[n, 3\]"):
        elastic_hessian(torch.zeros(4, 2))
