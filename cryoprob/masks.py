"""Soft masks in [0, 1]: disks, balls, and the solvent mask of a map."""

from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from cryoprob.checks import InputError, require
from cryoprob.fourier.shells import low_pass
from cryoprob.types import Images, Maps

__all__ = ["automatic", "circle", "sphere"]


def circle(
    box: int,
    radius_px: float,
    edge_px: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Images:
    """A disk about pixel D // 2, [D, D]: 1 up to ``radius_px``, 0 from ``edge_px`` further out.

    Between them falls a raised cosine.
    """
    return _edge(_distance(box, 2) - radius_px, edge_px).to(device, dtype)


def sphere(
    box: int,
    radius_px: float,
    edge_px: float = 0.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Maps:
    """A ball about voxel D // 2, [D, D, D]: 1 up to ``radius_px``, 0 from ``edge_px`` further out.

    Between them falls a raised cosine.
    """
    return _edge(_distance(box, 3) - radius_px, edge_px).to(device, dtype)


def automatic(
    volume: Maps,
    pixel_size: float,
    *,
    resolution_A: float | None = None,
    level: float | None = None,
    extend_px: float = 2.0,
    edge_px: float = 4.0,
) -> Maps:
    """The soft solvent mask of one map, [D, D, D] in [0, 1].

    The map is low-passed and cut at ``level``; of what stays, the largest connected piece is kept
    without its holes, grown by ``extend_px`` and given a raised-cosine edge.

    Parameters
    ----------
    pixel_size
        Angstrom.
    resolution_A
        Of the low-passed map; by default 15 A or five voxels, whichever is coarser.
    level
        Density at the border of the molecule; by default Otsu's threshold (1979) between solvent
        and molecule, in the ball inside the box.
    extend_px, edge_px
        Voxels added around the piece, and width of the edge beyond.

    Raises
    ------
    InputError
        If the map is not [D, D, D], not finite, constant, or nowhere above the level.
    """
    _check(volume)
    smooth = low_pass(volume.detach(), pixel_size, resolution_A or max(15.0, 5 * pixel_size))
    density = smooth.cpu().double().numpy()
    ball = (_distance(volume.shape[-1], 3) <= volume.shape[-1] // 2).numpy()
    threshold = _otsu(density[ball]) if level is None else level
    piece = _largest_piece((density > threshold) & ball)
    away = torch.from_numpy(ndimage.distance_transform_edt(~piece))
    return _edge(away - extend_px, edge_px).to(volume)


def _check(volume: Maps) -> None:
    cube = volume.ndim == 3 and len(set(volume.shape)) == 1
    shape = f"shape {list(volume.shape)}"
    require(cube, "map to mask", expected="one map [D, D, D]", got=shape)
    finite = bool(torch.isfinite(volume).all())
    require(finite, "map to mask", expected="finite densities", got="NaN or infinite voxels")
    flat = bool(volume.min() == volume.max())
    remedy = "Check that this is the right map."
    require(not flat, "map to mask", expected="a molecule", got="a constant map", remedy=remedy)


def _distance(box: int, dimensions: int) -> Tensor:
    """Distance from voxel D // 2 in voxels, [D] * dimensions (float64)."""
    axis = torch.arange(-(box // 2), box - box // 2, dtype=torch.float64) ** 2
    square = axis
    for _ in range(dimensions - 1):
        square = square[..., None] + axis
    return square.sqrt()


def _edge(outside: Tensor, width: float) -> Tensor:
    """1 where ``outside <= 0``, falling to 0 at ``width`` as a raised cosine."""
    if width <= 0:
        return (outside <= 0).double()
    return 0.5 + 0.5 * torch.cos(torch.pi * (outside / width).clamp(0, 1))


def _otsu(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    """The threshold that maximizes the variance between the two sides (Otsu, 1979)."""
    ordered = np.sort(values)
    below = np.arange(1, ordered.size)
    total = np.cumsum(ordered)
    gap = total[:-1] / below - (total[-1] - total[:-1]) / (ordered.size - below)
    best = int(np.argmax(below * (ordered.size - below) * gap**2))
    return float(ordered[best])


def _largest_piece(inside: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    labels, count = ndimage.label(inside, ndimage.generate_binary_structure(3, 3))
    if not count:
        raise InputError(
            "automatic mask",
            expected="density above the level",
            got="none",
            remedy="Lower the level, or pass a mask.",
        )
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    filled: np.ndarray[Any, np.dtype[Any]] = ndimage.binary_fill_holes(labels == sizes.argmax())
    return filled
