"""A point estimate of the volume, held as a parameter."""

import pyro
from pyro.distributions import Delta

from cryoprob.inference.treatments.volume import VolumeTreatment
from cryoprob.particles import Batch

__all__ = ["Point"]


class Point(VolumeTreatment):
    """q(volume) = Dirac at :attr:`coefficients`.

    Parameters
    ----------
    coefficients
        Start value of the ``volume`` site.
    """

    def forward(self, site: str, batch: Batch) -> None:
        """A Dirac at the parameter."""
        pyro.sample(site, Delta(self.coefficients, event_dim=self.coefficients.dim()))
