"""Distributions on a grid of points, enumerable in Pyro without an index site."""

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from cryoprob.types import Sizes

__all__ = ["GridDistribution"]


class GridDistribution(TorchDistribution):
    """Points [K, *event] with log masses [K]; a draw is a point, not an index.

    Parameters
    ----------
    points
        Support, [K, *event].
    log_mass
        Normalized log probabilities, [K].
    shape
        Batch shape (of the particle plate).
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_enumerate_support = True

    def __init__(self, points: Tensor, log_mass: Tensor, shape: torch.Size = torch.Size()) -> None:
        self.points, self.log_mass = points, log_mass
        super().__init__(shape, points.shape[1:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Real tensors of the points' shape (not the grid's membership)."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def expand(
        self, batch_shape: Sizes, _instance: "GridDistribution | None" = None
    ) -> "GridDistribution":
        """The same grid for a larger batch."""
        return GridDistribution(self.points, self.log_mass, torch.Size(batch_shape))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All points, [K, *batch or 1s, *event]."""
        ones = (1,) * len(self.batch_shape)
        points = self.points.reshape(-1, *ones, *self.event_shape)
        return points.expand(-1, *self.batch_shape, *self.event_shape) if expand else points

    def sample(self, sample_shape: Sizes = torch.Size()) -> Tensor:
        """Draw points, [*sample, *batch, *event]."""
        shape = torch.Size(sample_shape) + self.batch_shape
        mass = self.log_mass.exp().cpu()
        index = torch.multinomial(mass, shape.numel(), replacement=True)
        return self.points[index].reshape(shape + self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log mass of grid points [*, *event]; between points, that of the nearest."""
        lead = value.shape[: value.dim() - len(self.event_shape)]
        points = self.points.reshape(len(self.points), -1).to(value)
        flat = value.reshape(lead.numel(), -1)
        if flat.shape == points.shape and flat.equal(points):  # enumerated
            found = self.log_mass
        else:
            found = self.log_mass[torch.cdist(flat, points).argmin(1)]
        return found.reshape(lead).expand(torch.broadcast_shapes(lead, self.batch_shape))
