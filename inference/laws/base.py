"""Laws: the distribution q of one site, as a function of free numbers per image.

A table holds the numbers of a ``PerImage`` treatment, an encoder gives those of an ``Amortized``
one; the law is the same.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import log

from pyro.distributions import TorchDistribution
from torch import Tensor, nn

__all__ = ["Draws", "Law"]


@dataclass(frozen=True, eq=False)
class Draws:
    """K weighted draws of one site for each of N images.

    Attributes
    ----------
    value
        [K, N, *event].
    log_q
        Log density of the law at them, [K, N]; 0 for a Dirac, which has none.
    log_weight
        Log of their shares of the expectation under q, which add up to 1 over K, [K, N].
    """

    value: Tensor
    log_q: Tensor
    log_weight: Tensor

    @classmethod
    def at(cls, value: Tensor) -> "Draws":
        """The one draw of Diracs at values [N, *event]."""
        nothing = value.new_zeros(1, len(value))
        return cls(value[None], nothing, nothing)


class Law(nn.Module, ABC):
    """A family of distributions of one site.

    Attributes
    ----------
    size
        Free numbers per image.
    has_density
        False for a Dirac: its objective is the ``profile_log_joint``, not an ELBO.
    heads
        Components of a mixture, each of which gets its own draws.
    """

    size: int
    has_density: bool = True
    heads: int = 1

    @abstractmethod
    def forward(self, numbers: Tensor) -> TorchDistribution:
        """The distribution of batch shape [*] of numbers [*, size]."""

    @abstractmethod
    def numbers(self, value: Tensor) -> Tensor:
        """Numbers [*, size] of the law at its starting width around values [*, *event]."""

    def around(self, value: Tensor, covariance: Tensor) -> Tensor:
        """Numbers [*, size] of the law around values, as wide as Laplace's approximation says.

        The covariance is of turns about the laboratory's axes [*, 3, 3] (radians), or of shifts
        [*, 2, 2] (Angstrom). A law without a free width does not look at it.
        """
        return self.numbers(value)

    def starting(self, values: Tensor) -> Tensor:
        """Numbers [size] of the law whose heads stand at ``values`` [heads, *event]."""
        return self.numbers(values[0])

    @abstractmethod
    def log_score(self, numbers: Tensor, value: Tensor) -> Tensor:
        """What training on known values raises: the log density, [*].

        For a Dirac, minus half the squared distance in units of a stated width.
        """

    @abstractmethod
    def mode(self, numbers: Tensor) -> Tensor:
        """The most probable value, [*, *event]."""

    def log_density(self, numbers: Tensor, values: Tensor) -> Tensor:
        """Log density [n, K] of what :meth:`draw` draws, at values [K, *event] or [n, K, *event].

        Numbers are those of n images, [n, size].
        """
        density: Tensor = self(numbers[:, None]).log_prob(values)
        return density

    def draw(self, numbers: Tensor, count: int) -> Draws:
        """``count`` draws of each image's law (one of a Dirac), differentiable in the numbers."""
        law = self(numbers)
        if not self.has_density:
            return Draws.at(self.mode(numbers))
        value = law.rsample((count,))
        log_q = law.log_prob(value)
        return Draws(value, log_q, log_q.new_full(log_q.shape, -log(count)))
