"""Rigid motions of a map, a mirror included, and what they do to maps and to poses.

A motion of rotation A, shift s and mirror takes the map V to

    V'(r) = V(A^T (r - s)),        mirrored: V'(r) = V(-A^T (r - s)),

with column vectors (x, y, z) from the origin voxel: the map is first inverted through the origin,
then turned, then displaced. Inversion is the mirror used here because it commutes with rotations;
every other mirror is inversion times a half turn.

The images stay what they are, so the poses must follow. A pose (R, t) says that the image at
(x, y) is the integral of ``V(R^T (x - tx, y - ty, z))`` over z. Put in terms of V',

    R' = R A^T,   t' = t - (R' s)_xy,        mirrored: R' = Rz(180) R A^T, t' likewise,

for ``-R^T (x, y, z) = (Rz(180) R)^T (x, y, -z)`` and the integral does not care for the sign of z.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import fft, ndimage

from cryoprob.checks import require
from cryoprob.types import Maps, Rotations, Shifts

__all__ = ["Motion"]

_Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, eq=False)
class Motion:
    """A rotation, a shift and possibly a mirror of a map (the formulas are the module's).

    Attributes
    ----------
    rotation
        A, [3, 3] (float64), determinant +1.
    shift_A
        s, (x, y, z) in Angstrom, [3] (float64).
    mirrored
        Whether the map is inverted through the origin first.
    """

    rotation: Rotations
    shift_A: Shifts
    mirrored: bool

    def move_map(self, volume: Maps, pixel_size: float) -> Maps:
        """The moved map V', [D, D, D], in the type and place of ``volume``.

        The transform, padded twofold, is interpolated by cubic splines (error about 0.3 % of the
        peak for what lies inside the ball of radius D/2) and cut at the Nyquist shell, beyond
        which no rotation can keep it. Takes about ``300 * D**3`` bytes.

        Raises
        ------
        InputError
            If the map is not [D, D, D] with D even, or the pixel size is not positive.
        """
        check_map(volume, "map to move")
        require(pixel_size > 0, "pixel size", expected="a positive length", got=str(pixel_size))
        box = volume.shape[-1]
        k = _half_plane(box)
        moved = _transform_at(volume.detach().cpu().numpy(), k @ self.rotation.cpu().numpy())
        turned = moved.conj() if self.mirrored else moved
        phase = k @ (self.shift_A.cpu().numpy() / (pixel_size * box))
        inside = np.linalg.norm(k, axis=-1) < box // 2 + 0.5
        spectrum = np.where(inside, turned * np.exp(-2j * np.pi * phase), 0)
        real = fft.irfftn(np.fft.ifftshift(spectrum, (0, 1)), (box,) * 3)
        return torch.from_numpy(np.fft.fftshift(real)).to(volume)

    def move_poses(self, rotation: Rotations, shift: Shifts) -> tuple[Rotations, Shifts]:
        """Poses [*, 3, 3], [*, 2] (Angstrom) for the moved map that give the images of the old."""
        half_turn = torch.tensor([-1.0, -1.0, 1.0] if self.mirrored else [1.0, 1.0, 1.0])
        turned = half_turn.to(rotation)[:, None] * rotation @ self.rotation.to(rotation).mT
        return turned, shift - (turned @ self.shift_A.to(rotation))[..., :2].to(shift)


def check_map(volume: Maps, where: str) -> None:
    """Raise InputError unless ``volume`` is one finite map [D, D, D] with D even."""
    shape = list(volume.shape)
    cube = len(shape) == 3 and len(set(shape)) == 1 and shape[0] > 0 and shape[0] % 2 == 0
    require(cube, where, expected="one map [D, D, D], D even", got=f"shape {shape}")
    finite = bool(torch.isfinite(volume).all())
    require(finite, where, expected="finite densities", got="NaN or infinite voxels")


def _half_plane(box: int) -> _Array:
    """Frequencies (x, y, z) of a half transform [D, D, D // 2 + 1, 3], z and y centered."""
    full = np.arange(-(box // 2), box // 2)
    z, y, x = np.meshgrid(full, full, np.arange(box // 2 + 1), indexing="ij")
    return np.stack([x, y, z], -1)


def _transform_at(volume: _Array, frequencies: _Array) -> _Array:
    """Transform of a map about its origin voxel at ``frequencies`` [..., 3] (x, y, z)."""
    box = volume.shape[-1]
    padded = np.fft.ifftshift(np.pad(volume.astype(np.float32), box // 2))
    transform = fft.fftn(padded)
    at = np.moveaxis(2 * frequencies[..., ::-1], -1, 0)
    found: _Array = ndimage.map_coordinates(transform, at, order=3, mode="grid-wrap")
    return found
