"""A point estimate of the volume, held as a parameter."""

import pyro
from pyro.distributions import Delta
from torch import Tensor, nn

from cryoprob.inference.treatments.base import Treatment
from cryoprob.particles import Batch

__all__ = ["Point"]


class Point(Treatment):
    """q(volume) = Dirac at :attr:`coefficients`.

    Parameters
    ----------
    coefficients
        Start value of the ``volume`` site.
    """

    def __init__(self, coefficients: Tensor) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(coefficients.clone())

    def forward(self, site: str, batch: Batch) -> None:
        """A Dirac at the parameter."""
        pyro.sample(site, Delta(self.coefficients, event_dim=self.coefficients.dim()))
