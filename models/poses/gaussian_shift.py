"""Gaussian shifts of the particle from the image center, on the plane or on a grid."""

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor

from cryoprob.checks import require
from cryoprob.geometry.shifts import ShiftGrid
from cryoprob.models.poses.base import ShiftPrior
from cryoprob.models.poses.grid import GridDistribution
from cryoprob.types import Shifts

__all__ = ["GaussianShift", "ShiftGridPrior"]


class GaussianShift(ShiftPrior):
    """``shift ~ N(0, sigma^2 I)``, Angstrom.

    Raises
    ------
    InputError
        If ``sigma`` is not positive.
    """

    def __init__(
        self,
        sigma: float,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        require(sigma > 0, "shift sigma", expected="a positive length (Angstrom)", got=str(sigma))
        self.register_buffer("sigma", torch.tensor(sigma, dtype=dtype, device=device))

    def prior(self) -> TorchDistribution:
        """The isotropic normal distribution."""
        normal = Normal(torch.zeros_like(self.sigma), self.sigma)
        found: TorchDistribution = normal.expand([2]).to_event(1)
        return found

    def discretize(self, extent: float, step: float, *, refine: int = 0) -> "ShiftGridPrior":
        """The same prior renormalized on a grid of spacing ``step`` within ``extent`` (Angstrom).

        With ``refine`` the grid is that of ``step``, halved so many times: coarse-to-fine searches
        start from ``step``.
        """
        grid = ShiftGrid(extent, step)
        for _ in range(refine):
            grid = grid.refined()
        return ShiftGridPrior(self.sigma, grid)


class ShiftGridPrior(ShiftPrior):
    """A Gaussian restricted to the points of a grid and renormalized there."""

    enumerable = True

    def __init__(self, sigma: Tensor, grid: ShiftGrid) -> None:
        super().__init__()
        self.register_buffer("sigma", sigma.clone())
        self.grid = grid

    def points(self) -> Shifts:
        """The grid, [T, 2], Angstrom."""
        return self.grid.points.to(self.sigma)

    def log_mass(self, points: Shifts | None = None) -> Tensor:
        """Log masses of the grid's points; of other points, with the grid's normalization."""
        own = self._exponent(self.points())
        return (own if points is None else self._exponent(points)) - torch.logsumexp(own, 0)

    def prior(self) -> GridDistribution:
        """The grid with its masses."""
        return GridDistribution(self.points(), self.log_mass())

    def coarser(self) -> "ShiftGridPrior":
        """The same prior on the grid of twice the spacing that this one refines."""
        grid = ShiftGrid(self.grid.extent_A, self.grid.step_A * 2, self.grid.level - 1)
        return ShiftGridPrior(self.sigma, grid)

    def finer(self) -> "ShiftGridPrior":
        """The same prior on the grid of half the spacing."""
        return ShiftGridPrior(self.sigma, self.grid.refined())

    def _exponent(self, points: Shifts) -> Tensor:
        return -(points**2).sum(-1) / (2 * self.sigma**2)
