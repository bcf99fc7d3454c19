"""The exact posterior near given values: local search around poses of an earlier fit."""

from collections.abc import Callable

from torch import Tensor

from cryoprob.inference.treatments.base import Near
from cryoprob.particles import Batch

__all__ = ["Local"]


class Local(Near):
    """The exact posterior on the grid cells near given values (local search).

    Parameters
    ----------
    values
        Poses of all N particles, [N, *event].
    radius
        Degrees for rotations, Angstrom for shifts.
    """

    values: Tensor

    def __init__(self, values: Tensor, radius: float, *, block_bytes: int = 2**23) -> None:
        super().__init__(radius, block_bytes)
        self.register_buffer("values", values, persistent=False)

    def near(self, index: Tensor, look: Callable[[], Batch]) -> Tensor:
        """The given values, [1, n, *event]."""
        return self.values[index][None]
