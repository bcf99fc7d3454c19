"""The fall-off of a map's amplitudes: its B-factor, and its restoration.

Amplitudes of a blurred map fall as ``exp(-B s^2 / 4)``, s the frequency in 1/Angstrom; B > 0 means
blurred (RELION quotes the factor it applies, -B).

Source: Rosenthal and Henderson (2003), J. Mol. Biol. 333, 721.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.shells import frequency_3d, shell_counts, shell_mean, spread
from cryoprob.fourier.transforms import fft3, ifft3
from cryoprob.metrics.motion import check_map
from cryoprob.types import Maps

__all__ = ["GuinierFit", "b_factor", "fsc_weight", "sharpen"]


@dataclass(frozen=True)
class GuinierFit:
    """A line through ln(amplitude) over s^2, ``ln amplitude = intercept - B s^2 / 4``.

    Attributes
    ----------
    b_factor
        B in A^2, positive for a map that needs sharpening.
    intercept
        ln amplitude at s = 0 (unitary transform).
    correlation
        Of the fitted line with the points, with the weights of the fit, in [0, 1].
    low_A, high_A
        Resolutions of the first and last shell used, Angstrom.
    """

    b_factor: float
    intercept: float
    correlation: float
    low_A: float
    high_A: float


def fsc_weight(curve: Tensor) -> Tensor:
    """``C_ref = sqrt(2 F / (1 + F))`` of a half-map FSC, 0 where F <= 0.

    The expected correlation of the map of all images with the truth (eq. 8 of the source).
    """
    positive = curve.clamp(0, 1)
    return torch.sqrt(2 * positive / (1 + positive))


def b_factor(
    volume: Maps,
    pixel_size: float,
    *,
    curve: Tensor | None = None,
    low_A: float = 10.0,
    high_A: float | None = None,
) -> GuinierFit:
    """Fit B to the shells of a map [D, D, D] from ``low_A`` to ``high_A``.

    The points are ln of the root mean square amplitude of each shell (times C_ref, which takes the
    noise out: ``C_ref^2`` is the signal's share of the power), weighted with the number of
    coefficients times ``C_ref^2``: a logarithm of a mean over n numbers varies as 1/n.

    Parameters
    ----------
    curve
        Half-map FSC [D // 2 + 1]; shells where it is not positive are left out.
    low_A, high_A
        Range in Angstrom; beyond 10 A the shape of the molecule rules, not its blur. ``high_A``
        is Nyquist by default.

    Raises
    ------
    InputError
        If fewer than 3 shells with signal lie in the range.
    """
    check_map(volume, "map to sharpen")
    box = volume.shape[-1]
    width = box * pixel_size
    gain = _gain(curve, box)[:-1]
    amplitude = shell_mean(fft3(volume.double()).abs() ** 2)[:-1].sqrt().cpu() * gain
    shell = torch.arange(box // 2 + 1)
    first, last = width / low_A - 1e-9, width / (high_A or 2 * pixel_size) + 1e-9
    used = (shell >= first) & (shell <= last) & (amplitude > 0)
    expected = f"3 shells or more between {low_A:g} and {high_A or 2 * pixel_size:g} A"
    remedy = "Widen the range (low_A, high_A) or use a finer pixel."
    got = str(int(used.sum()))
    require(int(used.sum()) >= 3, "Guinier fit", expected=expected, got=got, remedy=remedy)
    weight = (shell_counts(box)[:-1] * gain**2)[used]
    slope, intercept, likeness = _line((shell[used] / width) ** 2, amplitude[used].log(), weight)
    ends = shell[used][[0, -1]].tolist()
    return GuinierFit(-4 * slope, intercept, likeness, width / ends[0], width / ends[1])


def sharpen(
    volume: Maps, pixel_size: float, b_factor: float, *, curve: Tensor | None = None
) -> Maps:
    """The map [D, D, D] times ``C_ref exp(+B s^2 / 4)``; beyond the Nyquist shell it is cut.

    Parameters
    ----------
    b_factor
        B in A^2 as :func:`b_factor` gives it; a negative one blurs.
    curve
        Half-map FSC [D // 2 + 1] for the weights C_ref; without it they are 1, and noise is
        amplified as the signal is.
    """
    check_map(volume, "map to sharpen")
    box = volume.shape[-1]
    square = (frequency_3d(box) / (box * pixel_size)) ** 2
    factor = torch.exp(b_factor * square / 4) * spread(_gain(curve, box), box)
    return ifft3(fft3(volume.double()) * factor.to(volume.device)).real.to(volume.dtype)


def _gain(curve: Tensor | None, box: int) -> Tensor:
    """C_ref (or 1) of the shells 0 to D // 2, then 0 for the corners, [D // 2 + 2]."""
    shells = box // 2 + 1
    if curve is None:
        curve = torch.ones(shells)
    got = f"shape {list(curve.shape)}"
    require(curve.shape == (shells,), "FSC curve", expected=f"{shells} shells", got=got)
    weight = fsc_weight(curve.double().cpu())
    return torch.cat([weight, weight.new_zeros(1)])


def _line(x: Tensor, y: Tensor, weight: Tensor) -> tuple[float, float, float]:
    """Weighted least squares: slope, intercept, absolute correlation."""
    share = weight / weight.sum()
    dx, dy = x - (share * x).sum(), y - (share * y).sum()
    xx, xy, yy = ((share * v).sum() for v in (dx * dx, dx * dy, dy * dy))
    slope = float(xy / xx)
    likeness = float(xy.abs() / (xx * yy).sqrt()) if yy > 0 else 1.0
    return slope, float((share * y).sum() - slope * (share * x).sum()), likeness
