"""A noise spectrum per optics group."""

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.models.noises.base import Noise

__all__ = ["RadialNoise"]


class RadialNoise(Noise):
    """Variance ``sigma2`` [G, S] of a unitary coefficient, per optics group and shell.

    Raises
    ------
    InputError
        If a variance is not positive and finite.
    """

    def __init__(self, sigma2: Tensor) -> None:
        super().__init__()
        sigma2 = torch.atleast_2d(sigma2)
        good = torch.isfinite(sigma2) & (sigma2 > 0)
        require(
            bool(good.all()),
            "noise spectrum",
            expected="positive finite variances",
            got=f"{int((~good).sum())} other values",
        )
        self.register_buffer("sigma2", sigma2.clone())

    def forward(self, group: Tensor) -> Tensor:
        """Variance per shell of each image, [N, S]."""
        return self.sigma2[group]
