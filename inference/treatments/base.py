"""How one site of the model is treated by inference."""

from abc import ABC, abstractmethod

from torch import nn

from cryoprob.particles import Batch

__all__ = ["Treatment"]


class Treatment(nn.Module, ABC):
    """A choice of q for one site.

    Attributes
    ----------
    enumerates
        The site is left out of the guide and summed over by enumeration.
    """

    enumerates: bool = False

    @abstractmethod
    def forward(self, site: str, batch: Batch) -> None:
        """Sample the site in the guide (inside the particle plate for local sites)."""
