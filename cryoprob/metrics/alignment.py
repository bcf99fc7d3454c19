"""Alignment of maps over rotations, shifts and hands.

A search over all rotations of a grid at low resolution, both hands and a lattice of shifts at once
by matrix products; then the best candidates, far apart from one another, are refined by Fisher
scoring in growing bands. The hand is decided by all shells that the two maps share.
"""

from dataclasses import dataclass
from math import cos, radians

import roma
import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.geometry.grids import RotationGrid
from cryoprob.geometry.symmetry import asymmetric, point_group
from cryoprob.metrics.matching import BandMatch
from cryoprob.metrics.motion import Motion, check_map
from cryoprob.types import Maps, Rotations

__all__ = ["Alignment", "align_maps"]

_SEARCH_RADIUS = 6
"""Shells of the global search: at 15 degrees of spacing finer detail does not overlap."""

_SEARCH_ORDER = 2
_FINEST_RADIUS = 24
_STEPS = 10
_CHUNK = 256


@dataclass(frozen=True, eq=False)
class Alignment(Motion):
    """The motion (:class:`cryoprob.metrics.motion.Motion`) that lays one map on another.

    Attributes
    ----------
    score
        What the aligned maps tell of each other in the band, nats; higher is better.
    other_hand
        The best score of the hand that was not chosen, None if only one was tried. A difference
        of a few nats leaves the hand undecided.
    aligned
        The moved map [D, D, D]; None if poses, not maps, were aligned.
    """

    score: float
    other_hand: float | None = None
    aligned: Maps | None = None


@dataclass(frozen=True, eq=False)
class _Candidates:
    """Motions under refinement: [B, 3, 3], shifts [B, 3] in boxes, hands and scores [B]."""

    rotation: Tensor
    shift: Tensor
    mirrored: Tensor
    score: Tensor

    def __getitem__(self, index: Tensor) -> "_Candidates":
        parts = (self.rotation, self.shift, self.mirrored, self.score)
        return _Candidates(*(v[index] for v in parts))

    def best_of_hands(self, count: int) -> "_Candidates":
        """The ``count`` best of each hand, best first."""
        order = self.score.argsort(descending=True)
        hands = (order[self.mirrored[order] == hand][:count] for hand in (False, True))
        chosen = torch.cat(list(hands))
        return self[chosen[self.score[chosen].argsort(descending=True)]]


def align_maps(
    moving: Maps,
    reference: Maps,
    *,
    pixel_size: float,
    hands: bool = True,
    group: str | Rotations | None = None,
    radius: int | None = None,
    max_shift_A: float | None = None,
    candidates: int = 8,
) -> Alignment:
    """The rotation A, shift s and hand for which ``moving`` looks most like ``reference``.

    ``aligned(r) = moving(A^T (r - s))``, or ``moving(-A^T (r - s))`` if mirrored, with columns
    (x, y, z). Maps with noise far from the molecule align better when masked before.

    Parameters
    ----------
    moving, reference
        [D, D, D], of one box and pixel size.
    pixel_size
        Angstrom.
    hands
        Whether the inverted map is tried, too.
    group
        Point group of the reference about the origin (a name or rotations [n, 3, 3]): of the
        equivalent alignments the smallest rotation is given.
    radius
        Largest shell compared; by default 24 or the shell below Nyquist.
    max_shift_A
        Longest shift searched for; by default a quarter of the box.
    candidates
        Rotations per hand that are refined.

    Raises
    ------
    InputError
        If the maps are not two finite maps [D, D, D] of one size that vary, or the radius does not
        lie between 1 and ``D // 2 - 1``.
    """
    box = _check_pair(moving, reference)
    finest = _finest(box, radius)
    elements = _elements(group)
    reach = 0.25 if max_shift_A is None else max_shift_A / (pixel_size * box)
    found = _search(moving, reference, min(_SEARCH_RADIUS, finest), elements, reach, candidates)
    found = found if hands else found[~found.mirrored]
    for limit, kept in ((8, candidates), (14, 2), (finest, 1)):
        match = BandMatch.of(moving, reference, min(limit, finest))
        found = _refine(match, found).best_of_hands(kept)
    motion = _smallest(found, elements, pixel_size * box)
    other = float(found.score[1]) if len(found.score) > 1 else None
    aligned = motion.move_map(moving, pixel_size)
    parts = motion.rotation, motion.shift_A, motion.mirrored
    return Alignment(*parts, float(found.score[0]), other, aligned)


def _check_pair(moving: Maps, reference: Maps) -> int:
    for volume, where in ((moving, "moving map"), (reference, "reference map")):
        check_map(volume, where)
        varies = bool(volume.min() < volume.max())
        require(varies, where, expected="a molecule", got="a constant map")
    same = moving.shape == reference.shape
    expected = f"the reference's shape {list(reference.shape)}"
    remedy = "Resample one map to the other's box and pixel size."
    got = f"{list(moving.shape)}"
    require(same, "moving map", expected=expected, got=got, remedy=remedy)
    return int(moving.shape[-1])


def _finest(box: int, radius: int | None) -> int:
    finest = min(_FINEST_RADIUS, box // 2 - 1) if radius is None else radius
    inside = 1 <= finest < box // 2
    require(inside, "radius", expected=f"a shell from 1 to {box // 2 - 1}", got=str(finest))
    return finest


def _elements(group: str | Rotations | None) -> Rotations:
    if group is None:
        return torch.eye(3, dtype=torch.float64)[None]
    return point_group(group) if isinstance(group, str) else group.double()


def _search(
    moving: Maps, reference: Maps, radius: int, group: Rotations, reach: float, count: int
) -> _Candidates:
    """The best rotations of a whole grid, ``count`` for each hand, at least a cell apart."""
    match = BandMatch.of(moving, reference, radius)
    grid = RotationGrid(_SEARCH_ORDER)
    rotations = grid.matrices(device=moving.device)
    rotations = rotations[asymmetric(rotations, group)]
    shifts = _lattice(radius, reach).to(moving.device)
    score, place = _scan(match, rotations, shifts)
    chosen = [_apart(row, rotations, count, 1.3 * grid.spacing_deg) for row in score]
    hand = torch.cat([torch.full_like(c, h) for h, c in enumerate(chosen)])
    both = torch.cat(chosen)
    shift = shifts[place[hand, both]].double()
    return _Candidates(rotations[both].double(), shift, hand == 1, score[hand, both].double())


def _lattice(radius: int, reach: float) -> Tensor:
    """Shifts [L, 3] in boxes up to ``reach``, four to the shortest wave."""
    step = 1 / (4 * radius)
    axis = torch.arange(-int(reach / step), int(reach / step) + 1) * step
    points = torch.cartesian_prod(axis, axis, axis)
    return points[torch.linalg.vector_norm(points, dim=1) <= reach + 1e-6]


def _scan(match: BandMatch, rotations: Rotations, shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Best correlation over the shifts and its place, for both hands, [2, Q] each.

    Every shell has the same weight. ``Re conj(S) T`` and, for the inverted map, ``Re S T`` share
    their two products.
    """
    weight = 1 / (match.radius * match.count[match.shell])
    target = (match.target * weight)[:, None] * match.shift_phase(shifts).conj().mT
    real, imaginary = target.real.contiguous(), target.imag.contiguous()
    values, places = [], []
    for block in torch.split(rotations, _CHUNK):
        moved = match.sample(block)[:, 0]
        even, odd = moved.real @ real, moved.imag @ imaginary
        value, place = torch.stack([even + odd, even - odd]).max(-1)
        values.append(value)
        places.append(place)
    return torch.cat(values, 1), torch.cat(places, 1)


def _apart(score: Tensor, rotations: Rotations, count: int, angle_deg: float) -> Tensor:
    """Indices of the ``count`` best of ``score`` [Q] that are ``angle_deg`` from one another."""
    left = score.clone()
    chosen: list[int] = []
    least = 1 + 2 * cos(radians(angle_deg))
    while len(chosen) < count and float(left.max()) > -torch.inf:
        best = int(left.argmax())
        chosen.append(best)
        near = rotations.flatten(1) @ rotations[best].flatten() > least
        left[near] = -torch.inf
    return torch.tensor(chosen, device=score.device)


def _refine(match: BandMatch, start: _Candidates) -> _Candidates:
    """Fisher scoring from each candidate; the last of the best points on its way is kept."""
    here = best = _Candidates(
        start.rotation, start.shift, start.mirrored, torch.full_like(start.score, -torch.inf)
    )
    for _ in range(_STEPS):
        step, score = match.step(here.rotation, here.shift, here.mirrored)
        here = _Candidates(here.rotation, here.shift, here.mirrored, score.double())
        best = _better(best, here)
        here = _moved(here, step.double(), match.radius)
    score = match.scored(here.rotation, here.shift, here.mirrored).double()
    return _better(best, _Candidates(here.rotation, here.shift, here.mirrored, score))


def _moved(here: _Candidates, step: Tensor, radius: int) -> _Candidates:
    """Take a step, no longer than an eighth of the band's shortest wave at the rim of the box."""
    longest = 1 / (8 * radius)
    turn, shift = step[:, :3], step[:, 3:]
    turn = turn * (2 * longest / turn.norm(dim=1, keepdim=True)).clamp(max=1)
    shift = shift * (longest / shift.norm(dim=1, keepdim=True)).clamp(max=1)
    rotation = roma.rotvec_to_rotmat(turn) @ here.rotation
    return _Candidates(rotation, here.shift + shift, here.mirrored, here.score)


def _better(first: _Candidates, second: _Candidates) -> _Candidates:
    """The later of two points unless its score is worse by more than interpolation explains."""
    wins = second.score > first.score - 1e-3 * first.score.abs().nan_to_num(posinf=0)
    rotation = torch.where(wins[:, None, None], second.rotation, first.rotation)
    shift = torch.where(wins[:, None], second.shift, first.shift)
    return _Candidates(
        rotation, shift, first.mirrored, torch.where(wins, second.score, first.score)
    )


def _smallest(found: _Candidates, group: Rotations, width_A: float) -> Motion:
    """The best candidate, turned by the group's element that leaves the smallest rotation."""
    turned = group @ found.rotation[0].cpu()
    best = turned.diagonal(dim1=-2, dim2=-1).sum(-1).argmax()
    shift = group[best] @ found.shift[0].cpu() * width_A
    return Motion(turned[best], shift, bool(found.mirrored[0]))
