"""A convolutional encoder of VGG's shape, as CryoAI and CryoFIRE use."""

import torch
from torch import Tensor, nn

from cryoprob.inference.encoders.base import Encoder
from cryoprob.inference.encoders.centering import Centering

__all__ = ["Convolutional"]


class Convolutional(Encoder):
    """Pairs of 3 x 3 convolutions, each followed by pooling, down to 4 x 4; then one hidden layer.

    Levy et al. 2022 (CryoFIRE), sec. 3.2.

    Parameters
    ----------
    box, sigma2, matched, centering, precision
        As of :class:`Encoder`; a box of 4 times a power of two uses every pixel.
    channels
        Of the first pair; they double with every pooling.
    size
        Features.
    """

    def __init__(
        self,
        box: int,
        sigma2: Tensor,
        *,
        channels: int = 16,
        size: int = 256,
        matched: bool = False,
        centering: Centering | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__(box, sigma2, matched=matched, centering=centering, precision=precision)
        self.size = size
        layers: list[nn.Module] = []
        width, inner, side = 1, channels, box
        while side > 4:
            layers += _pair(width, inner)
            width, inner, side = inner, 2 * inner, side // 2
        self.body = nn.Sequential(*layers, nn.Flatten())
        self.top = nn.Sequential(nn.Linear(width * side**2, size), nn.ReLU())

    def forward(self, coefficients: Tensor) -> Tensor:
        """Features [N, size]."""
        images = self.windowed(self.pixels(coefficients))
        found: Tensor = self.top(self.body(images[:, None]))
        return found


def _pair(before: int, after: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(after, after, 3, padding=1),
        nn.GroupNorm(4, after),
        nn.ReLU(),
        nn.AvgPool2d(2),
    ]
