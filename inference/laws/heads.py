"""A mixture of several heads: hypotheses for images whose pose is ambiguous."""

from math import log
from typing import Any

import torch
from pyro.distributions import Categorical, MixtureSameFamily, TorchDistribution
from torch import Tensor

from cryoprob.checks import require
from cryoprob.inference.laws.base import Draws, Law

__all__ = ["Heads"]


class Heads(Law):
    """``q = sum_m w_m law(numbers_m)``, weights and all parts free.

    Expectations are taken head by head (every head gets its own draws, in shares ``w_m``), so that
    the weights have exact gradients and no head is missed by chance. With Diracs it is a choice
    among M candidates, whose entropy counts: ``sum_m w_m (log p(x, h_m) - log w_m)``, at best the
    logsumexp of the candidates.

    Parameters
    ----------
    law
        Of one head.
    heads
        Their number, M.
    """

    def __init__(self, law: Law, heads: int) -> None:
        super().__init__()
        require(heads > 1, "heads", expected="two or more", got=str(heads))
        require(law.heads == 1, "heads", expected="a law of one head", got="a mixture")
        self.law, self.heads = law, heads
        self.size, self.has_density = heads * (law.size + 1), law.has_density

    def forward(self, numbers: Tensor) -> TorchDistribution:
        """The mixture."""
        logits, parts = self.parts(numbers)
        mixture: Any = MixtureSameFamily(Categorical(logits=logits), self.law(parts))
        found: TorchDistribution = mixture
        return found

    def numbers(self, value: Tensor) -> Tensor:
        """Equal weights of heads that all stand at ``value``; alike, until noise parts them."""
        one = self.law.numbers(value)
        parts = one[..., None, :].expand(*one.shape[:-1], self.heads, -1).flatten(-2)
        return torch.cat([one.new_zeros(*one.shape[:-1], self.heads), parts], -1)

    def starting(self, values: Tensor) -> Tensor:
        """Numbers [size] of equal weights, head by head at ``values`` [heads, *event]."""
        return torch.cat([values.new_zeros(self.heads), self.law.numbers(values).flatten()])

    def mode(self, numbers: Tensor) -> Tensor:
        """The mode of the heaviest head."""
        logits, parts = self.parts(numbers)
        modes = self.law.mode(parts)
        at = logits.argmax(-1)
        rows = torch.arange(at.numel(), device=at.device)
        flat = modes.reshape(at.numel(), self.heads, *modes.shape[at.dim() + 1 :])
        return flat[rows, at.flatten()].reshape(*at.shape, *flat.shape[2:])

    def log_score(self, numbers: Tensor, value: Tensor) -> Tensor:
        """Log density of the mixture; with Diracs, of their scores as if they were."""
        logits, parts = self.parts(numbers)
        event = value.dim() - logits.dim() + 1
        one = value.unsqueeze(-1 - event)
        score = self.law.log_score(parts, one)
        return torch.logsumexp(torch.log_softmax(logits, -1) + score, -1)

    def draw(self, numbers: Tensor, count: int) -> Draws:
        """``count`` draws (one, of Diracs) of every head, [heads * count, N, ...]."""
        logits, parts = self.parts(numbers)
        share = torch.log_softmax(logits, -1)
        if self.has_density:
            value = self.law(parts).rsample((count,))
        else:
            value, count = self.law.mode(parts)[None], 1
        value = value.movedim(2, 0).flatten(0, 1)
        weight = share.movedim(-1, 0).repeat_interleave(count, 0)
        log_q = self(numbers).log_prob(value) if self.has_density else weight
        return Draws(value, log_q, weight - log(count))

    def parts(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [*, M] and the heads' numbers [*, M, size]."""
        logits, parts = numbers.split([self.heads, self.heads * self.law.size], -1)
        return logits, parts.unflatten(-1, (self.heads, self.law.size))
