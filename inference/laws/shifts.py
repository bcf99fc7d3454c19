"""Laws of a shift: a Dirac and a normal one, in units of a length."""

from math import log

import torch
from pyro.distributions import Delta, Normal, TorchDistribution
from torch import Tensor

from cryoprob.checks import require
from cryoprob.geometry.grids import RotationGrid
from cryoprob.geometry.rotations import about_z
from cryoprob.inference.laws.base import Law
from cryoprob.types import Shifts

__all__ = ["DiracShift", "NormalShift", "TurningShift"]


class DiracShift(Law):
    """All mass at one shift: modal inference.

    Parameters
    ----------
    unit_A
        The length (Angstrom) that one unit of the free numbers stands for, and in which
        :meth:`log_score` counts errors; take about that of a usual shift.
    """

    size, has_density = 2, False

    def __init__(self, unit_A: float) -> None:
        super().__init__()
        self.unit = _checked("unit of a shift", unit_A)

    def forward(self, numbers: Tensor) -> Delta:
        """The Dirac."""
        return Delta(self.mode(numbers), event_dim=1)

    def numbers(self, value: Shifts) -> Tensor:
        """The shift in units."""
        return value / self.unit

    def mode(self, numbers: Tensor) -> Shifts:
        """The shift."""
        return numbers * self.unit

    def log_score(self, numbers: Tensor, value: Shifts) -> Tensor:
        """Minus half the squared distance, in units."""
        return -(self.numbers(value) - numbers).square().sum(-1) / 2


class NormalShift(Law):
    """A normal law of independent axes.

    Parameters
    ----------
    unit_A
        As for :class:`DiracShift`.
    width_A
        Standard deviation at the start (or for good, if ``fixed``), Angstrom; default a unit.
    fixed
        Keep that width for all images.
    """

    def __init__(
        self, unit_A: float, width_A: float | None = None, *, fixed: bool = False
    ) -> None:
        super().__init__()
        self.unit = _checked("unit of a shift", unit_A)
        self.width = self.unit if width_A is None else _checked("width of a shift", width_A)
        self.fixed = fixed
        self.size = 2 if fixed else 4

    def forward(self, numbers: Tensor) -> TorchDistribution:
        """The normal law."""
        found: TorchDistribution = Normal(self.mode(numbers), self._width(numbers)).to_event(1)
        return found

    def numbers(self, value: Shifts) -> Tensor:
        """The shift in units, and the starting width."""
        return self._around(value, torch.full_like(value, self.width))

    def around(self, value: Shifts, covariance: Tensor) -> Tensor:
        """Numbers of the law of mean ``value`` and the variances of ``covariance`` [*, 2, 2]."""
        return self._around(value, covariance.diagonal(dim1=-2, dim2=-1).sqrt())

    def _around(self, value: Shifts, width: Tensor) -> Tensor:
        mean = value / self.unit
        return mean if self.fixed else torch.cat([mean, torch.log(width / self.unit)], -1)

    def mode(self, numbers: Tensor) -> Shifts:
        """The mean."""
        return numbers[..., :2] * self.unit

    def width_A(self, numbers: Tensor) -> Tensor:
        """Geometric mean of the two widths, Angstrom, [*]."""
        return self._width(numbers).log().mean(-1).exp()

    def log_score(self, numbers: Tensor, value: Shifts) -> Tensor:
        """Log density per squared Angstrom."""
        score: Tensor = self(numbers).log_prob(value)
        return score

    def _width(self, numbers: Tensor) -> Tensor:
        if self.fixed:
            return torch.full_like(numbers[..., :2], self.width)
        lowest = log(1e-3)
        return self.unit * torch.exp(numbers[..., 2:].clamp(lowest, -lowest))


class TurningShift(Law):
    """A normal law whose mean is said by P in-plane angles, each in axes that turn with it.

    The mean is ``sum_j w_j Rz(psi_j) v_j``, so that an encoder that turns with the image
    (:class:`~cryoprob.inference.encoders.polar.Polar`) gives a shift that turns too. One width for
    both axes.

    Parameters
    ----------
    order
        Of the rotation grid that has those angles.
    unit_A, width_A
        As for :class:`NormalShift`.
    modal
        Draw the mean alone, a Dirac; training on known shifts is as before.
    """

    turns: Tensor

    def __init__(
        self, order: int, unit_A: float, width_A: float | None = None, *, modal: bool = False
    ) -> None:
        super().__init__()
        self.has_density = not modal
        self.unit = _checked("unit of a shift", unit_A)
        self.width = self.unit if width_A is None else _checked("width of a shift", width_A)
        turns = about_z(RotationGrid(order).psi_deg())[:, :2, :2]
        self.register_buffer("turns", turns, persistent=False)
        self.size = 4 * len(turns)

    def forward(self, numbers: Tensor) -> TorchDistribution:
        """The normal law."""
        share, _, level = self._parts(numbers)
        lowest = log(1e-3)
        width = self.width * torch.exp((share * level).sum(-1).clamp(lowest, -lowest))
        mean = self.mode(numbers)
        found: TorchDistribution = Normal(mean, width[..., None].expand_as(mean)).to_event(1)
        return found

    def numbers(self, value: Shifts) -> Tensor:
        """Every angle says the shift, at the starting width."""
        turns = self.turns.to(value)
        inside = (turns.mT @ value[..., None, :, None])[..., 0] / self.unit
        nothing = torch.zeros_like(inside)
        return torch.cat([inside, nothing], -1).flatten(-2)

    def mode(self, numbers: Tensor) -> Shifts:
        """The mean."""
        share, inside, _ = self._parts(numbers)
        said = (self.turns.to(numbers) @ inside[..., None])[..., 0]
        return self.unit * (share[..., None] * said).sum(-2)

    def log_score(self, numbers: Tensor, value: Shifts) -> Tensor:
        """Log density per squared Angstrom."""
        score: Tensor = self(numbers).log_prob(value)
        return score

    def _parts(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weights [*, P], vectors in turning axes [*, P, 2], and log widths [*, P]."""
        parts = numbers.unflatten(-1, (len(self.turns), 4))
        return torch.softmax(parts[..., 2], -1), parts[..., :2], parts[..., 3]


def _checked(where: str, length: float) -> float:
    require(length > 0, where, expected="a positive length (Angstrom)", got=f"{length:g}")
    return length
