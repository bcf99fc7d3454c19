"""How one site of the model is treated by inference."""

from abc import ABC, abstractmethod

import pyro
from torch import Tensor, nn

from cryoprob.inference.laws.base import Draws, Law
from cryoprob.particles import Batch

__all__ = ["Drawn", "Lawful", "Treatment"]


class Treatment(nn.Module, ABC):
    """A choice of q for one site.

    Attributes
    ----------
    enumerates
        The site is left out of the guide and summed over by enumeration.
    searches
        Its values are found on a grid, together with those of the other pose site.
    """

    enumerates: bool = False
    searches: bool = False

    @abstractmethod
    def forward(self, site: str, batch: Batch) -> None:
        """Sample the site in the guide (inside the particle plate for local sites)."""


class Drawn(Treatment):
    """A treatment that gives weighted draws of its site.

    Attributes
    ----------
    has_density
        False where q is a Dirac.
    heads
        Components of q, each with draws of its own.
    """

    has_density: bool = True
    heads: int = 1

    @abstractmethod
    def draw(self, batch: Batch, count: int) -> Draws:
        """``count`` draws for each image of the batch, or fewer where q needs no more."""

    def mode(self, batch: Batch) -> Tensor:
        """The most probable value of each image, [N, *event]."""
        return self.draw(batch, 1).value[0]


class Lawful(Drawn):
    """Draws from a law, whose numbers a table or an encoder holds.

    Parameters
    ----------
    law
        The family of q.
    """

    def __init__(self, law: Law) -> None:
        super().__init__()
        self.law, self.has_density, self.heads = law, law.has_density, law.heads

    @abstractmethod
    def numbers_of(self, batch: Batch) -> Tensor:
        """The law's numbers of each image, [N, size]."""

    def forward(self, site: str, batch: Batch) -> None:
        """The law of each image."""
        pyro.sample(site, self.law(self.numbers_of(batch)))

    def draw(self, batch: Batch, count: int) -> Draws:
        """Draws of each image's law."""
        return self.law.draw(self.numbers_of(batch), count)

    def mode(self, batch: Batch) -> Tensor:
        """The mode of each image's law."""
        return self.law.mode(self.numbers_of(batch))
