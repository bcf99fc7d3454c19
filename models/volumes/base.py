"""What a volume is: a prior over its coefficients and the slices they give."""

from abc import ABC, abstractmethod

import torch
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
    linear_in_conformation
        Slices are an affine map of the conformation's numbers, whose posterior is then normal.
    conformation_size
        Numbers (or states) of the conformation that its slices take; 0 where they take none.
    precision
        Type of the factors of its own matrix products, if not that of the numbers; training sets
        a fast one where the volume has many.
    is_map
        The coefficients are the voxels of one map, [D, D, D], so that masks apply to them.
    band
        The frequencies at which slices are formed, m of them.
    """

    linear_in_coefficients: bool = False
    linear_in_conformation: bool = False
    conformation_size: int = 0
    is_map: bool = False
    precision: torch.dtype | None = None
    band: Band

    @property
    def unit(self) -> float:
        """Size of a usual coefficient, in which steps are counted."""
        return 1.0

    @abstractmethod
    def prior(self) -> TorchDistribution:
        """Prior of the coefficients, batch shape ()."""

    @abstractmethod
    def slices(
        self, coefficients: Tensor, rotation: Rotations, conformation: Tensor | None = None
    ) -> Coefficients:
        """Central slices [*, m] at rotations [*, 3, 3], of conformations [*, size] or states [*].

        All batches are broadcast.
        """

    @abstractmethod
    def density(self, coefficients: Tensor, conformation: Tensor | None = None) -> Maps:
        """The maps [*, D, D, D] of the coefficients, of conformations [*, size] or states [*]."""

    @abstractmethod
    def start(self, generator: torch.Generator) -> Tensor:
        """Coefficients from which a fit from nothing starts, drawn on the CPU."""

    def scaled(self, coefficients: Tensor, factor: float) -> Tensor | None:
        """Coefficients of maps ``factor`` times as large, whatever the conformation, if any are.

        None where the volume cannot say so.
        """
        return factor * coefficients if self.linear_in_coefficients else None

    @abstractmethod
    def set_band(self, radius: int) -> None:
        """Explain the images up to shell ``radius`` only; beyond it they are noise."""


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
    def slicer_at(self, radius: int) -> Slicer:
        """The slice operator of a (smaller) band."""
