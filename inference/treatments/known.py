"""A site that is given: poses of the STAR file, or of an earlier fit."""

import pyro
from pyro.distributions import Delta
from torch import Tensor

from cryoprob.inference.treatments.base import Treatment
from cryoprob.particles import Batch

__all__ = ["Known"]


class Known(Treatment):
    """The values of all N particles, [N, *event], taken as they are."""

    values: Tensor

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, site: str, batch: Batch) -> None:
        """A Dirac at the batch's values."""
        value = self.values[batch.index]
        pyro.sample(site, Delta(value, event_dim=value.dim() - 1))
