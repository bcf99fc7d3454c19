"""The least noise that sums of rounded numbers can tell from none, for images that have none."""

from math import sqrt

import torch
from torch import Tensor

__all__ = ["least_noise"]


def least_noise(power: Tensor, numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Least variance of a number in each shell, in units of ``power``, [G, S].

    A log likelihood is a sum of ratios of power to variance. Where a shell's variance is a part f
    of its power the ratio is rounded by ``eps / f``, posterior weights are off by as much, and
    so is the residual that they leave, in parts of the power: what is found below
    ``f = eps / f`` is rounding, of either sign. Images of one mass come there at the zero
    frequency, which a map explains wholly. Shells that hold nothing have the rounding of the
    images themselves, eps of the power of a mean pixel; so have groups of which there are none.

    Parameters
    ----------
    power
        Mean sum of squares of an image in each shell, [G, S].
    numbers
        Real numbers in each shell, [S].
    dtype
        Of the fit, which has the eps.
    """
    eps = torch.finfo(dtype).eps
    pixel = power.sum(-1).mean() / numbers.sum()
    return (sqrt(eps) * power / numbers.clamp(min=1)).maximum(eps * pixel)
