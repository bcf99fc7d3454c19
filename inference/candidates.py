"""The poses an image still holds possible: smallest sets of a given posterior mass.

And their children.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Candidates", "Keep", "fill_up", "smallest_pairs", "smallest_set"]

_BISECTIONS = 24


@dataclass(frozen=True)
class Keep:
    """How much of an image's posterior goes on to the next level.

    Attributes
    ----------
    mass
        Posterior mass, half of what may be lost for rotations, half for shifts.
    rotations, shifts
        Never fewer cells than these: the best ones, whatever the mass says.
    """

    mass: float
    rotations: int = 1
    shifts: int = 1

    @property
    def share(self) -> float:
        """Mass that the rotations must hold, and the shifts."""
        return 1 - (1 - self.mass) / 2


@dataclass(frozen=True, eq=False)
class Candidates:
    """Kept cells of n images.

    Attributes
    ----------
    order
        Of the rotation grid whose cells these are; the shifts are those of the same level.
    row, cell
        Pairs (image, rotation cell), each [K].
    shift
        Kept shift cells per image, [n, T], padded with -1 at the end.
    """

    order: int
    row: Tensor
    cell: Tensor
    shift: Tensor

    @classmethod
    def of(
        cls, order: int, row: Tensor, cell: Tensor, shift: Tensor, kept: Tensor
    ) -> "Candidates":
        """Pairs already chosen, and those of ``shift`` [n, T] that the mask ``kept`` names."""
        width = int(kept.sum(1).max())
        place = (~kept).long().argsort(dim=1, stable=True)[:, :width]
        chosen = shift.gather(1, place)
        return cls(order, row, cell, torch.where(kept.gather(1, place), chosen, -1))

    def shifts_at(self, order: int) -> Tensor:
        """Shift cells of this level or of the next finer one, [n, T] or [n, 4 T], -1 as padding.

        ``order`` is the level's rotation order.
        """
        if order == self.order:
            return self.shift
        children = 4 * self.shift[..., None] + torch.arange(4, device=self.shift.device)
        return torch.where(self.shift[..., None] < 0, -1, children).flatten(1)


def smallest_set(weights: Tensor, mass: float, least: int = 1) -> Tensor:
    """Mask of the (nearly) smallest sets of each row's weights [n, K] that hold ``mass`` of it.

    By bisection on the threshold; never less than ``mass``, nor fewer than the ``least`` largest
    that are positive; up to ties and 2^-24 of the range more.
    """
    total = weights.sum(1, keepdim=True)
    low = torch.zeros_like(total)
    high = weights.amax(1, keepdim=True)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        enough = (weights * (weights >= middle)).sum(1, keepdim=True) >= mass * total
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    floor = weights.topk(min(least, weights.shape[1]), 1).values[:, -1:]
    return (weights >= torch.minimum(low, floor)) & (weights > 0)


def fill_up(kept: Tensor, logits: Tensor, over: int, least: int) -> Tensor:
    """The mask ``kept`` [n, K] with at least ``least`` cells a row.

    For images so sharp that all other weights are 0 in single precision: cells come by their
    largest logit [n, T, Q] ``over`` the axis that is not theirs.
    """
    short = kept.sum(1) < least
    if short.any():
        best = logits[short].amax(over)
        kept[short] = kept[short].scatter(1, best.topk(min(least, kept.shape[1]), 1).indices, True)
    return kept


def smallest_pairs(row: Tensor, weight: Tensor, count: int, mass: float, least: int = 1) -> Tensor:
    """Mask [K] of each row's smallest set of pairs that holds ``mass`` of its weight.

    And never fewer than the ``least`` largest.

    Parameters
    ----------
    row, weight
        The image of each pair, below ``count``, and its weight, [K].
    """
    if mass >= 1:
        return weight > 0
    order = torch.argsort(weight, descending=True, stable=True)
    order = order[torch.argsort(row[order], stable=True)]
    row, ranked = row[order], weight[order].double()
    total = ranked.new_zeros(count).index_add_(0, row, ranked)
    before = ranked.cumsum(0) - ranked - (total.cumsum(0) - total)[row]
    kept = torch.zeros_like(weight, dtype=torch.bool)
    sizes = torch.bincount(row, minlength=count)
    place = torch.arange(len(row), device=row.device) - (sizes.cumsum(0) - sizes)[row]
    kept[order] = ((before < mass * total[row]) | (place < least)) & (ranked > 0)
    return kept
