"""Conformations of several normal numbers."""

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor

from cryoprob.checks import require
from cryoprob.models.conformations.base import Conformation

__all__ = ["GaussianConformation"]


class GaussianConformation(Conformation):
    """``z ~ N(0, diag(scale^2))``.

    Parameters
    ----------
    scale
        Standard deviations [size]: ones for abstract coordinates. Amplitudes of normal modes are
        :class:`~cryoprob.models.conformations.normal_modes.NormalModeAmplitudes`.

    Raises
    ------
    InputError
        If one of them is not positive.
    """

    scale: Tensor

    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        fits = scale.dim() == 1 and len(scale) > 0 and bool((scale > 0).all())
        require(fits, "scale", expected="positive numbers, [size]", got=str(scale.tolist()))
        self.register_buffer("scale", scale.clone())
        self.size = len(scale)

    def prior(self) -> TorchDistribution:
        """Independent normal numbers."""
        law = Normal(torch.zeros_like(self.scale), self.scale)
        found: TorchDistribution = law.to_event(1)
        return found
