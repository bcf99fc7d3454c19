"""What a pose prior is: a distribution, on a continuum or on a grid that can be enumerated."""

from abc import ABC, abstractmethod

from pyro.distributions import TorchDistribution
from pyro.poutine.runtime import InferDict
from torch import Tensor, nn

__all__ = ["PosePrior", "ShiftPrior"]


class PosePrior(nn.Module, ABC):
    """Prior of a rotation or of a shift.

    Attributes
    ----------
    enumerable
        The support is a grid, with cell masses that add up to 1.
    """

    enumerable: bool = False

    @abstractmethod
    def prior(self) -> TorchDistribution:
        """The distribution of one particle's pose."""

    @property
    def infer(self) -> InferDict:
        """Pyro's hint: enumerate the site in parallel where it can be."""
        return {"enumerate": "parallel"} if self.enumerable else {}


class ShiftPrior(PosePrior):
    """Prior of a shift.

    Attributes
    ----------
    sigma
        Its width, Angstrom, which the M-step updates in place.
    """

    sigma: Tensor
