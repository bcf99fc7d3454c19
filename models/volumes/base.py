"""What a volume is: a prior over its coefficients and the slices they give."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Self

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from cryoprob.checks import require
from cryoprob.fourier.bands import Band, full_band
from cryoprob.fourier.slices import Slicer
from cryoprob.masks import sphere
from cryoprob.types import Coefficients, Maps, Rotations

__all__ = ["LinearVolume", "Sliced", "Volume", "faint_ball"]


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
    box
        Voxels along a side of a map.
    band
        The frequencies at which slices are formed, m of them.
    """

    linear_in_coefficients: bool = False
    linear_in_conformation: bool = False
    conformation_size: int = 0
    is_map: bool = False
    precision: torch.dtype | None = None
    box: int
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

    def set_band(self, radius: int) -> None:
        """Explain the images up to shell ``radius`` only; beyond it they are noise.

        Raises
        ------
        InputError
            If there is no such shell, or an image has only a part of it.
        """
        most = self.box // 2 - 1
        fits = 0 <= radius <= most
        require(fits, "band", expected=f"a radius of at most {most}", got=str(radius))
        self.band = full_band(self.box).prefix(radius)


class Sliced(Volume):
    """A volume of voxels whose transform is sliced, by an operator made for each band.

    Attributes
    ----------
    tau2
        Prior variance of a unitary Fourier coefficient per shell, [S], or of several maps.
    interpolation
        ``"linear"`` or ``"nearest"``.
    slicer
        The slice operator of :attr:`band`.
    """

    linear_in_coefficients = True
    tau2: Tensor
    interpolation: str
    slicer: Slicer

    def set_band(self, radius: int) -> None:
        """Explain the images up to shell ``radius`` only; beyond it they are noise."""
        super().set_band(radius)
        self.slicer = self.slicer_at(radius)

    def slicer_at(self, radius: int) -> Slicer:
        """The slice operator of a (smaller) band."""
        band, like = full_band(self.box).prefix(radius), self.tau2
        return Slicer(band, self.interpolation, dtype=like.dtype, device=like.device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """The slicer goes where the buffers go (``to``, ``cuda``, ``double``)."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.set_band(self.band.radius)
        return self


class LinearVolume(Sliced):
    """A volume whose slices are linear in its coefficients, which are the map's voxels."""


def faint_ball(box: int, generator: torch.Generator, count: int = 1) -> Maps:
    """Random voxels of variance 0.05^2 inside of a sphere, [count, D, D, D] (float64)."""
    white = torch.randn(count, *[box] * 3, generator=generator, dtype=torch.float64)
    return 0.05 * white * sphere(box, 0.44 * box, 0.05 * box)
