"""How one site of the model is treated by inference."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import pyro
from torch import Tensor, nn

from cryoprob.checks import require
from cryoprob.inference.candidates import Keep
from cryoprob.inference.laws.base import Draws, Law
from cryoprob.particles import Batch

__all__ = ["Drawn", "Lawful", "Near", "Treatment"]


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

    @property
    def lawful(self) -> "Lawful | None":
        """The law behind it that inclusive objectives train, or None."""
        return None

    @abstractmethod
    def forward(self, site: str, batch: Batch) -> None:
        """Sample the site in the guide (inside the particle plate for local sites)."""


class Near(Treatment):
    """The exact posterior on the grid cells near some values of each image.

    Parameters
    ----------
    radius
        Degrees for rotations, Angstrom for shifts.
    block_bytes
        Memory of one block of scores.

    Attributes
    ----------
    keep
        What goes on from each coarser grid to the next, from that of ``coarse_order`` on; None
        looks at all cells near of the finest one.

    Raises
    ------
    InputError
        If the radius is not positive.
    """

    enumerates = True
    searches = True
    keep: Keep | None = None
    coarse_order: int = 0

    def __init__(self, radius: float, block_bytes: int) -> None:
        super().__init__()
        require(radius > 0, "radius of the local search", expected="> 0", got=str(radius))
        self.radius, self.block_bytes = radius, block_bytes

    @abstractmethod
    def near(self, index: Tensor, look: Callable[[], Batch]) -> Tensor:
        """Values [M, n, *event] of images ``index`` [n]; ``look`` gives their batch."""

    def forward(self, site: str, batch: Batch) -> None:
        """Nothing: the streamed E-step restricts the enumeration."""


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

    @property
    def lawful(self) -> "Lawful":
        """Itself."""
        return self

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
