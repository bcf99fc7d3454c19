import pytest
import torch

from cryoprob.checks import InputError
from cryoprob.fourier.shells import frequency_3d, shell_index_3d
from cryoprob.fourier.transforms import fft3, ifft3
from cryoprob.metrics import b_factor, fsc, fsc_weight, sharpen

BOX, PIXEL = 48, 1.5


def blurred(volume, b):
    square = (frequency_3d(BOX) / (BOX * PIXEL)) ** 2
    return ifft3(fft3(volume) * torch.exp(-b * square / 4)).real


@pytest.fixture
def white(generator):
    return torch.randn(BOX, BOX, BOX, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("b", [0.0, 80.0, 250.0])
def test_the_b_factor_of_blurred_white_noise(white, b):
    fit = b_factor(blurred(white, b), PIXEL)
    # 17 shells of about 1700 numbers, amplitude known to 1 / sqrt(2 * 1700) each: 0.7 A^2 by the
    # formula of a weighted line over s^2 of spread 0.03; the mean of the power within a shell
    # of curved fall-off adds 0.3 %
    assert fit.b_factor == pytest.approx(b, abs=3.0 + 0.005 * b)
    assert fit.intercept == pytest.approx(0.0, abs=0.05)
    assert fit.low_A <= 10.0 and fit.high_A == pytest.approx(2 * PIXEL)
    if b:
        assert fit.correlation > 0.99


def test_the_range_is_kept(white):
    """Beyond 5 A another fall-off reigns; a fit within 12 to 6 A does not see it."""
    kinked = fft3(blurred(white, 100.0)) * torch.where(frequency_3d(BOX) > 13, 0.01, 1.0)
    fit = b_factor(ifft3(kinked).real, PIXEL, low_A=12.0, high_A=6.0)
    assert fit.low_A == pytest.approx(12.0) and fit.high_A == pytest.approx(6.0)
    # seven shells of some 1000 numbers over a third of the range of s^2
    assert fit.b_factor == pytest.approx(100.0, abs=20.0)


def test_the_fsc_takes_out_the_noise(white, generator):
    """White noise flattens the fall-off; weighting by C_ref gives the signal's own."""
    signal = blurred(white, 150.0)
    noise = torch.randn(2, BOX, BOX, BOX, generator=generator, dtype=torch.float64) * 0.3
    half1, half2 = signal + noise[0], signal + noise[1]
    mean = (half1 + half2) / 2
    curve = fsc(half1, half2)
    naive = b_factor(mean, PIXEL).b_factor
    fit = b_factor(mean, PIXEL, curve=curve, high_A=4.0).b_factor
    assert naive < 110.0
    # 12 shells, FSC of 0.1 or more known to 0.02
    assert fit == pytest.approx(150.0, abs=15.0)


def test_sharpening_undoes_the_blur(white):
    inside = (shell_index_3d(BOX) <= BOX // 2).double()
    flat = ifft3(fft3(white) * inside).real
    torch.testing.assert_close(sharpen(blurred(white, 120.0), PIXEL, 120.0), flat)
    torch.testing.assert_close(sharpen(flat, PIXEL, -120.0), blurred(flat, 120.0))


def test_sharpening_weights_the_shells(white):
    curve = torch.linspace(1.0, -0.2, BOX // 2 + 1)
    made = fft3(sharpen(white, PIXEL, 0.0, curve=curve))
    shell = shell_index_3d(BOX)
    share = (made / fft3(white))[shell == 7]
    torch.testing.assert_close(share.real, fsc_weight(curve)[7].double().expand(len(share)))
    assert made[shell >= 21].abs().max() < 1e-12  # FSC <= 0, and the corners


def test_c_ref_is_the_correlation_with_the_truth(white, generator):
    """Of the mean of two halves, from their FSC alone."""
    noise = torch.randn(2, BOX, BOX, BOX, generator=generator, dtype=torch.float64)
    half1, half2 = white + noise[0], white + noise[1]
    truth = fsc((half1 + half2) / 2, white)[6:]
    # an FSC of 0.5 over 450 voxels or more is known to 0.035, C_ref to half of that; 4 sd
    torch.testing.assert_close(fsc_weight(fsc(half1, half2))[6:], truth, rtol=0, atol=0.08)
    edge = fsc_weight(torch.tensor([1.0, 1 / 3, 0.0, -0.5]))
    torch.testing.assert_close(edge, torch.tensor([1.0, 0.5**0.5, 0.0, 0.0]))


def test_too_short_a_range_is_refused(white):
    with pytest.raises(InputError, match="Guinier"):
        b_factor(white, 5.0)
    with pytest.raises(InputError, match="FSC curve"):
        b_factor(white, PIXEL, curve=torch.ones(4))
