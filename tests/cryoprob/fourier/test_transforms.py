"""Centered unitary transforms against a plain matrix, and the crop of a box in Fourier space."""

import math

import pytest
import torch

from cryoprob.fourier.bands import full_band
from cryoprob.fourier.transforms import crop_images, crop_map, fft2, fft3, ifft2, ifft3

# float64 sums of up to 10^3 terms of order one
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def matrix(box):
    """exp(-2 pi i k x / D) / sqrt(D), both counted from D // 2."""
    k = torch.arange(box, dtype=torch.float64) - box // 2
    return torch.exp(-2j * math.pi * torch.outer(k, k) / box) / math.sqrt(box)


def some(*shape, generator):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("box", [2, 4, 6, 7])
def test_against_the_matrix(box, generator):
    w = matrix(box)
    images = some(2, box, box, generator=generator)
    maps = some(2, box, box, box, generator=generator)
    plane = torch.einsum("ay,bx,nyx->nab", w, w, images + 0j)
    cube = torch.einsum("az,by,cx,nzyx->nabc", w, w, w, maps + 0j)
    torch.testing.assert_close(fft2(images), plane, **TIGHT)
    torch.testing.assert_close(fft3(maps), cube, **TIGHT)


@pytest.mark.parametrize("box", [4, 6])
def test_inverse_and_unitary(box, generator):
    images, maps = (some(*[box] * d, generator=generator) for d in (2, 3))
    for values, forward, back in [(images, fft2, ifft2), (maps, fft3, ifft3)]:
        torch.testing.assert_close(back(forward(values)), values + 0j, **TIGHT)
        torch.testing.assert_close(
            forward(values).abs().square().sum(), values.square().sum(), **TIGHT
        )


def test_a_point_at_the_origin_has_a_flat_real_transform():
    box = 6
    point = torch.zeros(box, box, box, dtype=torch.float64)
    point[box // 2, box // 2, box // 2] = 1
    torch.testing.assert_close(fft3(point), torch.full_like(point, box**-1.5) + 0j, **TIGHT)
    flat = torch.full((box, box), 1 / box, dtype=torch.float64) + 0j
    torch.testing.assert_close(fft2(point[box // 2]), flat, **TIGHT)


def waves(box, modes):
    """Sum of plane waves (amplitude, k, phase) at the voxels of a box, by cosines in space."""
    x = (torch.arange(box, dtype=torch.float64) - box // 2) / box
    grid = torch.stack(torch.meshgrid(*[x] * len(modes[0][1]), indexing="ij"))
    total = torch.zeros(grid.shape[1:], dtype=torch.float64)
    for amplitude, k, phase in modes:
        angle = 2 * math.pi * (torch.tensor(k).double() @ grid.flatten(1)) + phase
        total += amplitude * torch.cos(angle).reshape(total.shape)
    return total


@pytest.mark.parametrize(("size", "box"), [(12, 8), (10, 4), (8, 12)])
def test_crop_of_an_image_resamples_it(size, box):
    # waves below both Nyquist frequencies, read off at the new pixels: gray values grow by D / box
    modes = [(1.0, (1, 0), 0.3), (0.7, (-1, 1), 1.1), (0.4, (0, 0), 0.0), (0.5, (1, 1), 2.0)]
    cropped = crop_images(waves(size, modes), box)
    torch.testing.assert_close(cropped, waves(box, modes) * size / box, **TIGHT)


@pytest.mark.parametrize(("size", "box"), [(12, 8), (10, 4), (8, 12)])
def test_crop_of_a_map_resamples_it(size, box):
    # a slice of k cycles is the same number of cycles in any box, and a sum over z of D terms
    modes = [(1.0, (1, 0, 1), 0.3), (0.7, (0, -1, 1), 1.1), (0.4, (0, 0, 0), 0.0)]
    cropped = crop_map(waves(size, modes), box)
    torch.testing.assert_close(cropped, waves(box, modes) * (size / box) ** 2, **TIGHT)


def test_projections_of_a_cropped_map_are_cropped_projections(generator):
    volume = some(12, 12, 12, generator=generator)
    for axis in range(3):
        wanted = crop_images(volume.sum(axis), 8)
        torch.testing.assert_close(crop_map(volume, 8).sum(axis), wanted, **TIGHT)


def test_crop_keeps_coefficients_and_so_white_noise(generator):
    images = some(3, 12, 12, generator=generator)
    band, large = full_band(8).prefix(3), full_band(12).prefix(3)
    torch.testing.assert_close(band.pack(crop_images(images, 8)), large.pack(images), **TIGHT)
    twice = crop_images(crop_images(images, 8), 8)
    assert twice.equal(crop_images(images, 8))
    torch.testing.assert_close(
        crop_images(crop_images(crop_images(images, 8), 12), 8), twice, **TIGHT
    )
