"""A molecule of isotropic Gaussians, whose slices and projections are sums of products."""

from collections.abc import Iterable
from math import pi, sqrt
from typing import Any, Self

import gemmi
import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor

from cryoprob.checks import require, warn
from cryoprob.gaussians import check_grid, narrowest
from cryoprob.io.structures import Atoms
from cryoprob.models.volumes.base import Volume
from cryoprob.models.volumes.batches import checked, each_map, in_a_row
from cryoprob.models.volumes.displacements import Displacements
from cryoprob.types import Coefficients, Images, Maps, Rotations

__all__ = ["FREE", "GaussianMixture"]

FREE = ("positions", "amplitudes", "widths")
"""What may be unknown of every Gaussian; its coefficients are in this order."""

_AT_ONCE = 256
"""Gaussians of a map, or images, that are drawn together."""


class GaussianMixture(Volume):
    """``sum_j a_j N(r; c_j + displacement_j(z), s_j^2)``; a slice is a matrix product over j.

    A wave at a frequency (kx, ky) is one in x times one in y, and so is an isotropic Gaussian:
    ``F(kx, ky) = sum_j [a_j g_j(ky) e^{-i ky y_j}] [g_j(kx) e^{-i kx x_j}] / D`` is a product of
    two matrices of (D / 2 x n) numbers for each image.

    Parameters
    ----------
    box, pixel_size
        Voxels along a side, even; A per voxel.
    positions
        Reference [n, 3] as (x, y, z), A, from the origin voxel.
    amplitudes, widths
        [n] or a number: sum of a Gaussian's voxels (a mass in units of the map); its standard
        deviation, A.
    displacement
        Moves the sites with the conformation (:mod:`cryoprob.models.volumes.displacements`).
    free
        The unknowns, some of :data:`FREE`: offsets of the positions (A), amplitudes, and
        logarithms of the widths over their reference. The rest stays at the reference.
    spread
        Standard deviations of the priors of :data:`FREE`, about the reference: A, in units of the
        reference amplitude's mean, and of log width.
    radius
        Largest shell that explains the images; default and maximum ``box // 2 - 1``.

    Notes
    -----
    Coefficients [P], each over its prior's standard deviation, so that steps in all of them are
    alike: offsets [n, 3], amplitudes [n], log widths [n] (the free ones of them), then the weights
    of the displacement. papers: CryoFold, E2GMM, atomVAE. Memory: 4 x n x D / 2 numbers an image.
    """

    positions: Tensor
    amplitudes: Tensor
    widths: Tensor
    spread: Tensor

    def __init__(
        self,
        box: int,
        pixel_size: float,
        positions: Tensor,
        amplitudes: Tensor | float = 1.0,
        widths: Tensor | float | None = None,
        *,
        displacement: Displacements | None = None,
        free: Iterable[str] = ("positions",),
        spread: tuple[float, float, float] = (5.0, 1.0, 0.5),
        radius: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        check_grid(box, pixel_size)
        self.box, self.pixel_size, self.free = box, pixel_size, tuple(free)
        known = set(self.free) <= set(FREE)
        require(known, "free", expected=f"some of {', '.join(FREE)}", got=str(self.free))
        least, sites = narrowest(pixel_size), len(positions)
        wide = torch.as_tensor(least if widths is None else widths, dtype=torch.float64)
        if float(wide.min()) < 0.999 * least:
            warn(f"Gaussians narrower than {least:.3g} A alias in voxels of {pixel_size:g} A.")
        heights = torch.as_tensor(amplitudes, dtype=torch.float64)
        self.register_buffer("positions", positions.to(device, dtype))
        self.register_buffer("amplitudes", heights.expand(sites).clone().to(device, dtype))
        self.register_buffer("widths", wide.expand(sites).clone().to(device, dtype))
        self.displacement = displacement
        self.conformation_size = 0 if displacement is None else displacement.size
        got = sites if displacement is None else displacement.sites
        require(got == sites, "displacement", expected=f"{sites} sites", got=str(got))
        extra = self.positions.new_zeros(0) if displacement is None else displacement.spread
        self.register_buffer("spread", torch.cat([self._spread(spread), extra.to(self.positions)]))
        self.set_band(box // 2 - 1 if radius is None else radius)
        alone = displacement is None or len(displacement.spread) == 0
        self.linear_in_coefficients = self.free == ("amplitudes",) and alone

    @classmethod
    def from_structure(
        cls, atoms: Atoms, box: int, pixel_size: float, *, center: bool = True, **options: object
    ) -> Self:
        """A Gaussian at each atom, as heavy as its electrons (times ``amplitudes``, a number).

        Parameters
        ----------
        atoms
            C-alpha atoms alone, or all of them.
        center
            Whether the center of mass is moved to the origin voxel.
        options
            As for the class.
        """
        electrons = [float(gemmi.Element(e).atomic_number) for e in atoms.elements]
        heights = torch.tensor(electrons, dtype=torch.float64)
        heights = heights * torch.as_tensor(options.pop("amplitudes", 1.0))
        masses, where = atoms.masses(), atoms.positions
        where = where - (masses @ where) / masses.sum() if center else where
        return cls(box, pixel_size, where, heights, **options)  # type: ignore[arg-type]

    @classmethod
    def random(
        cls,
        count: int,
        box: int,
        pixel_size: float,
        generator: torch.Generator,
        *,
        extent: float | None = None,
        total: float = 1.0,
        **options: object,
    ) -> Self:
        """``count`` alike Gaussians of a mass ``total``, for a fit that starts from nothing.

        Their centers are normal, of standard deviation ``extent`` A along an axis (default: an
        eighth of the box), and as wide as they are apart.
        """
        extent = box * pixel_size / 8 if extent is None else extent
        where = torch.randn(count, 3, generator=generator, dtype=torch.float64) * extent
        options = {"widths": max(narrowest(pixel_size), extent * count ** (-1 / 3))} | options
        options = {"free": FREE} | options
        return cls(box, pixel_size, where, total / count, **options)  # type: ignore[arg-type]

    def start(self, generator: torch.Generator) -> Tensor:
        """Coefficients [P] of the reference, with fresh weights of the displacement."""
        moving = self.displacement
        weights = None if moving is None else moving.start(generator)
        return self._center(weights) / self.spread

    def prior(self) -> TorchDistribution:
        """Independent normal numbers of variance 1 about the reference."""
        moving = self.displacement
        center = self._center(None if moving is None else moving.center) / self.spread
        found: TorchDistribution = Normal(center, torch.ones_like(center)).to_event(1)
        return found

    @property
    def own(self) -> int:
        """How many coefficients are of the Gaussians themselves; the displacement's follow."""
        moving = self.displacement
        return len(self.spread) - (0 if moving is None else len(moving.spread))

    def neutral(self) -> "GaussianMixture":
        """The Gaussians of the first :attr:`own` coefficients, which no conformation displaces."""
        sites = self.positions, self.amplitudes, self.widths
        kind = {"dtype": self.positions.dtype, "device": self.positions.device}
        more: dict[str, Any] = {"free": self.free, "radius": self.band.radius} | kind
        found = GaussianMixture(self.box, self.pixel_size, *sites, **more)
        found.spread = self.spread[: self.own]
        return found

    def _center(self, weights: Tensor | None) -> Tensor:
        """The reference's numbers and the displacement's, [P]."""
        zero = {"positions": self.positions * 0, "widths": self.widths * 0}
        values = zero | {"amplitudes": self.amplitudes}
        parts = [values[name].flatten() for name in FREE if name in self.free]
        extra = self.positions[:0, 0] if weights is None else weights.to(self.positions)
        return torch.cat([*parts, extra])

    def _spread(self, spread: tuple[float, float, float]) -> Tensor:
        sites, unit = len(self.positions), float(self.amplitudes.abs().mean())
        each = zip(FREE, (3, 1, 1), spread, (1.0, unit, 1.0), strict=True)
        parts = [torch.full((n * sites,), s * u) for name, n, s, u in each if name in self.free]
        return torch.cat([*parts, torch.zeros(0)]).to(self.positions)

    def sites(
        self, coefficients: Tensor, conformation: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Positions [*, n, 3] (A) of conformations [*, size]; amplitudes, widths (A) [n]."""
        count = len(self.positions)
        sizes = [n * count * (name in self.free) for name, n in zip(FREE, (3, 1, 1), strict=True)]
        parts = (coefficients * self.spread).split([*sizes, len(coefficients) - sum(sizes)])
        offsets, heights, stretch, weights = parts
        where = self.positions + offsets.view(-1, 3) if sizes[0] else self.positions
        if self.displacement is not None:
            state = checked(conformation, self.conformation_size).to(where)
            where = where + self.displacement(weights, state)
        heights = heights if sizes[1] else self.amplitudes
        return where, heights, self.widths * stretch.exp() if sizes[2] else self.widths

    def slices(
        self, coefficients: Tensor, rotation: Rotations, conformation: Tensor | None = None
    ) -> Coefficients:
        """Central slices [*, m] at rotations [*, 3, 3], of conformations [*, size]."""
        return each_map(self._slices, coefficients, 1, rotation, conformation)

    def _slices(self, own: Tensor, rotation: Rotations, state: Tensor | None) -> Coefficients:
        batch, where, heights, widths = self._seen(own, rotation, state)
        reach = self.band.radius + 1
        k = torch.arange(reach).to(where) * (2 * pi / (self.box * self.pixel_size))
        envelope = torch.exp(-((widths * k[:, None]) ** 2) / 2)
        angle = where.mT[:, :, None] * k[:, None]  # [n, 2, reach, sites]
        waves = torch.stack([angle.cos() * envelope, angle.sin() * envelope], 1)
        left = waves[:, :, 1].flatten(1, 2) * (heights / self.box)
        product = (left @ waves[:, :, 0].flatten(1, 2).mT).unflatten(1, (2, reach))
        product = product.unflatten(3, (2, reach))  # [n, (cos, sin) y, ky, (cos, sin) x, kx]
        band = self.band
        weight, side = band.weight.to(where), torch.where(band.ky < 0, -1, 1).to(where)
        ky, kx = band.ky.abs().to(where.device), band.kx.to(where.device)
        both = product[:, :, ky, :, kx]  # [m, n, 2, 2]
        real = both[..., 0, 0] - side[:, None] * both[..., 1, 1]
        imaginary = -both[..., 0, 1] - side[:, None] * both[..., 1, 0]
        found = torch.complex(real, imaginary) * weight[:, None]
        return found.mT.reshape(*batch, len(band))

    def projection(
        self, coefficients: Tensor, rotation: Rotations, conformation: Tensor | None = None
    ) -> Images:
        """Images [*, D, D]: density integrated along the view and sampled at the pixels.

        Not cut to the band as :meth:`slices` are.
        """
        batch, where, heights, widths = self._seen(coefficients, rotation, conformation)
        x, y = self._profiles(where, widths).unbind(-2)
        return ((y * heights).mT.mT @ x.mT).reshape(*batch, self.box, self.box)

    def density(self, coefficients: Tensor, conformation: Tensor | None = None) -> Maps:
        """The maps [*, D, D, D] of the Gaussians at the voxels, times a voxel's volume."""
        where, heights, widths = self.sites(coefficients, conformation)
        batch, found = where.shape[:-2], []
        for places in where.reshape(-1, *where.shape[-2:]):
            parts = (places.split(_AT_ONCE), heights.split(_AT_ONCE), widths.split(_AT_ONCE))
            maps = [self._map(*part) for part in zip(*parts, strict=True)]
            found.append(torch.stack(maps).sum(0))
        return torch.stack(found).reshape(*batch, *[self.box] * 3)

    def _map(self, where: Tensor, heights: Tensor, widths: Tensor) -> Maps:
        x, y, z = self._profiles(where[None], widths)[0].unbind(-2)
        plane = (z * heights)[:, None] * y  # [D, D, n]
        return plane @ x.mT

    def _profiles(self, where: Tensor, widths: Tensor) -> Tensor:
        """Normal densities times a pixel's side along each axis, [q, D, axes, n]."""
        voxel = (torch.arange(self.box) - self.box // 2).to(where) * self.pixel_size
        away = (voxel[:, None, None] - where.mT[:, None]) / widths
        return torch.exp(-(away**2) / 2) * (self.pixel_size / (sqrt(2 * pi) * widths))

    def _seen(
        self, own: Tensor, rotation: Rotations, state: Tensor | None
    ) -> tuple[torch.Size, Tensor, Tensor, Tensor]:
        """The batch, places (x, y) in each image in a row [q, n, 2], amplitudes, widths."""
        batch, turns, states = in_a_row(rotation, state, self.conformation_size)
        where, heights, widths = self.sites(own, states)
        return batch, where @ turns[:, :2].mT.to(where), heights, widths
