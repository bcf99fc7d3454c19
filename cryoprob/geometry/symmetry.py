"""Point groups of molecules: their rotations, one rotation of each orbit, symmetric maps.

The axes are RELION's. A map of symmetry G obeys ``V(g x) = V(x)``, hence its slices at R and at
``R g`` are the same for every g of G, and an exact search needs one of the two.
"""

import re
from functools import lru_cache

import torch
from torch import Tensor

from cryoprob.checks import InputError
from cryoprob.geometry.rotations import euler_to_matrix
from cryoprob.types import Maps, Rotations

__all__ = ["asymmetric", "point_group", "symmetrize_map"]

_GOLDEN = (1 + 5**0.5) / 2

_AXES: dict[str, tuple[tuple[int, tuple[float, float, float]], ...]] = {
    "T": ((3, (0, 0, 1)), (2, (0, 2**0.5, 1))),
    "O": ((4, (0, 0, 1)), (3, (1, 1, 1))),
    "I": ((2, (0, 0, 1)), (5, (1, 0, _GOLDEN)), (3, (1, 1, 1))),
    "I1": ((2, (0, 0, 1)), (5, (_GOLDEN, 0, -1)), (3, (1, 1, 1))),
    "I3": ((2, (-1, 0, _GOLDEN)), (5, (0, 0, 1))),
    "I4": ((2, (1, 0, _GOLDEN)), (5, (0, 0, 1))),
}
"""Order and direction of generating axes."""

_BLOCK = 1 << 22
"""Members of orbits compared at a time, of some 80 bytes each."""

_TIE = 1e-5
"""Traces closer than this are ties; rounding in single precision is some 1e-6."""


def point_group(name: str) -> Rotations:
    """The rotations of a point group, the identity first, [n, 3, 3] (float64).

    Parameters
    ----------
    name
        ``Cn`` (axis z), ``Dn`` (and a two-fold axis x), ``T`` (three-fold axis z, a two-fold axis
        at (0, 1.414, 1)), ``O`` (four-fold axes x, y, z), ``I`` or ``I2`` (two-fold axes x, y, z,
        a five-fold axis at (1, 0, 1.618)), ``I1`` (I2 turned by 90 degrees about z), ``I3`` and
        ``I4`` (five-fold axis z, a two-fold axis at (-1, 0, 1.618) or (1, 0, 1.618)).

    Raises
    ------
    InputError
        If there is no such group of rotations.
    """
    return _point_group(name.strip().upper()).clone()


def asymmetric(rotations: Rotations, group: Rotations) -> Tensor:
    """Whether each rotation [*, 3, 3] is the one of its orbit that is kept, [*] (bool).

    The Dirichlet cell of the identity: R is kept if no ``R g`` is closer to the identity, which
    is ``trace(R g) <= trace(R)``. Equals are told apart by the distance to a second, oblique
    rotation, so that exactly one member of each orbit is kept.

    Parameters
    ----------
    group
        [n, 3, 3], from :func:`point_group`.
    """
    flat = rotations.reshape(-1, 3, 3)
    blocks = torch.split(flat.double(), max(1, _BLOCK // len(group)))
    kept = [_kept(block, group.to(block)) for block in blocks]
    return torch.cat(kept).reshape(rotations.shape[:-2])


def symmetrize_map(volume: Maps, group: Rotations) -> Maps:
    """The mean over g of ``V(g x)`` about voxel D // 2, [D, D, D]; zero is seen outside the box.

    Linear interpolation in real space: for masks, starting maps and tests.
    """
    box = volume.shape[-1]
    axis = torch.arange(-(box // 2), box // 2, dtype=volume.dtype, device=volume.device)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], -1)
    total = torch.zeros_like(volume)
    for rotation in group.to(volume):
        total += _sample(volume, points @ rotation.mT)
    return total / len(group)


def _sample(volume: Maps, points: Tensor) -> Maps:
    """The map at ``points`` [D, D, D, 3] (x, y, z), in voxels from the origin."""
    box = volume.shape[-1]
    place = (points + box // 2) * (2 / (box - 1)) - 1
    sampled = torch.nn.functional.grid_sample(
        volume[None, None], place[None], align_corners=True, padding_mode="zeros"
    )
    return sampled[0, 0]


def _kept(rotations: Rotations, group: Rotations) -> Tensor:
    first = _traces(rotations, group)
    second = _traces(_oblique().to(rotations) @ rotations, group)
    own = _identity(group)
    lead, tie = first - first[:, own, None], second - second[:, own, None]
    better = (lead > _TIE) | ((lead.abs() <= _TIE) & (tie > 0))
    return ~better.any(-1)


def _traces(rotations: Rotations, group: Rotations) -> Tensor:
    """``trace(R g)``, [n, m]."""
    return rotations.flatten(1) @ group.mT.flatten(1).mT


def _identity(group: Rotations) -> int:
    return int(group.diagonal(dim1=-2, dim2=-1).sum(-1).argmax())


def _oblique() -> Rotations:
    """A rotation that no symmetry of a group or of a grid favors."""
    return euler_to_matrix(torch.tensor([47.1, 61.3, 113.7], dtype=torch.float64))


@lru_cache(maxsize=64)
def _point_group(name: str) -> Rotations:
    return _closure(torch.stack([_turn(order, axis) for order, axis in _generators(name)]))


def _generators(name: str) -> tuple[tuple[int, tuple[float, float, float]], ...]:
    cyclic = re.fullmatch(r"([CD])([1-9]\d{0,2})", name)
    if cyclic:
        about_z = (int(cyclic[2]), (0.0, 0.0, 1.0))
        return (about_z,) if cyclic[1] == "C" else (about_z, (2, (1.0, 0.0, 0.0)))
    axes = _AXES.get("I" if name == "I2" else name)
    if axes is None:
        raise InputError(
            "symmetry",
            expected="Cn, Dn (n from 1 to 999), T, O, I, I1, I2, I3 or I4",
            got=repr(name),
            remedy="Groups with mirrors (Cs, Th, Oh, ...) do not occur in chiral molecules.",
        )
    return axes


def _turn(order: int, axis: tuple[float, float, float]) -> Rotations:
    """The turn by 360 / order degrees about ``axis``."""
    vector = torch.tensor(axis, dtype=torch.float64)
    x, y, z = (vector / vector.norm()).tolist()
    generator = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    turn: Tensor = torch.linalg.matrix_exp(generator * (2 * torch.pi / order))
    return turn


def _closure(generators: Rotations) -> Rotations:
    """All products of the generators, each once, the identity first."""
    found = torch.eye(3, dtype=torch.float64)[None]
    fresh = found
    while len(fresh):
        products = (fresh[:, None] @ generators).flatten(0, 1)
        fresh = found[:0]
        for product in products:
            known = torch.cat([found, fresh])
            if float((known - product).abs().amax((1, 2)).min()) > 1e-6:
                fresh = torch.cat([fresh, product[None]])
        found = torch.cat([found, fresh])
    return found
