"""What a volume is: a prior over its coefficients and the slices they give."""

from abc import ABC, abstractmethod

from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from cryoprob.fourier.bands import Band
from cryoprob.types import Coefficients, Maps, Rotations

__all__ = ["Volume"]


class Volume(nn.Module, ABC):
    """A family of maps, with its coefficients as the value of the ``volume`` site.

    Attributes
    ----------
    linear_in_coefficients
        Slices are a linear map of the coefficients, so that a closed-form update exists.
    band
        The frequencies at which slices are formed, m of them.
    """

    linear_in_coefficients: bool = False
    band: Band

    @abstractmethod
    def prior(self) -> TorchDistribution:
        """Prior of the coefficients, batch shape ()."""

    @abstractmethod
    def slices(self, coefficients: Tensor, rotation: Rotations) -> Coefficients:
        """Central slices [*, m] at rotations [*, 3, 3]."""

    @abstractmethod
    def density(self, coefficients: Tensor) -> Maps:
        """The map [D, D, D] of the coefficients."""
