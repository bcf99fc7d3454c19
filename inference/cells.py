"""Masses that a q on the continuum has in the cells of a pose grid."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.base import Law
from cryoprob.inference.laws.heads import Heads
from cryoprob.inference.levels import Level
from cryoprob.inference.treatments.base import Drawn, Lawful
from cryoprob.inference.treatments.importance import Importance
from cryoprob.particles import Batch
from cryoprob.types import Rotations, Shifts

__all__ = ["CellMasses", "law_masses", "masses_of"]


@dataclass(frozen=True, eq=False)
class CellMasses:
    """A q of n images that is independent in rotation and shift, on the cells of a grid.

    Attributes
    ----------
    rotation, shift
        Log masses, [n, Q] and [n, T] (float64), each adding up to 1.
    """

    rotation: Tensor
    shift: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Expectation of values [n, T, Q], [n]."""
        by_shift = (values @ self.rotation.exp()[..., None])[..., 0]
        return (by_shift * self.shift.exp()).sum(1)

    def entropy(self) -> Tensor:
        """Nats, [n]."""
        rotation, shift = (
            -(v.exp() * v.clamp(min=-1e4)).sum(1) for v in (self.rotation, self.shift)
        )
        return rotation + shift


def masses_of(guide: Guide, batch: Batch, level: Level) -> CellMasses:
    """The cell masses of a guide's q for the images of a batch."""
    rotation, shift = (
        part.proposal if isinstance(part, Importance) else part for part in guide.drawn
    )
    turns, moves = level.rotation.matrices(), level.shift.points()
    return CellMasses(_masses(rotation, batch, turns, 2), _masses(shift, batch, moves, 1))


def law_masses(law: Law, numbers: Tensor, points: Rotations | Shifts, event: int) -> Tensor:
    """Log masses [n, K] of cells of equal size around ``points`` [K, *event] or [n, K, *event].

    By the density at their centers, normalized; a Dirac has all its mass in the nearest cell, and
    so has, nearly, a law much narrower than a cell.
    """
    if law.has_density:
        return torch.log_softmax(law.log_density(numbers, points).double(), 1)
    if not isinstance(law, Heads):
        return _one_cell(law.mode(numbers), points, event)
    logits, parts = law.parts(numbers)
    cells = _one_cell(law.law.mode(parts).flatten(0, 1), points, event)
    shares = torch.log_softmax(logits, -1).double()[..., None]
    return torch.logsumexp(cells.unflatten(0, shares.shape[:2]) + shares, 1)


def _masses(part: Drawn, batch: Batch, points: Tensor, event: int) -> Tensor:
    if isinstance(part, Lawful):
        return law_masses(part.law, part.numbers_of(batch), points, event)
    return _one_cell(part.mode(batch), points, event)


def _one_cell(value: Tensor, points: Tensor, event: int) -> Tensor:
    """Log masses of the nearest of ``points`` alone, [n, K]."""
    flat, centers = value.flatten(-event)[:, None], points.to(value).flatten(-event)
    nearest = torch.cdist(flat, centers)[:, 0].argmin(-1, keepdim=True)
    nothing = flat.new_full((len(flat), centers.shape[-2]), -torch.inf, dtype=torch.float64)
    return nothing.scatter(1, nearest, 0.0)
