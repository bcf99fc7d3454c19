"""Checked pixels turned into packed coefficients, held in memory within a byte budget."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cryoprob.checks import InputError
from cryoprob.fourier.bands import Band, full_band
from cryoprob.fourier.transforms import crop_images
from cryoprob.io.images import Pixels
from cryoprob.types import Coefficients, Images

__all__ = ["PixelScan", "PixelStore"]

_BLOCK_BYTES = 1 << 25
"""Pixels that are read and transformed at once."""

_NAMED = 5
"""Images that an error names."""


@dataclass(frozen=True, eq=False)
class PixelScan:
    """What a look at the pixels of some images found, [n] each.

    Attributes
    ----------
    finite, constant
        Whether all pixels are finite; whether all are equal.
    mean, square
        Mean of the pixels and of their squares (float64).
    """

    finite: Tensor
    constant: Tensor
    mean: Tensor
    square: Tensor


class PixelStore:
    """Images of a source by row: checked at the first touch, inverted, cropped, packed, cached.

    Parameters
    ----------
    pixels
        The source.
    box
        Crop to this box in Fourier space.
    invert
        Whether to change the sign of the pixels.
    cache_bytes
        Memory for coefficients and shell powers. The largest band for which those of all images
        fit is kept; larger bands are computed anew each time, in blocks.
    """

    def __init__(self, pixels: Pixels, box: int, invert: bool, cache_bytes: int) -> None:
        self.pixels, self.box, self.invert = pixels, box, invert
        self._budget = cache_bytes
        self._caches: dict[torch.dtype, _Cache] = {}
        self._checked = torch.zeros(len(pixels), dtype=torch.bool)

    def images(self, rows: Tensor) -> Images:
        """Images [n, D, D] in float32.

        Raises
        ------
        InputError
            If pixels are NaN or infinite, or all of an image's are equal; names the images.
        """
        out = torch.empty(len(rows), self.box, self.box)
        for part in self._blocks(rows):
            out[part] = crop_images(self._read(rows[part]), self.box).float()
        return out

    def coefficients(
        self, rows: Tensor, band: Band, dtype: torch.dtype
    ) -> tuple[Coefficients, Tensor]:
        """Packed coefficients [n, M] of a band, and power [n, S] of every shell of the plane."""
        cache = self._cache(dtype)
        if len(band) > len(cache.band):
            image = torch.empty(len(rows), len(band), dtype=dtype.to_complex())
            power = torch.empty(len(rows), band.n_shells, dtype=torch.float64)
            for part in self._blocks(rows):
                image[part], power[part] = self._pack(rows[part], len(band), dtype)
            return image, power
        absent = torch.unique(rows[~cache.ready[rows]])
        for part in self._blocks(absent):
            here = absent[part]
            cache.image[here], cache.power[here] = self._pack(here, len(cache.band), dtype)
            cache.ready[here] = True
        image = cache.image[:, : len(band)].index_select(0, rows)
        return image, cache.power.index_select(0, rows)

    def scan(self, rows: Tensor) -> PixelScan:
        """Look at every pixel; nothing is raised and nothing is cached."""
        out = _no_scan(len(rows))
        for part in self._blocks(rows):
            values = self.pixels.read(rows[part]).flatten(1).double()
            low, high = values.aminmax(dim=1)
            out.finite[part] = torch.isfinite(low) & torch.isfinite(high)
            out.constant[part] = low == high
            out.mean[part] = values.mean(1) * (-1 if self.invert else 1)
            out.square[part] = values.square().mean(1)
        return out

    def _blocks(self, rows: Tensor) -> Iterator[slice]:
        size = max(1, _BLOCK_BYTES // (4 * self.pixels.box**2))
        return (slice(low, low + size) for low in range(0, len(rows), size))

    def _read(self, rows: Tensor) -> Images:
        """Checked pixels of the source's box."""
        values = self.pixels.read(rows)
        if not bool(self._checked[rows].all()):
            low, high = values.flatten(1).aminmax(dim=1)
            finite = torch.isfinite(low) & torch.isfinite(high)
            self._refuse(rows[~finite], "finite pixels", "NaN or infinite ones")
            self._refuse(rows[low == high], "images that vary", "all pixels equal")
            self._checked[rows] = True
        return values.neg_() if self.invert else values

    def _refuse(self, rows: Tensor, expected: str, got: str) -> None:
        if len(rows) == 0:
            return
        names = ", ".join(self.pixels.name(row) for row in rows[:_NAMED].tolist())
        more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
        remedy = "Drop these rows from the table; `cryoprob info` lists all such images."
        raise InputError(f"image {names}{more}", expected=expected, got=got, remedy=remedy)

    def _pack(self, rows: Tensor, width: int, dtype: torch.dtype) -> tuple[Coefficients, Tensor]:
        """The first ``width`` coefficients, and the power of every shell."""
        band = full_band(self.box)
        packed = band.pack(self._read(rows).to(dtype))
        return packed[:, :width], _shell_power(packed, band)

    def _cache(self, dtype: torch.dtype) -> "_Cache":
        if dtype not in self._caches:
            left = self._budget - sum(cache.nbytes for cache in self._caches.values())
            self._caches[dtype] = _Cache(len(self.pixels), self.box, dtype, left)
        return self._caches[dtype]


def _no_scan(n: int) -> PixelScan:
    kinds = torch.bool, torch.bool, torch.float64, torch.float64
    return PixelScan(*(torch.zeros(n, dtype=kind) for kind in kinds))


class _Cache:
    """Coefficients and powers of those images that were touched, of the largest band that fits."""

    def __init__(self, n: int, box: int, dtype: torch.dtype, budget: int) -> None:
        full = full_band(box)
        kind = dtype.to_complex()
        per_image = np.cumsum(torch.bincount(full.shell).numpy()) * kind.itemsize
        fits = n * (per_image + 8 * full.n_shells + 1) <= budget
        radius = int(fits.sum()) - 1
        self.band = full.prefix(radius)
        n = n if radius >= 0 else 0
        self.image = torch.empty(n, len(self.band), dtype=kind)
        self.power = torch.empty(n, full.n_shells, dtype=torch.float64)
        self.ready = torch.zeros(n, dtype=torch.bool)
        self.nbytes = sum(v.nbytes for v in (self.image, self.power, self.ready))


def _shell_power(packed: Coefficients, band: Band) -> Tensor:
    """Sum of squares in each shell [n, S], added up in float64; shells follow each other."""
    square = torch.view_as_real(packed).square().sum(-1).numpy()
    shells, starts = np.unique(band.shell.numpy(), return_index=True)
    power = torch.zeros(len(packed), band.n_shells, dtype=torch.float64)
    power[:, shells] = torch.from_numpy(np.add.reduceat(square, starts, axis=1, dtype=np.float64))
    return power
