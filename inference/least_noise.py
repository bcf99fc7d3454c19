"""The least noise that sums in single precision can tell from none, for images that have none."""

from math import sqrt

from torch import Tensor

__all__ = ["least_noise"]

_ROUNDING = 2.0**-23
_OWN = sqrt(_ROUNDING)


def least_noise(power: Tensor, numbers: Tensor) -> Tensor:
    """Least variance of a number in each shell, in units of ``power``, [*, S].

    A log likelihood is a sum of ratios of power to variance. Where a shell's variance is a part f
    of its power the ratio is rounded by ``2^-23 / f``, posterior weights are off by as much, and
    so is the residual that they leave, in parts of the power: what is found below
    ``f = 2^-23 / f`` is rounding, of either sign. Images of one mass come there at the zero
    frequency, which a map explains wholly. Shells that hold nothing have the rounding of the
    images themselves, 2^-23 of the power of a mean pixel.

    Parameters
    ----------
    power
        Mean sum of squares of an image in each shell, [*, S].
    numbers
        Real numbers in each shell, [S].
    """
    pixel = power.sum(-1, keepdim=True) / numbers.sum()
    return (_OWN * power / numbers.clamp(min=1)).maximum(_ROUNDING * pixel)
