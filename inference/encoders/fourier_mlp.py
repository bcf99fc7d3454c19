"""A residual multilayer perceptron on the Fourier coefficients, of cryoDRGN's shape."""

import torch
from torch import Tensor, nn

from cryoprob.inference.encoders.base import Encoder
from cryoprob.inference.encoders.centering import Centering

__all__ = ["FourierMLP"]


class FourierMLP(Encoder):
    """The numbers of the band, windowed in real space, through residual layers.

    Zhong et al. 2020 (CryoDRGN), app. A; the half plane's packed coefficients in place of the
    Hartley transform, which hold the same numbers. Layers are normalized on their way in.

    Parameters
    ----------
    box, sigma2, matched, centering, precision
        As of :class:`Encoder`.
    width
        Of the hidden layers, and number of features.
    layers
        Hidden layers after the first.
    """

    def __init__(
        self,
        box: int,
        sigma2: Tensor,
        *,
        width: int = 256,
        layers: int = 3,
        matched: bool = False,
        centering: Centering | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__(box, sigma2, matched=matched, centering=centering, precision=precision)
        self.size = width
        self.first = nn.Linear(2 * len(self.band), width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers + 1))

    def forward(self, coefficients: Tensor) -> Tensor:
        """Features [N, size]."""
        images = self.windowed(self.pixels(coefficients))
        numbers = torch.view_as_real(self.band.pack(images)).flatten(-2)
        hidden = torch.relu(self.first(numbers))
        for layer, norm in zip(self.layers, self.norms, strict=False):
            hidden = hidden + torch.relu(layer(norm(hidden)))
        found: Tensor = self.norms[-1](hidden)
        return found
