"""The exact posterior on a grid: leave the site to enumeration.

And say how to stream and prune.
"""

from cryoprob.checks import require
from cryoprob.inference.candidates import Keep
from cryoprob.inference.treatments.base import Treatment
from cryoprob.particles import Batch

__all__ = ["Exact"]


class Exact(Treatment):
    """q = p(pose | image) on the prior's grid.

    Parameters
    ----------
    mass
        Posterior mass kept at each coarser level of a coarse-to-fine search; None searches
        everything.
    least
        With ``mass``: rotation cells kept at least at each coarser level, the best ones, and a
        quarter as many shifts. Coarse scores rank cells well but say too sharply how likely they
        are: sets of a given mass alone lose whole modes.
    coarse_order
        Order of the coarsest rotation grid, searched completely (used with ``mass``).
    block_bytes
        Memory of one block of scores; results do not depend on it.

    Raises
    ------
    InputError
        If ``mass`` is not in (0, 1] or ``least`` not positive.
    """

    enumerates = True
    searches = True

    def __init__(
        self,
        mass: float | None = None,
        *,
        least: int = 32,
        coarse_order: int = 2,
        block_bytes: int = 2**23,
    ) -> None:
        super().__init__()
        require(mass is None or 0 < mass <= 1, "mass", expected="in (0, 1]", got=str(mass))
        require(least > 0, "least", expected="a positive number of cells", got=str(least))
        self.mass, self.least = mass, least
        self.coarse_order, self.block_bytes = coarse_order, block_bytes

    @property
    def keep(self) -> Keep:
        """What goes on from a coarser level to the next (everything without a ``mass``)."""
        return Keep(self.mass or 1.0, self.least, max(1, self.least // 4))

    def forward(self, site: str, batch: Batch) -> None:
        """Nothing: the model's own site is enumerated."""
