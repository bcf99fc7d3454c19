"""A map on a voxel grid with a radial Gaussian prior in Fourier space, sliced in a padded grid."""

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.shells import spread
from cryoprob.models.volumes.base import LinearVolume, faint_ball
from cryoprob.models.volumes.batches import each_map
from cryoprob.models.volumes.fourier_gaussian import FourierGaussian
from cryoprob.types import Coefficients, Maps, Rotations, Sizes

__all__ = ["FourierVoxels", "SpectralGaussian"]


class SpectralGaussian(FourierGaussian):
    """Gaussian maps [D, D, D], independent in Fourier space, of variance ``tau2`` [S] per shell.

    ``tau2`` is the mean of |V_k|^2 of the unitary transform; the density is that of the D^3
    voxels. Scheres 2012 (RELION), eq. 6, with the variance of the whole coefficient.
    """

    def __init__(self, tau2: Tensor, box: int, shape: Sizes = ()) -> None:
        self.tau2, self.box = tau2, box
        super().__init__(tau2.new_zeros(()), tau2.new_zeros(()).expand([box] * 3), shape)

    @property
    def spectrum(self) -> Tensor:
        """``tau2`` laid out on the transform, [D, D, D]; only where it is asked for."""
        return spread(self.tau2, self.box)

    def expand(
        self, batch_shape: Sizes, _instance: "FourierGaussian | None" = None
    ) -> "SpectralGaussian":
        """The same law of a batch of maps: one map of each particle of an estimator."""
        return SpectralGaussian(self.tau2, self.box, batch_shape)


class FourierVoxels(LinearVolume):
    """A voxel map; its coefficients are the D^3 voxels themselves.

    Parameters
    ----------
    box
        Voxels along a side, even.
    tau2
        Prior variance of a unitary Fourier coefficient per shell, [S] or a number.
    radius
        Largest shell that explains the images; default and maximum ``box // 2 - 1``.
    interpolation
        ``"linear"`` or ``"nearest"``.
    """

    def __init__(
        self,
        box: int,
        tau2: Tensor | float = 1.0,
        *,
        radius: int | None = None,
        interpolation: str = "linear",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        shells = box // 2 + 2
        tau2 = torch.as_tensor(tau2, dtype=dtype, device=device).expand(shells).clone()
        require(bool((tau2 > 0).all()), "tau2", expected="positive variances", got=str(tau2))
        self.register_buffer("tau2", tau2)
        self.box, self.interpolation = box, interpolation
        self.set_band(box // 2 - 1 if radius is None else radius)

    is_map = True

    @property
    def unit(self) -> float:
        """Standard deviation of a mode at low frequencies, which is about that of a voxel."""
        return float(self.tau2[1:6].mean().sqrt())

    def start(self, generator: torch.Generator) -> Maps:
        """Small random density inside of a sphere, [D, D, D]."""
        return faint_ball(self.box, generator)[0].to(self.tau2) * self.unit

    def prior(self) -> SpectralGaussian:
        """Radial Gaussian prior."""
        return SpectralGaussian(self.tau2, self.box)

    def slices(
        self, coefficients: Maps, rotation: Rotations, conformation: Tensor | None = None
    ) -> Coefficients:
        """Central slices [*, m] of maps [*, D, D, D], their batches broadcast; maps one by one."""
        return each_map(self._slices, coefficients, 3, rotation, None)

    def _slices(
        self, coefficients: Maps, rotation: Rotations, conformation: Tensor | None
    ) -> Coefficients:
        return self.slicer.slices(coefficients, rotation)

    def density(self, coefficients: Maps, conformation: Tensor | None = None) -> Maps:
        """The map itself."""
        return coefficients
