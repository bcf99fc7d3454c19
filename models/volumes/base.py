"""What a volume is: a prior over its coefficients and the slices they give."""

from abc import ABC, abstractmethod

from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from cryoprob.fourier.bands import Band
from cryoprob.fourier.slices import Slicer
from cryoprob.types import Coefficients, Maps, Rotations

__all__ = ["LinearVolume", "Volume"]


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
        """Central slices [*, m] at rotations [*, 3, 3]; batches of both are broadcast."""

    @abstractmethod
    def density(self, coefficients: Tensor) -> Maps:
        """The map [D, D, D] of the coefficients."""


class LinearVolume(Volume):
    """A volume whose slices are linear in its coefficients, which are the map's voxels.

    Attributes
    ----------
    tau2
        Prior variance of a unitary Fourier coefficient per shell, [S].
    interpolation
        ``"linear"`` or ``"nearest"``.
    slicer
        The slice operator of :attr:`band`.
    """

    linear_in_coefficients = True
    tau2: Tensor
    interpolation: str
    slicer: Slicer

    @abstractmethod
    def set_band(self, radius: int) -> None:
        """Explain the images up to shell ``radius`` only; beyond it they are noise."""

    @abstractmethod
    def slicer_at(self, radius: int) -> Slicer:
        """The slice operator of a (smaller) band."""
