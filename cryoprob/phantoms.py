"""Made-up molecules: maps with a known truth for simulations, tests and benchmarks.

All are non-negative and differ from their mirror image: a map that equals it would be found
without its hand, and would flatter a method. :func:`mirror_correlation` says by how much: at most
0.85 for the drawn ones, 0.84 and 0.74 for adenylate kinase closed and open, residue by residue.
One generator gives one molecule in every box; in small ones it is drawn no narrower than voxels
allow (:func:`~cryoprob.gaussians.narrowest`).
"""

from collections.abc import Callable, Iterator
from math import pi

import torch
from torch import Tensor

from cryoprob.checks import InputError, require
from cryoprob.gaussians import gaussian_density, narrowest
from cryoprob.geometry.rotations import quaternion_to_matrix, random_rotations
from cryoprob.io.structures import adk, residue_density
from cryoprob.types import Maps, Rotations

__all__ = ["PHANTOMS", "RADIUS", "bead_walk", "blobs", "mirror_correlation"]

RADIUS = 0.35
"""Radius of the ball that holds a made-up molecule, in box sides."""

_CHIRAL = 0.85
"""Molecules with a larger :func:`mirror_correlation` are drawn again."""
_TRIES = 300
_STEP = 2.5
_DIRECTIONS = 64
_STARTS, _KEPT, _TURNS = 2000, 16, 60

_Beads = tuple[Tensor, Tensor, Tensor]
"""Positions [n, 3] (A), heights [n] and variances [n] (A^2) of Gaussians."""


def bead_walk(
    n_beads: int,
    box: int,
    pixel_size: float,
    generator: torch.Generator,
    *,
    sd: float | None = None,
) -> Maps:
    """A self-avoiding walk of Gaussian beads, [D, D, D] float32, center of mass on the origin.

    Steps are 2.5 ``sd`` long, beads keep at least that distance and reach (to two ``sd``) no
    further than 0.35 box sides; their heights vary from 0.5 to 1.5. Walks with a
    :func:`mirror_correlation` above 0.85 are drawn again.

    Parameters
    ----------
    n_beads
        At least 4; 30 of the default width fill a third of the ball (out to two ``sd``).
    box, pixel_size
        Voxels along a side; A per voxel.
    generator
        The only source of randomness.
    sd
        Width of a bead, A; 0.04 box sides if left out.

    Raises
    ------
    InputError
        If so many beads do not fit.
    """
    _check_count(n_beads)
    side = box * pixel_size
    width = 0.04 * side if sd is None else sd
    return _draw(
        lambda: _walk(n_beads, width, RADIUS * side, generator), box, pixel_size, generator
    )


def blobs(box: int, pixel_size: float, generator: torch.Generator, *, n_blobs: int = 10) -> Maps:
    """A compact body of overlapping Gaussians of unequal width, [D, D, D] float32, centered.

    Each blob (sd of 0.03 to 0.07 box sides) touches an earlier one. Kept within 0.35 box sides,
    and chiral, as in :func:`bead_walk`.

    Raises
    ------
    InputError
        If so many blobs do not fit.
    """
    _check_count(n_blobs)
    side = box * pixel_size
    return _draw(lambda: _cluster(n_blobs, side, generator), box, pixel_size, generator)


def _adk_closed(box: int, pixel_size: float, generator: torch.Generator) -> Maps:
    """Adenylate kinase, closed, residue by residue (a sphere of 60 A holds it)."""
    return residue_density(adk("closed"), box, pixel_size, 2.5, center=False)


def _adk_open(box: int, pixel_size: float, generator: torch.Generator) -> Maps:
    """Adenylate kinase, open, in the frame of the closed one (a sphere of 80 A holds it)."""
    return residue_density(adk("open"), box, pixel_size, 2.5, center=False)


def _thirty_beads(box: int, pixel_size: float, generator: torch.Generator) -> Maps:
    """A self-avoiding walk of thirty beads."""
    return bead_walk(30, box, pixel_size, generator)


PHANTOMS: dict[str, Callable[[int, float, torch.Generator], Maps]] = {
    "bead-walk": _thirty_beads,
    "blobs": blobs,
    "adk-closed": _adk_closed,
    "adk-open": _adk_open,
}
"""Name -> function of (box, pixel_size, generator) that makes the map; only the first two draw."""


def mirror_correlation(
    positions: Tensor,
    weights: Tensor,
    variances: Tensor,
    side: float,
    generator: torch.Generator,
) -> float:
    """Correlation of a sum of Gaussians with its best-aligned mirror image; 1 if it has no hand.

    Overlaps of Gaussians are Gaussians of their distances, so no map is needed: the mirror image
    is turned about the center of mass by 2000 random rotations, and the best 16 are refined by
    random turns of 15 degrees and less. The mean over the box is taken off, as in a
    correlation of maps.

    Parameters
    ----------
    positions
        Centers, [n, 3], A.
    weights, variances
        Integral of each, [n]; variance along an axis, [n], A^2.
    side
        Side of the box, A.
    generator
        For the rotations.
    """
    centered = positions - (weights @ positions) / weights.sum()
    beads = (centered, weights, variances)
    flat = weights.sum() ** 2 / side**3
    rotations = random_rotations(_STARTS, generator, positions.dtype)
    values = _mirror_overlap(beads, rotations)
    best = values.max()
    for angle in (0.15, 0.08, 0.04):  # radians per axis: 15, 8 and 4 degrees in all
        top = rotations[values.topk(_KEPT).indices]
        rotations = (_small_turns(angle, generator, top)[:, None] @ top).flatten(0, 1)
        values = _mirror_overlap(beads, rotations)
        best = torch.maximum(best, values.max())
    itself = _overlap(centered[None], beads)[0]
    return float((best - flat) / (itself - flat))


def _check_count(n: int) -> None:
    remedy = "Fewer lie in a plane, and equal their mirror image."
    require(n >= 4, "phantom", expected="at least 4 beads", got=str(n), remedy=remedy)


def _small_turns(angle: float, generator: torch.Generator, like: Tensor) -> Rotations:
    """Random rotations of about ``angle`` radians about each axis, [n, 3, 3]."""
    half = torch.randn(_TURNS, 3, generator=generator, device=generator.device) * angle / 2
    return quaternion_to_matrix(torch.cat([half, torch.ones_like(half[:, :1])], 1).to(like))


def _mirror_overlap(beads: _Beads, rotations: Rotations) -> Tensor:
    mirrored = beads[0] * beads[0].new_tensor([1, 1, -1])
    parts: Iterator[Tensor] = iter(torch.split(rotations, 100))  # type: ignore[no-untyped-call]
    return torch.cat([_overlap(mirrored @ part.mT, beads) for part in parts])


def _overlap(moved: Tensor, beads: _Beads) -> Tensor:
    """Integral of the product of the Gaussians, moved to [q, n, 3], with those in place, [q]."""
    positions, weights, variances = beads
    spread = variances[:, None] + variances
    near = torch.exp(-torch.cdist(moved, positions).square() / (2 * spread))
    return (weights[:, None] * weights * near * (2 * pi * spread) ** -1.5).sum((-2, -1))


def _draw(
    propose: Callable[[], _Beads | None],
    box: int,
    pixel_size: float,
    generator: torch.Generator,
) -> Maps:
    """The map of the first proposal that fits the ball and has a hand."""
    side = box * pixel_size
    for _ in range(_TRIES):
        beads = propose()
        if beads is None or not _fits(beads, RADIUS * side):
            continue
        positions, heights, variances = beads
        weights = heights * (2 * pi * variances) ** 1.5
        if mirror_correlation(positions, weights, variances, side, generator) <= _CHIRAL:
            center = (weights @ positions) / weights.sum()
            drawn = variances.clamp(min=narrowest(pixel_size) ** 2)
            return gaussian_density(
                positions - center, weights[:, None], drawn[:, None], box, pixel_size
            )
    raise InputError(
        "phantom",
        expected="beads that fit a ball of 0.35 box sides and differ from their mirror image",
        got=f"none in {_TRIES} tries",
        remedy="Use 12 to 40 beads, or narrower ones in a larger box.",
    )


def _fits(beads: _Beads, radius: float) -> bool:
    """Whether all beads lie within the ball about the center of mass, out to two sd."""
    positions, heights, variances = beads
    weights = heights * variances**1.5
    away = (positions - (weights @ positions) / weights.sum()).norm(dim=1)
    return bool((away + 2 * variances.sqrt() <= radius).all())


def _walk(n: int, sd: float, radius: float, generator: torch.Generator) -> _Beads | None:
    """A self-avoiding walk within the ball, or None where it got stuck."""
    path = _normal(1, generator) * 0
    for _ in range(n - 1):
        steps = torch.nn.functional.normalize(_normal(_DIRECTIONS, generator), dim=1)
        there = path[-1] + _STEP * sd * steps
        free = (torch.cdist(there, path[:-1]) > _STEP * sd).all(1)
        free &= there.norm(dim=1) <= radius - 2 * sd
        if not free.any():
            return None
        path = torch.cat([path, there[free][:1]])
    return path, _uniform(n, generator) + 0.5, path.new_full((n,), sd**2)


def _cluster(n: int, side: float, generator: torch.Generator) -> _Beads:
    """Gaussians, each touching (at 1.5 times the sum of both sd) one of the three before it."""
    sd = side * (0.03 + 0.04 * _uniform(n, generator))
    steps = torch.nn.functional.normalize(_normal(n, generator), dim=1)
    places = [steps[0] * 0]
    for i in range(1, n):
        back = int(torch.randint(max(0, i - 3), i, (), generator=generator, device=sd.device))
        places.append(places[back] + 1.5 * (sd[i] + sd[back]) * steps[i])
    return torch.stack(places), _uniform(n, generator) + 0.5, sd**2


def _normal(n: int, generator: torch.Generator) -> Tensor:
    options = {"dtype": torch.float64, "device": generator.device}
    return torch.randn(n, 3, generator=generator, **options)  # type: ignore[call-overload,no-any-return]


def _uniform(n: int, generator: torch.Generator) -> Tensor:
    options = {"dtype": torch.float64, "device": generator.device}
    return torch.rand(n, generator=generator, **options)  # type: ignore[call-overload,no-any-return]
