"""The exact posterior near what a q proposes: amortized inference, then local search."""

from collections.abc import Callable

from torch import Tensor

from cryoprob.inference.treatments.base import Drawn, Lawful, Near
from cryoprob.inference.treatments.exact import Exact
from cryoprob.particles import Batch

__all__ = ["Proposed"]


class Proposed(Near):
    """The exact posterior on the grid cells near the proposal's draws for each image.

    An encoder in the place of a coarse search: it need only be right to within the radius at one
    of its hypotheses, and the posterior's sum over the cells there does the rest. Like a pruned
    sum it lies below the log evidence by minus the log of the posterior mass that it reached.
    Levy et al. 2022 (CryoFIRE), section 5, propose such a refinement of amortized poses.

    Parameters
    ----------
    proposal
        A treatment that gives draws; best an encoder with the modes of several heads
        (``Amortized(encoder, Cells(heads=8, modal=True), start)``).
    radius
        Degrees for rotations, Angstrom for shifts.
    mass, least, coarse_order
        Of the way from the coarse cells near to the finest ones, as of ``Exact``; a ``mass`` of
        None looks at all of the finest cells near.
    """

    def __init__(
        self,
        proposal: Drawn,
        radius: float,
        *,
        mass: float | None = 0.999,
        least: int = 32,
        coarse_order: int = 2,
        block_bytes: int = 2**23,
    ) -> None:
        super().__init__(radius, block_bytes)
        exact = Exact(mass, least=least, coarse_order=coarse_order)
        self.keep = None if mass is None else exact.keep
        self.proposal, self.coarse_order = proposal, coarse_order

    @property
    def lawful(self) -> Lawful | None:
        """What learns."""
        return self.proposal.lawful

    def near(self, index: Tensor, look: Callable[[], Batch]) -> Tensor:
        """The proposal's draws, one of each head, [heads, n, *event]."""
        return self.proposal.draw(look(), 1).value
