"""An encoder that turns with the image: correlations over the in-plane angle, on a circle."""

from math import pi

import torch
from torch import Tensor, nn

from cryoprob.checks import require
from cryoprob.fourier.bands import Band
from cryoprob.geometry.grids import RotationGrid
from cryoprob.inference.encoders.base import Encoder
from cryoprob.inference.encoders.centering import Centering

__all__ = ["Polar"]

_TURNS_PER_FILTER = 2


class Polar(Encoder):
    """Filters on a polar Fourier grid, each laid on the image at many in-plane angles.

    The first layer is a bank of learned templates that are turned in steps: its outputs are
    functions of the angle, which move around the circle when the image turns. Residual layers
    mix channels and neighboring angles with the same weights everywhere, and so does the law's
    read-out: what is learned at one in-plane angle holds for all. It needs a law whose numbers
    come angle by angle: :class:`~cryoprob.inference.laws.cells.Cells` for rotations,
    :class:`~cryoprob.inference.laws.shifts.TurningShift` for shifts.

    Parameters
    ----------
    box, sigma2, centering, precision
        As of :class:`Encoder`. Images are weighted by the whole CTF (``matched``).
    order
        Of the law's rotation grid; its in-plane angles are the positions.
    channels
        Filters, and width of the layers.
    layers
        Residual layers.
    finer
        Angles of the layers for each position; their features are joined.

    Notes
    -----
    Bekkers et al. 2018, MICCAI, "Roto-translation covariant convolutional networks" (filters
    that are turned in steps); here without translations, which the centering takes out.
    """

    polar: Tensor

    def __init__(
        self,
        box: int,
        sigma2: Tensor,
        *,
        order: int = 1,
        channels: int = 128,
        layers: int = 2,
        finer: int = 2,
        centering: Centering | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__(box, sigma2, matched=True, centering=centering, precision=precision)
        require(layers >= 0, "layers", expected="0 or more", got=str(layers))
        self.positions, self.finer = RotationGrid(order).n_psi, finer
        self.size = finer * channels
        radii, angles = box // 2, _TURNS_PER_FILTER * finer * self.positions
        spread = 0.5 * (2 * radii * angles) ** -0.5
        self.filters = nn.Parameter(spread * torch.randn(channels, 2 * radii, angles))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.layers = nn.ModuleList(_Ring(channels) for _ in range(layers))
        self.last = nn.LayerNorm(channels)
        self.register_buffer("polar", _polar(self.band, radii, angles), persistent=False)

    def forward(self, coefficients: Tensor) -> Tensor:
        """Features [N, positions, size]."""
        numbers = torch.view_as_real(coefficients.resolve_conj()).flatten(-2)
        hidden = (numbers @ self.templates().mT).unflatten(-1, (-1, len(self.bias)))
        hidden = torch.relu(hidden + self.bias)
        for layer in self.layers:
            hidden = layer(hidden)
        found: Tensor = self.last(hidden).unflatten(1, (self.positions, self.finer)).flatten(2)
        return found

    def templates(self) -> Tensor:
        """The filters at all angles of the layers, as functions of the band's numbers.

        [angles * channels, 2 m].
        """
        turns = range(0, self.filters.shape[-1], _TURNS_PER_FILTER)
        turned = torch.stack([torch.roll(self.filters, turn, -1) for turn in turns])
        return turned.flatten(0, 1).flatten(1) @ self.polar


class _Ring(nn.Module):
    """A residual layer over each angle and its two neighbors on the circle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mix = nn.Linear(3 * channels, channels)

    def forward(self, hidden: Tensor) -> Tensor:
        level = self.norm(hidden)
        around = torch.cat([level.roll(step, 1) for step in (-1, 0, 1)], -1)
        changed: Tensor = hidden + torch.relu(self.mix(around))
        return changed


def _polar(band: Band, radii: int, angles: int) -> Tensor:
    """The band's numbers read on a polar Fourier grid, [2 radii * angles, 2 m].

    An image of one coefficient at a time, in a round window, is transformed at frequencies from
    3/4 to the band's radius: exact for what lies inside the window.
    """
    size, box = 2 * len(band), band.box
    each = torch.view_as_complex(torch.eye(size).unflatten(-1, (-1, 2)).contiguous())
    axis = torch.arange(box) - box // 2
    distance = (axis[:, None].square() + axis.square()).sqrt() / box
    images = band.unpack(each) * ((0.5 - distance) / 0.05).clamp(0, 1)
    radius = torch.linspace(0.75, band.radius, radii)[:, None]
    angle = torch.arange(angles) * (2 * pi / angles)
    x, y = ((radius * part).flatten() for part in (angle.cos(), angle.sin()))
    along_x, along_y = (torch.exp(-2j * pi / box * torch.outer(axis.float(), k)) for k in (x, y))
    found = torch.einsum("nyx,xk,yk->kn", images.to(along_x.dtype), along_x, along_y)
    found = found * (2**0.5 / box)
    return torch.cat([found.real, found.imag])
