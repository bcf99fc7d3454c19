"""K states with weights of their own."""

import torch
from pyro.distributions import Categorical
from torch import Tensor

from cryoprob.checks import require
from cryoprob.models.conformations.base import Conformation

__all__ = ["Classes"]


class Classes(Conformation):
    """``class ~ Categorical(weights)``, enumerated together with the poses.

    Parameters
    ----------
    weights
        [K], positive; divided by their sum.
    concentration
        Of the symmetric Dirichlet prior of the weights; 1 is flat, above 1 no class dies out.

    Raises
    ------
    InputError
        If a weight or the concentration is not positive.
    """

    enumerable = True
    weights: Tensor

    def __init__(self, weights: Tensor, concentration: float = 1.0) -> None:
        super().__init__()
        wanted = "two or more positive numbers"
        fits = weights.dim() == 1 and len(weights) > 0 and bool((weights > 0).all())
        require(fits, "class weights", expected=wanted, got=str(weights.tolist()))
        require(
            concentration >= 1,
            "concentration",
            expected="1 or more (below 1 the most probable weights are 0)",
            got=f"{concentration:g}",
        )
        self.register_buffer("weights", weights / weights.sum())
        self.size, self.concentration = len(weights), concentration

    def prior(self) -> Categorical:
        """One class of K."""
        return Categorical(self.weights)

    def update(self, counts: Tensor) -> None:
        """Put the weights where they are most probable, given expected counts [K] of images.

        ``(counts + concentration - 1) / sum``. Scheres 2012 has concentration 1.
        """
        found = counts.to(self.weights) + self.concentration - 1
        floor = torch.finfo(self.weights.dtype).eps
        self.weights.copy_((found / found.sum()).clamp(min=floor))
