import math

import pytest
import torch

from cryoprob.checks import InputError
from cryoprob.fourier import shells
from cryoprob.fourier.bands import full_band
from cryoprob.fourier.transforms import fft3


def slow_index(box):
    """Shells by a triple loop over whole numbers of cycles."""
    half = box // 2
    index = torch.empty(box, box, box, dtype=torch.long)
    for z in range(box):
        for y in range(box):
            for x in range(box):
                k = math.sqrt((z - half) ** 2 + (y - half) ** 2 + (x - half) ** 2)
                index[z, y, x] = min(math.floor(k + 0.5), half + 1)
    return index


@pytest.mark.parametrize("box", [2, 6, 8])
def test_index_is_the_slow_one(box):
    assert torch.equal(shells.shell_index_3d(box), slow_index(box))


@pytest.mark.parametrize("box", [4, 10, 16])
def test_counts_add_up(box):
    counts = shells.shell_counts(box)
    assert len(counts) == box // 2 + 2 and counts.sum() == box**3
    # |k| < 1/2: the origin; 1/2 <= |k| < 3/2: 6 faces and 12 edges
    assert counts[0] == 1 and counts[1] == 18


def test_shells_are_those_of_the_images():
    box = 16
    band = full_band(box)
    cut = shells.shell_index_3d(box)[box // 2]
    place = (band.ky % box + box // 2) % box, (band.kx % box + box // 2) % box
    assert torch.equal(cut[place], band.shell)


def test_frequency_is_in_cycles_per_box():
    box = 8
    k = shells.frequency_3d(box)
    assert k[4, 4, 4] == 0 and k[4, 4, 5] == 1 and k[0, 4, 4] == 4
    assert k[1, 2, 6] == pytest.approx(math.sqrt(9 + 4 + 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64])
def test_sums_and_means_are_those_of_a_loop(dtype, generator):
    box = 6
    values = torch.randn(2, 3, box, box, box, generator=generator, dtype=dtype)
    index = slow_index(box)
    per_shell = [values[..., index == s] for s in range(box // 2 + 2)]
    # sums of up to 140 numbers in single precision
    expected = torch.stack([v.sum(-1) for v in per_shell], -1)
    torch.testing.assert_close(shells.shell_sum(values), expected, rtol=1e-5, atol=1e-5)
    expected = torch.stack([v.mean(-1) for v in per_shell], -1)
    torch.testing.assert_close(shells.shell_mean(values), expected, rtol=1e-5, atol=1e-5)
    assert shells.shell_mean(values).dtype == dtype


def test_single_precision_sums_lose_nothing():
    box = 64
    tenth = torch.full((box, box, box), 0.1)
    # added one by one in single precision, shells of 1e5 voxels would be off by 1e-3
    torch.testing.assert_close(
        shells.shell_mean(tenth), torch.full((box // 2 + 2,), 0.1), rtol=1e-7, atol=0
    )


def test_mean_undoes_spread(generator):
    spectrum = torch.rand(2, 10, generator=generator)
    laid = shells.spread(spectrum, 16)
    assert laid.shape == (2, 16, 16, 16)
    assert torch.equal(laid[1, 8, 8, 10], spectrum[1, 2])
    # equal numbers averaged, in single precision
    torch.testing.assert_close(shells.shell_mean(laid), spectrum, rtol=1e-6, atol=0)


def test_mean_is_the_adjoint_of_spread_up_to_the_counts(generator):
    box = 8
    spectrum = torch.rand(box // 2 + 2, generator=generator, dtype=torch.float64)
    values = torch.rand(box, box, box, generator=generator, dtype=torch.float64)
    left = (shells.spread(spectrum, box) * values).sum()
    right = (spectrum * shells.shell_mean(values) * shells.shell_counts(box)).sum()
    torch.testing.assert_close(left, right, rtol=1e-13, atol=0)  # 512 additions in double


def test_gradients_flow_through(generator):
    spectrum = torch.rand(6, generator=generator, dtype=torch.float64, requires_grad=True)
    shells.spread(spectrum, 8).sum().backward()
    assert torch.equal(spectrum.grad, shells.shell_counts(8))
    values = torch.rand(4, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(shells.shell_mean, values)


def test_low_pass_keeps_coarse_waves_and_drops_fine_ones():
    box, pixel = 32, 2.0
    x = torch.arange(box, dtype=torch.float64) - box // 2
    coarse, border, fine = (
        torch.cos(2 * torch.pi * k * x / box).expand(box, box, box) for k in (4, 8, 12)
    )
    got = shells.low_pass(torch.stack([coarse, border, fine]), pixel, box * pixel / 8)
    expected = torch.stack([coarse, 0.5 * border, torch.zeros_like(fine)])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)  # rounding of the transform


def test_low_pass_gain_is_a_raised_cosine_of_the_width_asked_for():
    box, edge = 32, 6.0
    point = torch.zeros(box, box, box, dtype=torch.float64)
    point[box // 2, box // 2, box // 2] = box**1.5
    gain = fft3(shells.low_pass(point, 1.0, box / 8, edge)).real[box // 2, box // 2, box // 2 :]
    k = torch.arange(box // 2, dtype=torch.float64)
    inside = ((k - 8) / edge + 0.5).clamp(0, 1)
    expected = 0.5 + 0.5 * torch.cos(torch.pi * inside)
    torch.testing.assert_close(gain, expected, rtol=0, atol=1e-12)  # rounding of the transform
    sharp = fft3(shells.low_pass(point, 1.0, box / 8.5, 0.0)).real[box // 2, box // 2, box // 2 :]
    torch.testing.assert_close(sharp, (k <= 8).double(), rtol=0, atol=1e-12)


def test_low_pass_keeps_dtype_and_the_mean(generator):
    volume = torch.randn(16, 16, 16, generator=generator)
    got = shells.low_pass(volume, 3.0, 20.0)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.mean(), volume.mean(), rtol=0, atol=1e-6)  # single precision
    finer = shells.low_pass(volume, 3.0, 0.1)  # far beyond the corner: nothing to drop
    torch.testing.assert_close(finer, volume, rtol=0, atol=1e-5)


@pytest.mark.parametrize("box", [0, 7, -2])
def test_odd_boxes_are_told(box):
    with pytest.raises(InputError, match="even number of voxels"):
        shells.shell_index_3d(box)


def test_wrong_spectra_and_lengths_are_told():
    with pytest.raises(InputError, match="expected 10 shells, got 9 shells"):
        shells.spread(torch.zeros(9), 16)
    for pixel, resolution in ((0.0, 8.0), (1.0, -8.0), (math.nan, 8.0)):
        with pytest.raises(InputError, match="low pass"):
            shells.low_pass(torch.zeros(8, 8, 8), pixel, resolution)


def test_tables_cannot_be_changed_from_outside():
    shells.shell_index_3d(8).zero_()
    shells.frequency_3d(8).zero_()
    assert shells.shell_index_3d(8).max() == 5 and shells.frequency_3d(8).max() > 5
