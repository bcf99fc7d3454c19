"""Shells of a map's transform: their index, their means, and isotropic filters.

Shell ``s`` holds the frequencies with ``floor(|k| + 1/2) = s`` cycles per box; the corners beyond
``D // 2`` are lumped in shell ``D // 2 + 1``, so that there are ``S = D // 2 + 2`` shells, as in
:class:`cryoprob.fourier.bands.Band`.
"""

from functools import lru_cache

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.transforms import fft3, ifft3
from cryoprob.types import Maps

__all__ = [
    "frequency_3d",
    "low_pass",
    "shell_counts",
    "shell_index_3d",
    "shell_mean",
    "shell_sum",
    "spread",
]


@lru_cache(maxsize=8)
def _radius(box: int) -> Tensor:
    require(
        box > 0 and box % 2 == 0,
        "box",
        expected="a positive even number of voxels",
        got=str(box),
        remedy="Crop or pad the map by one voxel.",
    )
    k = torch.arange(-(box // 2), box // 2, dtype=torch.float64)
    return torch.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2)


@lru_cache(maxsize=8)
def _index(box: int) -> Tensor:
    return torch.floor(_radius(box) + 0.5).long().clamp(max=box // 2 + 1)


def frequency_3d(box: int) -> Tensor:
    """|k| of the centered transform in cycles per box, [D, D, D] (float64).

    Raises
    ------
    InputError
        If ``box`` is odd or not positive.
    """
    return _radius(box).clone()


def shell_index_3d(box: int) -> Tensor:
    """Shell of each voxel of the centered transform, [D, D, D] (long).

    Raises
    ------
    InputError
        If ``box`` is odd or not positive.
    """
    return _index(box).clone()


def shell_counts(box: int) -> Tensor:
    """Voxels in each shell, [S] (float64); they add up to ``box**3``."""
    return torch.bincount(_index(box).flatten(), minlength=box // 2 + 2).double()


def shell_sum(values: Tensor) -> Tensor:
    """Sums [*, S] over the shells of a centered transform [*, D, D, D], real or complex.

    Added in double precision, returned in the precision of ``values``.
    """
    box = values.shape[-1]
    wide = torch.promote_types(values.dtype, torch.float64)
    total = values.new_zeros(*values.shape[:-3], box // 2 + 2, dtype=wide)
    index = _index(box).flatten().to(values.device)
    return total.index_add(-1, index, values.flatten(-3).to(wide)).to(values.dtype)


def shell_mean(values: Tensor) -> Tensor:
    """Means [*, S] over the shells of a centered transform [*, D, D, D], real or complex."""
    counts = shell_counts(values.shape[-1]).to(values.device, values.real.dtype)
    return shell_sum(values) / counts


def spread(spectrum: Tensor, box: int) -> Tensor:
    """A radial spectrum [*, S] laid out on the centered transform, [*, D, D, D].

    Raises
    ------
    InputError
        If the spectrum does not have ``box // 2 + 2`` shells.
    """
    shells = box // 2 + 2
    got = f"{spectrum.shape[-1]} shells"
    require(spectrum.shape[-1] == shells, "spectrum", expected=f"{shells} shells", got=got)
    return spectrum[..., _index(box).to(spectrum.device)]


def low_pass(
    volume: Maps, pixel_size: float, resolution_A: float, edge_shells: float = 2.0
) -> Maps:
    """A map [*, D, D, D] without the detail finer than ``resolution_A`` (Angstrom).

    A raised cosine, ``edge_shells`` shells wide and 1/2 at ``resolution_A``; 0 makes it sharp.

    Raises
    ------
    InputError
        If the pixel size or the resolution is not positive.
    """
    right = pixel_size > 0 and resolution_A > 0
    got = f"pixel size {pixel_size}, resolution {resolution_A}"
    require(right, "low pass", expected="positive lengths in Angstrom", got=got)
    box = volume.shape[-1]
    cut = box * pixel_size / resolution_A
    step = (_radius(box) - cut) / max(edge_shells, 1e-9)
    gain = 0.5 - 0.5 * torch.sin(torch.pi * step.clamp(-0.5, 0.5))
    return ifft3(fft3(volume) * gain.to(volume)).real
