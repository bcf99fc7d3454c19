"""Central slices against sums over voxels, projections of turned maps, and a bound of the error."""

import math
from itertools import permutations, product

import pytest
import torch
from brute_force import direct_slices

from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.fourier.slices import Slicer
from cryoprob.geometry.rotations import random_rotations

F64 = torch.float64
# float64 sums over at most 16^3 voxels of order one
TIGHT = {"rtol": 1e-10, "atol": 1e-11}


def slicer(box=16, radius=None, **options):
    radius = box // 2 - 1 if radius is None else radius
    return Slicer(full_band(box).prefix(radius), dtype=F64, **options)


def point_map(box, place):
    volume = torch.zeros(box, box, box, dtype=F64)
    volume[place] = 1
    return volume


def cube_turns():
    """The 24 rotations of the cube: signed permutations of determinant one."""
    for order, signs in product(permutations(range(3)), product((1.0, -1.0), repeat=3)):
        turn = torch.zeros(3, 3, dtype=F64)
        turn[range(3), order] = torch.tensor(signs, dtype=F64)
        if torch.linalg.det(turn) > 0:
            yield turn


def lopsided(box, generator):
    """Density without any symmetry that stays inside of the box when a quarter is turned."""
    volume = torch.zeros(box, box, box, dtype=F64)
    inner = [box - 1] * 3
    volume[1:, 1:, 1:] = torch.randn(*inner, generator=generator, dtype=F64)
    return volume


def turned(volume, rotation):
    """The map whose density at R r is the old one's at r, voxel by voxel."""
    box = volume.shape[0]
    new = torch.zeros_like(volume)
    x = torch.arange(1, box) - box // 2
    z, y, x = (g.flatten() for g in torch.meshgrid(x, x, x, indexing="ij"))
    nx, ny, nz = rotation.long() @ torch.stack([x, y, z])
    half = box // 2
    new[nz + half, ny + half, nx + half] = volume[z + half, y + half, x + half]
    return new


def correction(box, interpolation, pad=2):
    """What the map is divided by: the transform of the interpolation kernel, a sinc per axis."""
    x = (torch.arange(box, dtype=F64) - box // 2) / (pad * box)
    one = torch.sinc(x) ** (2 if interpolation == "linear" else 1)
    return one[:, None, None] * one[:, None] * one


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_a_quarter_turn_projects_the_turned_map(interpolation, generator):
    # turned frequencies are grid points, where nothing is interpolated: equal to rounding, so
    # each wrong axis, sign or transpose shows. (The correction of the kernel stays in.)
    box = 8
    volume, found = lopsided(box, generator), slicer(box, interpolation=interpolation)
    turns = torch.stack(list(cube_turns()))
    assert len(turns) == 24
    plain = volume / correction(box, interpolation)
    wanted = torch.stack([turned(plain, turn).sum(0) for turn in turns])
    torch.testing.assert_close(found.slices(volume, turns), found.band.pack(wanted), **TIGHT)


def test_conventions_in_words(generator):
    # the same by rot90 and transpose instead of index arithmetic
    box = 8
    volume, found = lopsided(box, generator), slicer(box)
    plain = volume / correction(box, "linear")
    none = torch.eye(3, dtype=F64)
    torch.testing.assert_close(found.slices(volume, none), found.band.pack(plain.sum(0)), **TIGHT)
    about_z = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=F64)
    image = plain.sum(0)[1:, 1:].rot90(1, (1, 0))  # what lay at +x goes to +y
    wanted = found.band.pack(torch.nn.functional.pad(image, (1, 0, 1, 0)))
    torch.testing.assert_close(found.slices(volume, about_z), wanted, **TIGHT)
    # x -> y -> z -> x: what lay along y is summed over, z becomes the image's x, and x its y
    cyclic = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=F64)
    wanted = found.band.pack(plain.sum(1).T)
    torch.testing.assert_close(found.slices(volume, cyclic), wanted, **TIGHT)


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_one_voxel_has_the_right_scale(interpolation):
    # the projection of a voxel of 5 at the origin is one pixel of 5: coefficients 5 / D times the
    # packing's weight, which is sqrt(D) times the unitary 3D transform, 5 / D^1.5
    box = 16
    found = slicer(box, interpolation=interpolation)
    slices = found.slices(5 * point_map(box, (8, 8, 8)), torch.eye(3, dtype=F64))
    torch.testing.assert_close(slices, 5 / box * found.band.weight + 0j, **TIGHT)
    image = found.band.unpack(slices)
    assert image.argmax() == 8 * box + 8
    # all that a band of M of the 256 numbers leaves of a pixel is its share of the height
    share = float(found.band.numbers_per_shell().sum()) / box**2
    assert float(image[8, 8]) == pytest.approx(5 * share, rel=1e-10)


def error_bound(place, box, pad, interpolation):
    """Largest error of a voxel's coefficient, relative to its size.

    Linear interpolation repeats the voxel at u + m (u = x / (pad D), m whole) with weights
    sinc^2(u + m) that add up to one; after correction the copies weigh 1 / sinc^2(u) - 1 together.
    The nearest point has a phase wrong by at most pi u per axis, and the size 1 / sinc(u).
    """
    u = (torch.tensor(place, dtype=F64) - box // 2) / (pad * box)
    if interpolation == "linear":
        return float((1 / torch.sinc(u) ** 2).prod() - 1)
    wrong = torch.polar((1 / torch.sinc(u)).prod(), (math.pi * u.abs().sum()).clamp(max=math.pi))
    return float((wrong - 1).abs())


def relative_error(volume, found, rotations):
    """Of the slices, per coefficient, relative to what a voxel of the map's total power has."""
    error = found.slices(volume, rotations) - direct_slices(volume, rotations, found.band)
    return error.abs() / (found.band.weight * volume.square().sum().sqrt() / found.band.box)


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
@pytest.mark.parametrize("pad", [1, 2, 3])
def test_error_of_a_voxel_is_within_the_bound(pad, interpolation, generator):
    box = 16
    found = slicer(box, interpolation=interpolation, pad=pad)
    rotations = random_rotations(50, generator, F64)
    for place in [(8, 8, 9), (8, 10, 7), (6, 8, 8), (3, 5, 12), (8, 8, 15), (1, 2, 14)]:
        bound = error_bound(place, box, pad, interpolation)
        largest = float(relative_error(point_map(box, place), found, rotations).max())
        # nearly met among 4000 frequencies: a wrong factor of the correction would break it
        assert 0.7 * bound < largest < bound + 1e-12


def typical(volume, pad):
    """Root mean square of the relative error of linear interpolation, from the map's voxels.

    On an axis the copy m of a voxel at u weighs (u / (u + m))^2, with a phase that is uniform
    over frequencies; copies along different axes add up in the square.
    """
    box = volume.shape[0]
    u = (volume.nonzero() - box // 2)[..., None] / (pad * box)
    m = torch.cat([torch.arange(-200, 0), torch.arange(1, 201)])
    square = (u / (u + m)).double().pow(4).sum(-1)
    density = volume[volume != 0].square()
    return float(((((1 + square).prod(-1) - 1) * density).sum() / density.sum()).sqrt())


# radius of the object in half boxes, padding, and the relative error stated for it
STATED = [
    (1 / 4, 2, 3e-3),
    (1 / 2, 2, 1.5e-2),
    (7 / 8, 2, 4.5e-2),
    (1 / 4, 4, 8e-4),
    (1 / 4, 8, 2e-4),
]


@pytest.mark.parametrize(("radius", "pad", "stated"), STATED)
def test_typical_error_is_the_one_stated(radius, pad, stated, generator):
    # density of random sign in a ball
    box = 16
    found = slicer(box, pad=pad)
    x = torch.arange(box, dtype=F64) - box // 2
    ball = (x[:, None, None] ** 2 + x[:, None] ** 2 + x**2).sqrt() <= radius * box / 2
    volume = torch.randn(box, box, box, generator=generator, dtype=F64) * ball
    rotations = random_rotations(20, generator, F64)
    error = float(relative_error(volume, found, rotations).square().mean().sqrt())
    assert error < stated
    # the power of one random object in one slice varies by some 10 %
    assert error == pytest.approx(typical(volume, pad), rel=0.3)


def test_smaller_bands_and_leading_dimensions(generator):
    box = 8
    volume, found = lopsided(box, generator), slicer(box)
    rotations = random_rotations(6, generator, F64)
    slices = found.slices(volume, rotations)
    small = slicer(box, radius=2)
    # another grid size: positions in it round differently
    torch.testing.assert_close(
        small.slices(volume, rotations), slices[:, : len(small.band)], **TIGHT
    )
    shaped = found.slices(volume, rotations.reshape(2, 3, 3, 3))
    assert shaped.equal(slices.reshape(2, 3, -1))
    assert found.slices(volume, rotations[0]).shape == (len(found.band),)


def test_chunks_and_threads_change_nothing(monkeypatch, generator):
    box = 8
    volume, found = lopsided(box, generator), slicer(box)
    rotations = random_rotations(11, generator, F64)
    slices = found.slices(volume, rotations)
    for chunk, threads in [(4, 1), (256, 3), (5, 4)]:
        monkeypatch.setattr("cryoprob.fourier.slices._CHUNK", chunk)
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        torch.testing.assert_close(found.slices(volume, rotations), slices, **TIGHT)


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_single_precision(interpolation, generator):
    box = 16
    volume = lopsided(box, generator)
    rotations = random_rotations(5, generator, F64)
    kind = {"interpolation": interpolation}
    wide = slicer(box, **kind).slices(volume, rotations)
    band = full_band(box).prefix(7)
    narrow = Slicer(band, **kind).slices(volume.float(), rotations.float())
    assert narrow.dtype == torch.complex64
    # positions of up to 16 grid steps are right to 1e-6 steps; a few may round to another neighbor
    far = (narrow - wide).abs() > 1e-4 * wide.abs().max()
    assert float(far.double().mean()) <= (0 if interpolation == "linear" else 2e-3)


def test_gradients(generator):
    box = 6
    volume = lopsided(box, generator).requires_grad_()
    found = slicer(box)
    rotations = random_rotations(3, generator, F64)
    assert torch.autograd.gradcheck(lambda v: found.slices(v, rotations), volume)
    # generic rotations stay within their interpolation cells for a step of 1e-6
    free = rotations.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda r: found.slices(volume.detach(), r), free)


def test_bad_input():
    band = full_band(8)
    with pytest.raises(InputError, match="linear or nearest, got 'cubic'"):
        Slicer(band.prefix(3), "cubic")
    with pytest.raises(InputError, match="at most 3 .*got 4"):
        Slicer(band.prefix(4))
