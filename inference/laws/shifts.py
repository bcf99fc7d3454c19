"""Laws of a shift: a Dirac and a normal one, in units of a length."""

from math import log

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor

from cryoprob.geometry.grids import RotationGrid
from cryoprob.geometry.rotations import about_z
from cryoprob.inference.laws.base import Law
from cryoprob.inference.laws.vectors import DiracVector, NormalVector, checked_length
from cryoprob.types import Shifts

__all__ = ["DiracShift", "NormalShift", "TurningShift"]


class DiracShift(DiracVector):
    """All mass at one shift: modal inference.

    Parameters
    ----------
    unit_A
        The length (Angstrom) that one unit of the free numbers stands for, and in which
        :meth:`log_score` counts errors; take about that of a usual shift.
    """

    def __init__(self, unit_A: float) -> None:
        super().__init__(2, unit_A)


class NormalShift(NormalVector):
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
        super().__init__(2, unit_A, width_A, fixed=fixed)

    def width_A(self, numbers: Tensor) -> Tensor:
        """Geometric mean of the two widths, Angstrom, [*]."""
        return self.widths(numbers).log().mean(-1).exp()


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
        self.unit = checked_length("unit of a shift", unit_A)
        self.width = self.unit if width_A is None else checked_length("width of a shift", width_A)
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
