"""Unitary Fourier transforms with the origin at ``D // 2``.

And the crop of a box in Fourier space.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cryoprob.types import Images, Maps

__all__ = ["crop_images", "crop_map", "fft2", "fft3", "ifft2", "ifft3"]

_PLANE, _CUBE = (-2, -1), (-3, -2, -1)


def _centered(function: Callable[..., Tensor], values: Tensor, axes: tuple[int, ...]) -> Tensor:
    inside = torch.fft.ifftshift(values, axes)
    found: Tensor = torch.fft.fftshift(function(inside, dim=axes, norm="ortho"), axes)
    return found


def fft2(images: Images) -> Tensor:
    """Centered unitary transform of images, [*, D, D] complex."""
    return _centered(torch.fft.fft2, images, _PLANE)


def ifft2(spectra: Tensor) -> Tensor:
    """Inverse of :func:`fft2`, [*, D, D] complex."""
    return _centered(torch.fft.ifft2, spectra, _PLANE)


def fft3(maps: Maps) -> Tensor:
    """Centered unitary transform of maps, [*, D, D, D] complex."""
    return _centered(torch.fft.fftn, maps, _CUBE)


def ifft3(spectra: Tensor) -> Tensor:
    """Inverse of :func:`fft3`, [*, D, D, D] complex."""
    return _centered(torch.fft.ifftn, spectra, _CUBE)


def _resize(spectrum: Tensor, box: int, axes: tuple[int, ...]) -> Tensor:
    """Cut or zero-pad a centered spectrum to ``box``, and drop the unpaired Nyquist planes."""
    for axis in axes:
        size = spectrum.shape[axis]
        low = min(size, box) // 2
        kept = spectrum.narrow(axis, size // 2 - low + 1, 2 * low - 1)
        shape = list(kept.shape)
        shape[axis] = box
        padded = kept.new_zeros(shape)
        padded.narrow(axis, box // 2 - low + 1, 2 * low - 1).copy_(kept)
        spectrum = padded
    return spectrum


def crop_images(images: Images, box: int) -> Images:
    """Resample images to ``box`` pixels over the same field of view; noise keeps its variance.

    Unitary coefficients are kept as they are, so white noise of variance sigma2 stays white with
    sigma2; gray values grow by ``D / box`` (see :func:`crop_map` for the map that goes with them).
    """
    return images if images.shape[-1] == box else ifft2(_resize(fft2(images), box, _PLANE)).real


def crop_map(volume: Maps, box: int) -> Maps:
    """Resample a map to ``box`` voxels; its projections are :func:`crop_images` of the old ones.

    A slice carries sqrt(D), so the coefficients are scaled by ``sqrt(D / box)``.
    """
    size = volume.shape[-1]
    if size == box:
        return volume
    gain: float = (size / box) ** 0.5
    return ifft3(_resize(fft3(volume), box, _CUBE)).real * gain
