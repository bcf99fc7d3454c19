"""Gaussians: slices by an explicit sum, projections, what is free, and what moves them."""

import math

import pytest
import torch

from cryoprob.checks import DataWarning, InputError
from cryoprob.gaussians import gaussian_density
from cryoprob.geometry.rotations import random_rotations
from cryoprob.io.structures import adk
from cryoprob.models.volumes.displacements import LinearDisplacements, ResidualDisplacements
from cryoprob.models.volumes.gaussian_mixture import FREE, GaussianMixture

F64 = torch.float64
BOX, PIXEL = 24, 4.0


def some(generator, **more):
    """Seven unlike Gaussians of 1.5 to 2 voxels, six widths from the edge of the box."""
    where = 4 * torch.randn(7, 3, generator=generator, dtype=F64)
    heights = torch.rand(7, generator=generator, dtype=F64)
    widths = 6 + torch.rand(7, generator=generator, dtype=F64)
    kind = {"radius": 8, "dtype": F64, "free": FREE} | more
    return GaussianMixture(BOX, PIXEL, where, heights, widths, **kind)


def drawn(volume, generator):
    start = volume.start(generator)
    return start + 0.1 * torch.randn(start.shape, generator=generator, dtype=F64)


def test_slices_are_the_explicit_sum(generator):
    volume = some(generator)
    own, turns = drawn(volume, generator), random_rotations(4, generator, F64)
    where, heights, widths = volume.sites(own)
    k = torch.stack([volume.band.kx, volume.band.ky, 0 * volume.band.kx], 1).double()
    k = (k @ turns) / (BOX * PIXEL)  # R^T k, cycles per A
    wave = torch.exp(-2j * math.pi * (k @ where.T))
    square = k.square().sum(-1)[..., None]
    envelope = torch.exp(-2 * math.pi**2 * widths**2 * square)
    wanted = (heights * envelope * wave).sum(-1) / BOX * volume.band.weight
    found = volume.slices(own, turns)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


def test_projection_is_the_transform_of_slices_and_the_sum_of_density(generator):
    volume = some(generator)
    own, turns = drawn(volume, generator), random_rotations(4, generator, F64)
    images = volume.projection(own, turns)
    found, wanted = volume.band.pack(images), volume.slices(own, turns)
    assert images.shape == (4, BOX, BOX)
    # alias at 2/3 of a cycle per voxel, of 1.4 voxels: exp(-2 pi^2 1.4^2 (2/3)^2) = 3e-8
    assert float((found - wanted).abs().max()) < 1e-7 * float(wanted.abs().max())
    ahead = volume.projection(own, torch.eye(3, dtype=F64))
    summed = volume.density(own).sum(0)
    # a plain sum along z of a Gaussian of 1.4 voxels: 2 exp(-2 pi^2 1.4^2) = 3e-17
    torch.testing.assert_close(ahead, summed, rtol=1e-9, atol=1e-12)
    assert float(ahead.sum()) == pytest.approx(float(volume.sites(own)[1].sum()), rel=1e-7)


def test_density_is_that_of_gaussian_maps(generator):
    volume = some(generator)
    own = drawn(volume, generator)
    where, heights, widths = volume.sites(own)
    wanted = gaussian_density(where, heights[:, None], widths[:, None] ** 2, BOX, PIXEL, F64)
    found = volume.density(own)
    # that one cuts Gaussians off at five widths
    assert float((found - PIXEL**3 * wanted).abs().max()) < 1e-5 * float(found.max())


@pytest.mark.parametrize(
    ("free", "count"),
    [((), 0), (("positions",), 21), (("widths", "amplitudes"), 14), (FREE, 35)],
)
def test_what_is_free(free, count, generator):
    volume = some(generator, free=free)
    start = volume.start(generator)
    assert start.shape == (count,) and volume.prior().event_shape == (count,)
    where, heights, widths = volume.sites(start)
    torch.testing.assert_close(where, volume.positions)
    torch.testing.assert_close(heights, volume.amplitudes)
    torch.testing.assert_close(widths, volume.widths)
    parts = dict(zip(FREE, volume.sites(start + 1), strict=True))
    kept = {"positions": where, "amplitudes": heights, "widths": widths}
    assert all((parts[n] != kept[n]).all() == (n in free) for n in FREE)
    assert (parts["widths"] > 0).all()


def test_modes_move_the_sites(generator):
    modes = torch.randn(2, 7, 3, generator=generator, dtype=F64)
    given = some(generator, displacement=LinearDisplacements(modes), free=())
    free = some(generator, displacement=LinearDisplacements(modes, 0.5), free=())
    state = torch.tensor([[0.0, 0.0], [1.0, -2.0]], dtype=F64)
    for volume, count in ((given, 0), (free, 42)):
        start = volume.start(generator)
        assert start.shape == (count,)
        where, _, _ = volume.sites(start, state)
        torch.testing.assert_close(where[0], volume.positions)
        torch.testing.assert_close(where[1], volume.positions + modes[0] - 2 * modes[1])
    other = free.start(generator) * 2
    moved = free.sites(other, state)[0][1] - free.positions
    torch.testing.assert_close(moved, 2 * (modes[0] - 2 * modes[1]))


def test_a_network_moves_nothing_at_first_nor_at_zero(generator):
    moving = ResidualDisplacements(3, 7, width=8, reach=2.0, dtype=F64)
    volume = some(generator, displacement=moving, free=())
    state = torch.randn(5, 3, generator=generator, dtype=F64)
    start = volume.start(generator)
    assert (volume.sites(start, state)[0] == volume.positions).all()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draws = volume.prior().sample((200,))
    assert torch.allclose(volume.sites(draws[0], 0 * state)[0], volume.positions)
    away = torch.stack([volume.sites(d, state)[0] for d in draws]) - volume.positions
    # the reach, within the factor that a network of random weights leaves open
    assert 0.5 < float(away.std()) < 8


def test_molecules(generator):
    atoms = adk("open")
    volume = GaussianMixture.from_structure(atoms, 32, 4.0, amplitudes=0.5, dtype=F64)
    own = volume.start(generator)
    density = volume.density(own)
    assert float(density.sum()) == pytest.approx(0.5 * 6 * 214, rel=1e-4)  # carbons, in the box
    voxel = torch.arange(32).double() - 16
    center = torch.stack(
        [(density.sum((1, 2)) * voxel).sum(), (density.sum((0, 1)) * voxel).sum()]
    )
    assert float(center.abs().max()) < 1e-3 * float(density.sum())
    start = GaussianMixture.random(50, 32, 4.0, generator, total=3.0)
    assert float(start.amplitudes.sum()) == pytest.approx(3.0, rel=1e-5)
    assert start.start(generator).shape == (250,) and len(set(start.widths.tolist())) == 1
    spread = float(start.positions.std())
    assert spread == pytest.approx(16.0, rel=0.3)  # 150 numbers: 6 % of error, five times


def test_bad_input(generator):
    with pytest.raises(InputError, match="positions, amplitudes, widths"):
        some(generator, free=["colors"])
    with pytest.raises(InputError, match="7 sites"):
        some(generator, displacement=ResidualDisplacements(2, 5))
    with pytest.raises(InputError, match="modes"):
        LinearDisplacements(torch.zeros(2, 3))
    with pytest.warns(DataWarning, match="narrower"):
        GaussianMixture(8, 4.0, torch.zeros(1, 3), widths=1.0)
