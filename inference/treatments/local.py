"""The exact posterior near given values: local search around poses of an earlier fit."""

from torch import Tensor

from cryoprob.checks import require
from cryoprob.inference.treatments.base import Treatment
from cryoprob.particles import Batch

__all__ = ["Local"]


class Local(Treatment):
    """The exact posterior on the grid cells near given values (local search).

    Parameters
    ----------
    values
        Poses of all N particles, [N, *event].
    radius
        Degrees for rotations, Angstrom for shifts.
    """

    enumerates = True
    searches = True
    values: Tensor

    def __init__(self, values: Tensor, radius: float, *, block_bytes: int = 2**23) -> None:
        super().__init__()
        require(radius > 0, "radius of the local search", expected="> 0", got=str(radius))
        self.register_buffer("values", values, persistent=False)
        self.radius, self.block_bytes = radius, block_bytes

    def forward(self, site: str, batch: Batch) -> None:
        """Nothing: the streamed E-step restricts the enumeration."""
