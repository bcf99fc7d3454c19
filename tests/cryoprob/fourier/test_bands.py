"""Bands: the packing against the plain transform, its identities, and the crop on the way."""

import pytest
import torch

from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.fourier.transforms import crop_images, fft2

BOXES = [2, 4, 8, 10, 34]


def some_images(box: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(3, 2, box, box, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("box", BOXES)
def test_each_frequency_once_up_to_conjugation(box: int):
    band, half = full_band(box), box // 2
    pairs = set(zip(band.kx.tolist(), band.ky.tolist(), strict=True))
    wrap = lambda k: (k + half) % box - half  # noqa: E731
    other = {(wrap(-x), wrap(-y)) for x, y in pairs}
    everything = {(x, y) for x in range(-half, half) for y in range(-half, half)}
    assert len(pairs) == len(band) and pairs | other == everything
    both = list(zip(band.kx.tolist(), band.ky.tolist(), strict=True))
    own = torch.tensor([(wrap(-x), wrap(-y)) == (x, y) for x, y in both])
    assert ((band.weight == 1) == own).all()
    assert all(
        ((x, y) in pairs) != ((wrap(-x), wrap(-y)) in pairs)
        for x, y in everything - (pairs & other)
    )
    assert float(band.numbers_per_shell().sum()) == box**2


@pytest.mark.parametrize("box", BOXES)
def test_pack_is_the_centered_transform(box: int, generator):
    images, half = some_images(box, generator), box // 2
    for radius in (0, 1, half - 1, half, box):
        band = full_band(box).prefix(radius)
        want = fft2(images)[..., band.ky + half, band.kx + half] * band.weight
        torch.testing.assert_close(band.pack(images), want)
        assert (band.pack(images).imag[..., band.weight == 1] == 0).all()


@pytest.mark.parametrize("box", BOXES)
def test_identities(box: int, generator):
    images = some_images(box, generator)
    full = full_band(box)
    packed = full.pack(images)
    torch.testing.assert_close(full.unpack(packed), images)
    # float64: the weights too
    exact = {"rtol": 1e-13, "atol": 0}
    power, squares = packed.abs().square().sum(-1), images.square().sum((-2, -1))
    torch.testing.assert_close(power, squares, **exact)
    band = full.prefix(box // 4)
    assert packed[..., : len(band)].equal(band.pack(images))
    low = band.unpack(band.pack(images))
    torch.testing.assert_close(band.pack(low), band.pack(images))
    # what is outside of the band is gone: the low-passed image has no other power
    torch.testing.assert_close(
        low.square().sum((-2, -1)), band.pack(images).abs().square().sum(-1)
    )


@pytest.mark.parametrize(("size", "box"), [(12, 8), (10, 4), (34, 32), (8, 8)])
def test_packing_a_larger_image_crops_it(size: int, box: int, generator):
    images = some_images(size, generator)
    band = full_band(box)
    torch.testing.assert_close(band.pack(images), band.pack(crop_images(images, box)))


def test_gradients(generator):
    images = some_images(6, generator)[0].requires_grad_()
    band = full_band(6).prefix(3)
    assert torch.autograd.gradcheck(band.pack, images)
    assert torch.autograd.gradcheck(band.unpack, band.pack(images).detach().requires_grad_())


def test_bad_boxes():
    for box in (0, 5, -2):
        with pytest.raises(InputError, match="even"):
            full_band(box)
    for shape in [(6, 6), (8, 6), (9, 9)]:
        with pytest.raises(InputError, match="even D >= 8"):
            full_band(8).pack(torch.zeros(shape))
