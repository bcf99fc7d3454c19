"""Reading a latent space: axes, clusters, paths and regions of clouds that are known."""

import pytest
import torch

from cryoprob.checks import InputError
from cryoprob.inference.latent import centers, line, nearest, region_shares
from cryoprob.metrics.principal_axes import principal_axes

F64 = torch.float64


def cloud(generator, n=400):
    """Normal points, long along (1, 1, 0)."""
    white = torch.randn(n, 3, generator=generator, dtype=F64)
    long = torch.tensor([1.0, 1.0, 0.0], dtype=F64) / 2**0.5
    return 5 * white[:, :1] * long + 0.3 * white + torch.tensor([1.0, 2.0, 3.0], dtype=F64)


def test_axes_are_numpys(generator):
    values = cloud(generator)
    axes = principal_axes(values)
    covariance = torch.cov(values.T)
    wanted, vectors = torch.linalg.eigh(covariance)
    torch.testing.assert_close(axes.variance, wanted.flip(0))
    torch.testing.assert_close(
        (axes.axes @ vectors.flip(1)).abs(), torch.eye(3, dtype=F64), atol=1e-9, rtol=0
    )
    torch.testing.assert_close(axes.at(axes.project(values)), values)
    largest = axes.axes.gather(1, axes.axes.abs().argmax(1, keepdim=True))
    assert (largest > 0).all()


def test_a_path_stays_among_the_points(generator):
    """On a ring it follows the ring, where the mean of all is empty."""
    angle = 3.0 * torch.rand(2000, generator=generator, dtype=F64)
    ring = torch.stack([10 * angle.cos(), 10 * angle.sin()], 1)
    axes = principal_axes(ring)
    for axis in (0, 1):  # the second goes along one arm, where the mean of both is empty
        path = line(ring, 9, axis)
        along = axes.project(path)[:, axis]
        assert (along.diff() > 0).all()
        below = (axes.project(ring)[:, axis] < along[:, None]).double().mean(1)
        wanted = torch.linspace(0.05, 0.95, 9, dtype=F64)
        # within the tenth of the points that the mean is of
        torch.testing.assert_close(below, wanted, rtol=0, atol=0.051)
        # at most a tenth of the arc, whose middle lies 0.1 inside
        assert (path.norm(dim=1) > 9.5).all() and (path.norm(dim=1) < 10).all()


@pytest.mark.parametrize("axis", [0, 1])
def test_a_path_between_clusters_stops_only_in_them(generator, axis):
    """Three clusters of 3, 3 and 4 tenths: some quantiles fall between two."""
    place = torch.tensor([[0.0, 0.0], [12.0, 0.0], [6.0, 5.0]], dtype=F64)
    sizes = torch.tensor([300, 300, 400])
    values = place.repeat_interleave(sizes, 0)
    values = values + 0.5 * torch.randn(1000, 2, generator=generator, dtype=F64)
    path = line(values, 12, axis)
    distance = torch.cdist(path, place).amin(1)
    assert (distance < 1.5).all()  # three standard deviations
    assert len(torch.cdist(path, place).argmin(1).unique()) == 3 - axis


def test_a_path_of_few_or_equal_values():
    few = torch.tensor([[0.0, 1.0], [1.0, 2.0], [2.0, 3.0]], dtype=F64)
    path = line(few, 4)
    assert all((few == point).all(1).any() for point in path)
    assert line(few[:1].expand(5, 2), 3).equal(few[:1].expand(3, 2))
    assert line(few[:, :1], 2).shape == (2, 1)


def test_clusters_and_their_regions(generator):
    place = torch.tensor([[0.0, 0.0], [10.0, 0.0], [20.0, 1.0]], dtype=F64)
    which = torch.randint(3, (300,), generator=generator)
    values = place[which] + 0.5 * torch.randn(300, 2, generator=generator, dtype=F64)
    points, own = centers(values, 3, seed=4)
    assert own.equal(which) or own.equal(2 - which)  # sorted along the first axis, either way
    assert all((values == point).all(1).any() for point in points)
    assert nearest(values, points).unique().numel() == 3
    sharp = region_shares(values, torch.full_like(values, 1e-3), points, seed=1)
    assert sharp.argmax(1).equal(own) and float(sharp.amax(1).min()) == pytest.approx(1)
    with pytest.raises(InputError, match="1 to all"):
        centers(values[:2], 3, seed=1)


def test_shares_are_normal_masses():
    """Two points, one image in between: the mass on either side of the middle."""
    mean, std = torch.zeros(1, 1, dtype=F64), torch.ones(1, 1, dtype=F64)
    points = torch.tensor([[0.0], [2.0]], dtype=F64)
    found = region_shares(mean.expand(500, 1), std.expand(500, 1), points, seed=3)
    wanted = 0.5 * torch.special.erfc(torch.tensor(1 / 2**0.5, dtype=F64))
    # 500 images of 256 draws: 0.001 a standard deviation
    assert float(found[:, 1].mean()) == pytest.approx(float(wanted), abs=0.0045)
    torch.testing.assert_close(found.sum(1), torch.ones(500, dtype=F64))
