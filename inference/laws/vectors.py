"""Laws of a vector of real numbers: a Dirac and a normal one, in units of a usual length."""

from math import log

import torch
from pyro.distributions import Delta, Normal, TorchDistribution
from torch import Tensor

from cryoprob.checks import require
from cryoprob.inference.laws.base import Law

__all__ = ["DiracVector", "NormalVector", "checked_length"]


class DiracVector(Law):
    """All mass at one value: modal inference.

    Parameters
    ----------
    count
        Numbers of a value.
    unit
        What one unit of the free numbers stands for, and in which :meth:`log_score` counts
        errors; take about the size of a usual value.
    """

    has_density = False

    def __init__(self, count: int, unit: float = 1.0) -> None:
        super().__init__()
        self.unit, self.size = checked_length("unit of a value", unit), count

    def forward(self, numbers: Tensor) -> Delta:
        """The Dirac."""
        return Delta(self.mode(numbers), event_dim=1)

    def numbers(self, value: Tensor) -> Tensor:
        """The value in units."""
        return value / self.unit

    def mode(self, numbers: Tensor) -> Tensor:
        """The value."""
        return numbers * self.unit

    def log_score(self, numbers: Tensor, value: Tensor) -> Tensor:
        """Minus half the squared distance, in units."""
        return -(self.numbers(value) - numbers).square().sum(-1) / 2


class NormalVector(Law):
    """A normal law of independent numbers.

    Parameters
    ----------
    count
        Numbers of a value.
    unit
        As for :class:`DiracVector`.
    width
        Standard deviation at the start (or for good, if ``fixed``); default a unit.
    fixed
        Keep that width for all images.
    """

    def __init__(
        self, count: int, unit: float = 1.0, width: float | None = None, *, fixed: bool = False
    ) -> None:
        super().__init__()
        self.unit, self.count = checked_length("unit of a value", unit), count
        self.width = self.unit if width is None else checked_length("width of a law", width)
        self.fixed = fixed
        self.size = count if fixed else 2 * count

    def forward(self, numbers: Tensor) -> TorchDistribution:
        """The normal law."""
        found: TorchDistribution = Normal(self.mode(numbers), self.widths(numbers)).to_event(1)
        return found

    def numbers(self, value: Tensor) -> Tensor:
        """The value in units, and the starting width."""
        return self._around(value, torch.full_like(value, self.width))

    def around(self, value: Tensor, covariance: Tensor) -> Tensor:
        """Numbers of the law of mean ``value`` and the variances of ``covariance`` [*, n, n]."""
        return self._around(value, covariance.diagonal(dim1=-2, dim2=-1).sqrt())

    def _around(self, value: Tensor, width: Tensor) -> Tensor:
        mean = value / self.unit
        return mean if self.fixed else torch.cat([mean, torch.log(width / self.unit)], -1)

    def mode(self, numbers: Tensor) -> Tensor:
        """The mean."""
        return numbers[..., : self.count] * self.unit

    def widths(self, numbers: Tensor) -> Tensor:
        """Standard deviations, [*, count]."""
        if self.fixed:
            return torch.full_like(numbers[..., : self.count], self.width)
        lowest = log(1e-3)
        return self.unit * torch.exp(numbers[..., self.count :].clamp(lowest, -lowest))

    def log_score(self, numbers: Tensor, value: Tensor) -> Tensor:
        """Log density per unit volume."""
        score: Tensor = self(numbers).log_prob(value)
        return score


def checked_length(where: str, length: float) -> float:
    """A positive length, or InputError."""
    require(length > 0, where, expected="a positive length", got=f"{length:g}")
    return length
