"""A site that is given: poses of the STAR file, or of an earlier fit."""

import pyro
from pyro.distributions import Delta
from torch import Tensor

from cryoprob.inference.laws.base import Draws
from cryoprob.inference.treatments.base import Drawn
from cryoprob.particles import Batch

__all__ = ["Known"]


class Known(Drawn):
    """The values of all N particles, [N, *event], taken as they are."""

    has_density = False
    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values, persistent=False)

    def forward(self, site: str, batch: Batch) -> None:
        """A Dirac at the batch's values."""
        value = self.values[batch.index]
        pyro.sample(site, Delta(value, event_dim=value.dim() - 1))

    def draw(self, batch: Batch, count: int) -> Draws:
        """The given values, once."""
        return Draws.at(self.values[batch.index])
