"""A mean map and a few maps that conformations add to it, each in its own amount."""

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from cryoprob.checks import require
from cryoprob.models.volumes.base import Sliced, faint_ball
from cryoprob.models.volumes.batches import checked, each_map
from cryoprob.models.volumes.fourier_gaussian import FourierGaussian
from cryoprob.models.volumes.fourier_voxels import SpectralGaussian
from cryoprob.types import Coefficients, Maps, Rotations, Sizes

__all__ = ["LinearModes"]


class _Components(SpectralGaussian):
    """Maps [P, D, D, D] of unlike variances ``tau2`` [P, S]."""

    def expand(
        self, batch_shape: Sizes, _instance: FourierGaussian | None = None
    ) -> "_Components":
        return _Components(self.tau2, self.box, batch_shape)

    @property
    def variance(self) -> Maps:
        each = self.spectrum.mean((-3, -2, -1), keepdim=True)
        return each.expand(self._extended_shape())


class LinearModes(Sliced):
    """``V(z) = V_0 + sum_k z_k V_k``; coefficients are the maps V_0 ... V_K, [1 + K, D, D, D].

    With ``z ~ N(0, I)`` it is probabilistic principal component analysis of maps seen in
    projection: the modes span the principal axes of the molecule's variance, which is the sum of
    the squares of their norms. Tagare et al. 2015, J. Struct. Biol. 191, 245; Punjani and Fleet
    2021, J. Struct. Biol. 213, 107702 (3DVA).

    Parameters
    ----------
    box
        Voxels along a side, even.
    size
        Modes, K.
    tau2, mode_tau2
        Prior variance of a unitary Fourier coefficient per shell, [S] or a number: of the mean,
        and of the modes (these also [K, S], each its own).
    radius
        Largest shell that explains the images; default and maximum ``box // 2 - 1``.
    interpolation
        ``"linear"`` or ``"nearest"``.

    Attributes
    ----------
    tau2
        Of all components, [1 + K, S].

    Raises
    ------
    InputError
        If there is no mode, or a variance is not positive.
    """

    linear_in_conformation = True

    def __init__(
        self,
        box: int,
        size: int,
        tau2: Tensor | float = 1.0,
        mode_tau2: Tensor | float = 1.0,
        *,
        radius: int | None = None,
        interpolation: str = "linear",
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        require(size > 0, "modes", expected="one or more", got=str(size))
        self.box, self.conformation_size, self.interpolation = box, size, interpolation
        shells = box // 2 + 2
        of_mean, of_modes = (
            torch.as_tensor(part, dtype=dtype, device=device).expand(rows, shells)
            for part, rows in ((tau2, 1), (mode_tau2, size))
        )
        both = torch.cat([of_mean, of_modes])
        require(bool((both > 0).all()), "tau2", expected="positive variances", got=str(both))
        self.register_buffer("tau2", both)
        self.set_band(box // 2 - 1 if radius is None else radius)

    @property
    def unit(self) -> float:
        """Standard deviation of a mode of the mean at low frequencies: about that of a voxel."""
        return float(self.tau2[0, 1:6].mean().sqrt())

    def prior(self) -> TorchDistribution:
        """Independent radial Gaussians, one a component."""
        each = _Components(self.tau2, self.box, (len(self.tau2),))
        found: TorchDistribution = each.to_event(1)  # type: ignore[no-untyped-call]
        return found

    def start(self, generator: torch.Generator) -> Maps:
        """Small random density inside of a sphere, unlike for all components, [1 + K, D, D, D]."""
        return faint_ball(self.box, generator, len(self.tau2)).to(self.tau2) * self.unit

    def component_slices(self, coefficients: Maps, rotation: Rotations) -> Coefficients:
        """Slices [1 + K, *, m] of all components [1 + K, D, D, D] at rotations [*, 3, 3]."""
        return torch.stack([self.slicer.slices(part, rotation) for part in coefficients])

    def slices(
        self, coefficients: Tensor, rotation: Rotations, conformation: Tensor | None = None
    ) -> Coefficients:
        """Slices [*, m] of modes [*, 1 + K, D, D, D] at rotations [*, 3, 3] and z [*, K].

        All batches are broadcast; sets of modes are taken one by one.

        Raises
        ------
        InputError
            If there is no conformation, or one of another size.
        """
        return each_map(self._slices, coefficients, 4, rotation, conformation)

    def _slices(
        self, coefficients: Tensor, rotation: Rotations, conformation: Tensor | None
    ) -> Coefficients:
        z = checked(conformation, self.conformation_size)
        found, *modes = self.component_slices(coefficients, rotation)
        for k, part in enumerate(modes):
            found = found + z[..., k, None] * part
        slices: Coefficients = found
        return slices

    def density(self, coefficients: Tensor, conformation: Tensor | None = None) -> Maps:
        """Maps [*, D, D, D] of modes [*, 1 + K, D, D, D] at z [*, K]; batches are broadcast.

        Raises
        ------
        InputError
            If there is no conformation, or one of another size.
        """
        z = checked(conformation, self.conformation_size)
        mean, modes = coefficients[..., 0, :, :, :], coefficients[..., 1:, :, :, :]
        return mean + torch.einsum("...k,...kzyx->...zyx", z, modes)
