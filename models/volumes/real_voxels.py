"""A map on a voxel grid that is rotated in real space, summed and transformed."""

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor
from torch.nn.functional import grid_sample

from cryoprob.checks import require
from cryoprob.models.volumes.base import Volume, faint_ball
from cryoprob.types import Coefficients, Images, Maps, Rotations

__all__ = ["RealVoxels"]

_AT_ONCE = 4
"""Rotated maps that are held at a time."""


class RealVoxels(Volume):
    """Voxels [D, D, D]; an image is the rotated grid, trilinear, summed over z.

    Parameters
    ----------
    box
        Voxels along a side, even.
    sd
        Standard deviation of the white normal prior of a voxel.
    radius
        Largest shell that explains the images; default and maximum ``box // 2 - 1``.

    Notes
    -----
    What leaves the box as it turns is lost. D^3 steps an image, and as many numbers of memory for
    gradients (``FourierVoxels`` takes D^2). papers: CryoPoseNet.
    """

    linear_in_coefficients = True
    is_map = True
    sd: Tensor

    def __init__(
        self,
        box: int,
        sd: float = 1.0,
        *,
        radius: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        require(sd > 0, "sd", expected="a positive number", got=f"{sd:g}")
        self.register_buffer("sd", torch.tensor(sd, dtype=dtype, device=device))
        self.box = box
        self.set_band(box // 2 - 1 if radius is None else radius)

    def prior(self) -> TorchDistribution:
        """White normal voxels."""
        zero = torch.zeros_like(self.sd).expand([self.box] * 3)
        found: TorchDistribution = Normal(zero, self.sd).to_event(3)
        return found

    @property
    def unit(self) -> float:
        """Of a voxel: the prior's standard deviation."""
        return float(self.sd)

    def start(self, generator: torch.Generator) -> Maps:
        """Small random density inside of a sphere, [D, D, D]."""
        return faint_ball(self.box, generator)[0].to(self.sd) * self.unit

    def slices(
        self, coefficients: Maps, rotation: Rotations, conformation: Tensor | None = None
    ) -> Coefficients:
        """Central slices [*, m] of maps [*, D, D, D], their batches broadcast."""
        return self.band.pack(self.projection(coefficients, rotation))

    def projection(self, coefficients: Maps, rotation: Rotations) -> Images:
        """Images [*, D, D] of maps [*, D, D, D] at rotations [*, 3, 3]."""
        box = self.box
        batch = torch.broadcast_shapes(coefficients.shape[:-3], rotation.shape[:-2])
        turns = rotation.to(coefficients).expand(*batch, 3, 3).reshape(-1, 3, 3)
        maps = coefficients.expand(*batch, box, box, box).reshape(-1, box, box, box)
        parts = zip(maps.split(_AT_ONCE), turns.split(_AT_ONCE), strict=True)
        return torch.cat([self._project(*part) for part in parts]).reshape(*batch, box, box)

    def _project(self, maps: Maps, turns: Rotations) -> Images:
        axis = (torch.arange(self.box) - self.box // 2).to(turns)
        lab = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")[::-1], -1)
        places = lab.flatten(0, -2) @ turns  # R^T r, [q, D^3, 3]
        places = (places + self.box // 2) * (2 / (self.box - 1)) - 1
        grid = places.unflatten(1, lab.shape[:-1])
        return grid_sample(maps[:, None], grid, align_corners=True).squeeze(1).sum(1)

    def density(self, coefficients: Maps, conformation: Tensor | None = None) -> Maps:
        """The map itself."""
        return coefficients
