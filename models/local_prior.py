"""What the prior of a site is of which every particle has its own value."""

from abc import ABC, abstractmethod

from pyro.distributions import TorchDistribution
from pyro.poutine.runtime import InferDict
from torch import nn

__all__ = ["LocalPrior"]


class LocalPrior(nn.Module, ABC):
    """Prior of a rotation, a shift, a conformation, a contrast or a defocus.

    Attributes
    ----------
    enumerable
        The support is a finite set, with masses that add up to 1.
    """

    enumerable: bool = False

    @abstractmethod
    def prior(self) -> TorchDistribution:
        """The distribution of one particle's value."""

    @property
    def infer(self) -> InferDict:
        """Pyro's hint: enumerate the site in parallel where it can be."""
        return {"enumerate": "parallel"} if self.enumerable else {}
