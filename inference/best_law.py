"""The best q of a family for each image: what the family could do, were it not learned."""

from collections.abc import Sequence
from dataclasses import dataclass

import roma
import torch
from torch import Tensor

from cryoprob.inference.cells import CellMasses, law_masses
from cryoprob.inference.laws.base import Law
from cryoprob.inference.laws.heads import Heads
from cryoprob.inference.levels import Level
from cryoprob.types import Rotations

__all__ = ["BestLaw", "at_cells", "at_moments", "best_bound", "best_law"]

_STEPS = 60
_RATE = 0.05
_APART_DEG = 40.0
_CELLS = 512

_MODES = 2
"""From which a law of one head starts; a third was not the best of any of 48 images."""

_SCREENED, _TRIED = 32, 3
"""Cells at which a law of given width is scored, and those of them from which it climbs."""

_NOTHING = 1e-12
"""Mass of a cell that belongs to a mode already taken."""


@dataclass(frozen=True, eq=False)
class BestLaw:
    """The best laws found for n images.

    Attributes
    ----------
    bound
        ELBO over noise, [n] (float64).
    rotation, shift
        The laws' numbers there, [n, size].
    """

    bound: Tensor
    rotation: Tensor
    shift: Tensor


def best_bound(
    rotation: Law,
    shift: Law,
    own: tuple[Tensor, Tensor],
    log_joint: Tensor,
    level: Level,
) -> Tensor:
    """Largest ELBO over noise [n] that the laws reach against ``log_joint`` [n, T, Q].

    Of Diracs, exactly; of laws as :func:`best_law` finds them from their ``own`` numbers and from
    the posterior's moments around its heaviest modes.
    """
    if not rotation.has_density and not shift.has_density:
        return _best_cells(log_joint, rotation.heads)
    starts = [own, *at_moments(rotation, shift, log_joint, level)]
    return best_law(rotation, shift, starts, log_joint, level).bound


def best_law(
    rotation: Law,
    shift: Law,
    starts: Sequence[tuple[Tensor, Tensor]],
    log_joint: Tensor,
    level: Level,
) -> BestLaw:
    """The laws of the largest ELBO against ``log_joint`` [n, T, Q]; laws with densities.

    By Adam from each of some numbers (rotation, shift), the best of all for each image. Steps look
    at the cells of most posterior mass only; what they end at is scored on the whole grid. Laws of
    fixed width have fewer numbers to move, and no more is different for them.
    """
    grid = level.rotation.matrices(), level.shift.points()
    ends = [_climb(rotation, shift, start, log_joint, *grid) for start in starts]
    bounds = torch.stack([_bound(rotation, shift, end, log_joint, *grid) for end in ends])
    bound, first = bounds.max(0)
    row = torch.arange(len(bound), device=bound.device)
    turns, moves = (torch.stack(part)[first, row] for part in zip(*ends, strict=True))
    return BestLaw(bound, turns, moves)


def at_cells(
    rotation: Law, shift: Law, log_joint: Tensor, level: Level
) -> list[tuple[Tensor, Tensor]]:
    """Numbers of laws at their starting widths around three cells of each image.

    Of its heaviest cells those at which the bound is largest.
    """
    turns, moves = level.rotation.matrices(), level.shift.points()
    cells = log_joint.flatten(1).topk(min(_SCREENED, log_joint[0].numel()), 1).indices
    numbers = [
        (rotation.numbers(turns[cell % len(turns)]), shift.numbers(moves[cell // len(turns)]))
        for cell in cells.T
    ]
    near, inside = _near(log_joint)
    bounds = [_bound(rotation, shift, one, near, turns[inside], moves) for one in numbers]
    best = torch.stack(bounds).topk(min(_TRIED, len(bounds)), 0).indices
    row = torch.arange(len(log_joint), device=log_joint.device)
    turned, moved = (torch.stack(part) for part in zip(*numbers, strict=True))
    return [(turned[one, row], moved[one, row]) for one in best]


def _bound(
    rotation: Law,
    shift: Law,
    numbers: tuple[Tensor, Tensor],
    log_joint: Tensor,
    turns: Rotations,
    moves: Tensor,
) -> Tensor:
    masses = CellMasses(
        law_masses(rotation, numbers[0], turns, 2), law_masses(shift, numbers[1], moves, 1)
    )
    return masses.mean(log_joint) + masses.entropy()


def _best_cells(log_joint: Tensor, heads: int) -> Tensor:
    """Diracs: the best shift, and with it the best rotations, in shares of their masses."""
    by_shift = log_joint.topk(heads, 2).values.logsumexp(2)
    return by_shift.amax(1)


def _climb(
    rotation: Law,
    shift: Law,
    start: tuple[Tensor, Tensor],
    log_joint: Tensor,
    turns: Rotations,
    moves: Tensor,
) -> tuple[Tensor, Tensor]:
    """The best numbers on the way of Adam, for each image."""
    near, cells = _near(log_joint)
    kept = [part.clone() for part in start]
    free = [part.clone().requires_grad_() for part in start]
    optimizer = torch.optim.Adam(free, lr=_RATE)
    best = log_joint.new_full((len(log_joint),), -torch.inf)
    with torch.enable_grad():
        for _ in range(_STEPS):
            value = _bound(rotation, shift, (free[0], free[1]), near, turns[cells], moves)
            better = value.detach() > best
            best = torch.where(better, value.detach(), best)
            for old, new in zip(kept, free, strict=True):
                old[better] = new.detach()[better]
            optimizer.zero_grad()
            (-value.sum()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return kept[0], kept[1]


def _near(log_joint: Tensor) -> tuple[Tensor, Tensor]:
    """The scores [n, T, K] of the rotation cells [n, K] of most mass, and these."""
    weight = log_joint.logsumexp(1)
    cells = weight.topk(min(_CELLS, weight.shape[1]), 1).indices
    return log_joint.gather(2, cells[:, None].expand(-1, log_joint.shape[1], -1)), cells


def at_moments(
    rotation: Law, shift: Law, log_joint: Tensor, level: Level
) -> list[tuple[Tensor, Tensor]]:
    """Numbers of the laws that have the posterior's moments near its modes.

    The heads of a mixture share the modes; a law of one has each of the heaviest for a start.
    """
    turns, moves = level.rotation.matrices(), level.shift.points()
    posterior = log_joint.flatten(1).softmax(1).view_as(log_joint).to(turns)
    left = posterior.sum(1)
    if isinstance(rotation, Heads):
        return [(_at_modes(rotation, left, turns), _around_mean(shift, posterior.sum(2), moves))]
    starts = []
    for _ in range(_MODES):
        numbers, near = _around_mode(rotation, left, turns)
        inside = (near & (left > _NOTHING)).to(posterior)
        by_shift = (posterior @ inside[..., None])[..., 0]
        starts.append((numbers, _around_mean(shift, by_shift, moves)))
        left = (left * ~near).clamp(min=_NOTHING)
    return starts


def _at_modes(law: Heads, left: Tensor, turns: Rotations) -> Tensor:
    """Numbers of the heads at the modes of weights [n, Q], heaviest first."""
    parts, shares = [], []
    for _ in range(law.heads):
        numbers, near = _around_mode(law.law, left, turns)
        parts.append(numbers)
        shares.append((left * near).sum(1))
        left = (left * ~near).clamp(min=_NOTHING)
    logits = torch.stack(shares, 1).clamp(min=1e-6).log()
    return torch.cat([logits, torch.stack(parts, 1).flatten(1)], 1)


def _around_mean(law: Law, weights: Tensor, moves: Tensor) -> Tensor:
    """Numbers of the law of a shift that has the moments of weights [n, T]."""
    share = weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    mean = share @ moves
    away = moves - mean[:, None]
    covariance = torch.einsum("nt,nti,ntj->nij", share, away, away)
    floor = 1e-4 * covariance.diagonal(dim1=-2, dim2=-1).mean(1) + 1e-6 * moves.var()
    covariance = covariance + floor[:, None, None] * torch.eye(2).to(covariance)
    return law.around(mean, covariance)


def _around_mode(law: Law, weights: Tensor, turns: Rotations) -> tuple[Tensor, Tensor]:
    """Numbers of the spread around the heaviest cell, and which cells are near it, [n, Q]."""
    mode = turns[weights.argmax(1)]
    vector = roma.rotmat_to_rotvec(turns @ mode[:, None].mT)
    near = vector.norm(dim=-1) < torch.deg2rad(torch.tensor(_APART_DEG))
    share = weights * near
    share = share / share.sum(1, keepdim=True)
    mean = (share[..., None] * vector).sum(1)
    away = vector - mean[:, None]
    covariance = torch.einsum("nq,nqi,nqj->nij", share, away, away)
    spacing = (8 * torch.pi**2 / len(turns)) ** (1 / 3) / 4
    covariance = covariance + spacing**2 * torch.eye(3).to(covariance)
    return law.around(roma.rotvec_to_rotmat(mean) @ mode, covariance), near
