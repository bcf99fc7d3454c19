"""Amplitudes of the images' signals as a latent site."""

from math import inf

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor

from cryoprob.checks import require
from cryoprob.models.local_prior import LocalPrior

__all__ = ["GaussianContrast"]


class GaussianContrast(LocalPrior):
    """``contrast ~ N(1, scale^2)``: the image is ``contrast * CTF . shift . slice + noise``.

    At a given map and pose the posterior is normal, too, and exact EM integrates it out.

    Parameters
    ----------
    scale
        Standard deviation. The mean of 1 is what tells contrast from the scale of the map.

    Raises
    ------
    InputError
        If ``scale`` is not positive.
    """

    scale: Tensor

    def __init__(
        self,
        scale: float,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        require(0 < scale < inf, "contrast scale", expected="a positive number", got=str(scale))
        self.register_buffer("scale", torch.tensor(scale, dtype=dtype, device=device))

    def prior(self) -> TorchDistribution:
        """The normal distribution of a number."""
        found: TorchDistribution = Normal(torch.ones_like(self.scale), self.scale)
        return found
