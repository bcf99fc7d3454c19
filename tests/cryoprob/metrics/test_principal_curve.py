"""Curves through clouds whose order is known, and through clouds that have none."""

import pytest
import torch
from scipy.stats import spearmanr

from cryoprob.checks import InputError
from cryoprob.geometry.rotations import random_rotations
from cryoprob.metrics.principal_curve import principal_curve

F64 = torch.float64


def order(one, other):
    return abs(float(spearmanr(one.numpy(), other.numpy()).statistic))


def along(n, generator):
    """Even places in [-1, 1], in a random order."""
    return torch.linspace(-1, 1, n, dtype=F64)[torch.randperm(n, generator=generator)]


def parabola(t, height):
    return torch.stack([t, height * t**2], 1)


@pytest.mark.parametrize("height", [2.0, 3.0, 6.0])
def test_a_bent_path_is_followed_from_end_to_end(height, generator):
    """Twice as high as it is wide: its ends lie side by side on the first axis."""
    t = along(400, generator)
    found = principal_curve(parabola(t, height))
    assert order(found.leading, t) < 0.5 and found.bent
    # a polynomial of degree 2 in the length is not quite a parabola: near the top 1 in 400 swap
    assert order(found.place, t) > 0.995


def test_an_arc_has_its_own_length():
    angle = torch.linspace(0, torch.pi, 300, dtype=F64)
    arc = 5 * torch.stack([angle.cos(), angle.sin()], 1)
    found = principal_curve(arc)
    length = (found.place - found.place[0]).abs()  # from either end
    # degree 2 instead of a circle: 5 % of the radius away at the worst
    assert float(length[-1]) == pytest.approx(5 * torch.pi, rel=0.05)
    assert found.residual < 0.01 and (length.diff() > 0).all()


@pytest.mark.parametrize("width", [0.0, 0.3, 0.6])
def test_a_straight_cloud_keeps_its_axis(width, generator):
    """It is not led astray by what lies beside it."""
    t = 1.7 * along(1000, generator)  # a standard deviation of 1
    beside = width * torch.randn(1000, 2, generator=generator, dtype=F64)
    found = principal_curve(torch.cat([t[:, None], beside], 1))
    assert not found.bent
    torch.testing.assert_close(found.place, found.leading - found.leading.min())
    assert order(found.place, t) > 0.98
    wanted = 2 * width**2 / (1 + 2 * width**2)
    assert found.residual == pytest.approx(wanted, abs=0.03)  # 1000 points: 0.01 at most


def test_rotation_scale_shift_and_sign_do_not_matter(generator):
    t = along(200, generator)
    flat = torch.randn(200, 1, generator=generator, dtype=F64)
    points = torch.cat([parabola(t, 2.0), 0.1 * flat], 1)
    first = principal_curve(points)
    turn = random_rotations(1, generator, F64)[0]
    again = principal_curve(-7 * points @ turn + torch.tensor([3.0, -2.0, 1.0], dtype=F64))
    assert order(first.place, again.place) == pytest.approx(1)
    assert again.residual == pytest.approx(first.residual)
    assert float(again.place.max()) == pytest.approx(7 * float(first.place.max()))


def test_one_coordinate_is_its_own_curve(generator):
    values = torch.randn(50, 1, generator=generator, dtype=F64)
    found = principal_curve(values)
    assert found.residual == 0 and not found.bent
    torch.testing.assert_close(found.place, values[:, 0] - values.min())


def test_points_that_are_all_alike():
    found = principal_curve(torch.ones(5, 2))
    assert found.place.unique().numel() == 1 and found.residual == 0


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (torch.ones(1, 2), "2 or more"),
        (torch.ones(4), "size"),
        (torch.tensor([[1.0], [torch.nan]]), "finite"),
    ],
)
def test_what_has_no_curve(values, told):
    with pytest.raises(InputError, match=told):
        principal_curve(values)
