"""The half plane of image frequencies by shell, and its packing into independent numbers."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.types import Coefficients, Images

__all__ = ["Band", "full_band"]


@dataclass(frozen=True, eq=False)
class Band:
    """Half-plane frequencies of a ``box``, sorted by shell, so that a smaller band is a prefix.

    Coefficients are held times :attr:`weight` (sqrt(2), or 1 where self-conjugate, with imaginary
    part 0): real and imaginary parts are then independent N(mean, sigma2), and ``sum |c|^2`` over
    the full band equals the sum of squared pixels.

    Attributes
    ----------
    box
        Pixels along a side, even.
    radius
        Largest shell; ``-1`` in no band, ``box`` in the full one (corners included).
    kx, ky
        Frequencies, cycles per box, [M] (long).
    weight
        sqrt(2) or 1, [M] (float64).
    shell
        ``floor(|k| + 1/2)``, corners beyond ``box // 2`` lumped in ``box // 2 + 1``, [M] (long).
    """

    box: int
    radius: int
    kx: Tensor
    ky: Tensor
    weight: Tensor
    shell: Tensor

    def __len__(self) -> int:
        return self.kx.numel()

    @property
    def n_shells(self) -> int:
        """Number of shells of the box, the lumped corners included: ``box // 2 + 2``."""
        return self.box // 2 + 2

    def numbers_per_shell(self) -> Tensor:
        """Independent real numbers in each shell, [S]; all of them are ``box**2``."""
        return torch.bincount(self.shell, (self.weight**2).round(), self.n_shells)

    def prefix(self, radius: int) -> "Band":
        """The band of all shells up to ``radius``; its coefficients are the first of these."""
        return _cut(self, radius)

    def pack(self, images: Images) -> Coefficients:
        """Coefficients [*, M] of real images [*, D, D] by the unitary transform.

        Images of a larger even box are cropped in Fourier space on the way: the result is that of
        :func:`~cryoprob.fourier.transforms.crop_images` (whose unpaired frequencies are 0).
        """
        size = images.shape[-1]
        got = f"{list(images.shape)}"
        fits = images.shape[-2] == size >= self.box and size % 2 == 0
        require(fits, "images", expected=f"[..., D, D] with even D >= {self.box}", got=got)
        column, factor = _half_plane(self, size)
        spectrum = torch.fft.rfft2(images, norm="ortho").flatten(-2)
        values: Tensor = spectrum.index_select(-1, column.to(images.device)) * factor.to(images)
        values.imag[..., self._own().to(images.device)] = 0
        return values

    def unpack(self, coefficients: Coefficients) -> Images:
        """Real images [*, D, D] of coefficients [*, M]; frequencies outside the band are zero."""
        column, factor = (v.to(coefficients.device) for v in _half_plane(self, self.box))
        values = coefficients / factor.to(coefficients.real.dtype)
        plane = values.new_zeros(*values.shape[:-1], self.box * (self.box // 2 + 1))
        edge = ((self.kx == 0) | (self.kx == -(self.box // 2))).nonzero()[:, 0]
        row = (-self.ky[edge]) % self.box
        mirror = (row * (self.box // 2 + 1) + self.kx[edge].abs()).to(column.device)
        plane[..., mirror] = values[..., edge.to(column.device)].conj()
        plane[..., column] = values
        plane = plane.reshape(*plane.shape[:-1], self.box, self.box // 2 + 1)
        images: Images = torch.fft.irfft2(plane, s=(self.box, self.box), norm="ortho")
        return images

    def _own(self) -> Tensor:
        """Places of the self-conjugate frequencies."""
        return (self.weight == 1).nonzero()[:, 0]


@lru_cache(maxsize=32)
def full_band(box: int) -> Band:
    """All ``box**2`` independent numbers of an image, sorted by shell, then by |k|, ky, kx.

    Raises
    ------
    InputError
        If ``box`` is odd or not positive.
    """
    require(
        box > 0 and box % 2 == 0,
        "box",
        expected="a positive even number of pixels",
        got=str(box),
        remedy="Crop or pad the images by one pixel.",
    )
    k = torch.arange(-(box // 2), box // 2)
    ky, kx = (g.flatten() for g in torch.meshgrid(k, k, indexing="ij"))
    here = torch.arange(box**2)
    there = ((-ky + box // 2) % box) * box + (-kx + box // 2) % box
    upper = (kx > 0) | ((kx == 0) & (ky > 0)) | ((kx == -box // 2) & (ky > 0)) | (here == there)
    upper |= (ky == -box // 2) & (kx > 0)
    keep = upper & ~((here != there) & (kx == -(box // 2)) & (ky == -(box // 2)))
    kx, ky, own = kx[keep], ky[keep], (here == there)[keep]
    weight = torch.where(own, 1.0, 2.0).double().sqrt()
    square = kx**2 + ky**2
    shell = torch.floor(square.double().sqrt() + 0.5).long().clamp(max=box // 2 + 1)
    order = torch.argsort(square, stable=True)
    return Band(box, box, kx[order], ky[order], weight[order], shell[order])


@lru_cache(maxsize=256)
def _cut(band: Band, radius: int) -> Band:
    count = int((band.shell <= radius).sum())
    return Band(
        band.box, radius, *(v[:count] for v in (band.kx, band.ky, band.weight, band.shell))
    )


@lru_cache(maxsize=64)
def _half_plane(band: Band, size: int) -> tuple[Tensor, Tensor]:
    """Places of a band's frequencies in a flattened ``rfft2`` of side ``size``, and their factors.

    The factor is the weight times the sign that moves the origin to ``size // 2``; it is 0 at the
    unpaired frequencies of the band's box where that is smaller than ``size``.
    """
    column = (band.ky % size) * (size // 2 + 1) + band.kx.abs()
    factor = band.weight * (1 - 2 * ((band.kx + band.ky) % 2))
    if size > band.box:
        edge = -(band.box // 2)
        factor = torch.where((band.kx == edge) | (band.ky == edge), 0.0, factor)
    return column, factor
