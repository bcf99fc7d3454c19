"""The best q of a family for each image: what the family could do, were it not learned."""

import roma
import torch
from torch import Tensor

from cryoprob.inference.cells import CellMasses, law_masses
from cryoprob.inference.laws.base import Law
from cryoprob.inference.laws.heads import Heads
from cryoprob.inference.levels import Level
from cryoprob.types import Rotations

__all__ = ["best_bound"]

_STEPS = 60
_RATE = 0.05
_APART_DEG = 40.0
_CELLS = 512


def best_bound(
    rotation: Law,
    shift: Law,
    own: tuple[Tensor, Tensor],
    log_joint: Tensor,
    level: Level,
) -> Tensor:
    """Largest ELBO over noise [n] that the laws reach against ``log_joint`` [n, T, Q].

    By Adam from the laws' ``own`` numbers (rotation, shift) and from the posterior's moments
    around its modes, the better of both for each image. Steps look at the cells of most posterior
    mass only; what they end at is scored on the whole grid.
    """
    if not rotation.has_density and not shift.has_density:
        return _best_cells(log_joint, rotation.heads)
    grid = level.rotation.matrices(), level.shift.points()
    starts = [own, _moments(rotation, shift, log_joint, *grid)]
    found = []
    for start in starts:
        numbers = _climb(rotation, shift, start, log_joint, *grid)
        found.append(_bound(rotation, shift, numbers, log_joint, *grid))
    return torch.stack(found).amax(0)


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
    weight = log_joint.logsumexp(1)
    cells = weight.topk(min(_CELLS, weight.shape[1]), 1).indices
    near = log_joint.gather(2, cells[:, None].expand(-1, log_joint.shape[1], -1))
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


def _moments(
    rotation: Law, shift: Law, log_joint: Tensor, turns: Rotations, moves: Tensor
) -> tuple[Tensor, Tensor]:
    """Numbers of the laws that have the posterior's moments near its modes."""
    posterior = log_joint.flatten(1).softmax(1).view_as(log_joint).to(turns)
    by_shift, by_rotation = posterior.sum(2), posterior.sum(1)
    mean = by_shift @ moves
    away = moves - mean[:, None]
    covariance = torch.einsum("nt,nti,ntj->nij", by_shift, away, away)
    floor = 1e-4 * covariance.diagonal(dim1=-2, dim2=-1).mean(1) + 1e-6 * moves.var()
    covariance = covariance + floor[:, None, None] * torch.eye(2).to(covariance)
    return _modes(rotation, by_rotation, turns), shift.around(mean, covariance)


def _modes(law: Law, weights: Tensor, turns: Rotations) -> Tensor:
    """Numbers of a law (or its heads) at the modes of weights [n, Q], heaviest first."""
    if not isinstance(law, Heads):
        return _around_mode(law, weights, turns)[0]
    left, parts, shares = weights, [], []
    for _ in range(law.heads):
        numbers, near = _around_mode(law.law, left, turns)
        parts.append(numbers)
        shares.append((left * near).sum(1))
        left = (left * ~near).clamp(min=1e-12)
    logits = torch.stack(shares, 1).clamp(min=1e-6).log()
    return torch.cat([logits, torch.stack(parts, 1).flatten(1)], 1)


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
