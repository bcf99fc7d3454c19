"""The poses an image still holds possible: smallest sets of a given posterior mass.

And their children.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Candidates", "smallest_set"]

_BISECTIONS = 24


@dataclass(frozen=True, eq=False)
class Candidates:
    """Kept cells of n images.

    Attributes
    ----------
    row, cell
        Pairs (image, rotation cell), each [K].
    shift
        Kept shift cells per image, [n, T], padded with -1 at the end.
    """

    row: Tensor
    cell: Tensor
    shift: Tensor

    @classmethod
    def of(
        cls, row: Tensor, cell: Tensor, shift_mass: Tensor, shift: Tensor, mass: float
    ) -> "Candidates":
        """Pairs already chosen, with the smallest sets of ``shift`` [n, T] holding ``mass``."""
        keep = smallest_set(shift_mass, mass)
        width = int(keep.sum(1).max())
        order = (~keep).long().argsort(dim=1, stable=True)[:, :width]
        chosen = shift.gather(1, order)
        return cls(row, cell, torch.where(keep.gather(1, order), chosen, -1))

    def child_shifts(self) -> Tensor:
        """Shift cells of the next finer grid, [n, 4 T], padded with -1."""
        children = 4 * self.shift[..., None] + torch.arange(4, device=self.shift.device)
        return torch.where(self.shift[..., None] < 0, -1, children).flatten(1)


def smallest_set(weights: Tensor, mass: float) -> Tensor:
    """Mask of the (nearly) smallest sets of each row's weights [n, K] that hold ``mass`` of it.

    By bisection on the threshold; never less than ``mass``, up to ties and 2^-24 of the range
    more.
    """
    total = weights.sum(1, keepdim=True)
    low = torch.zeros_like(total)
    high = weights.amax(1, keepdim=True)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = (weights * (weights >= middle)).sum(1, keepdim=True) >= mass * total
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return (weights >= low) & (weights > 0)
