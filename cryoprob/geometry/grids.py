"""Grids on SO(3): HEALPix directions times in-plane angles, equal Haar mass, nested refinement.

A rotation is ``Rz(psi) F(n)``, where the frame ``F(n)`` has the viewing direction n as its last
row. Its other two rows are those of RELION's (rot, tilt, 0) at the center of one of HEALPix's 12
base pixels, carried to n by the smallest rotation that takes the center to n. Within a base pixel
the frame is therefore smooth, also at the poles, where the Euler frame turns with rot: there its
cells would be rotated by up to 45 degrees against their parents.

A cell is a HEALPix pixel of directions times an interval of psi. Haar's measure is the area of n
times the length of psi whatever the frame, so that all cells weigh exactly the same.

Sources: Gorski et al. (2005), Astrophys. J. 622, 759 (HEALPix); Yershova et al. (2010), Int. J.
Robot. Res. 29, 801 (the product grid on SO(3)).
"""

from dataclasses import dataclass
from functools import lru_cache
from math import cos, radians

import healpix
import numpy as np
import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.conventions import (
    CHILDREN_PER_ROTATION,
    IN_PLANE_PER_ORDER0,
    PIXELS_PER_ORDER0,
)
from cryoprob.geometry.rotations import euler_to_matrix, viewing_direction
from cryoprob.types import Rotations

__all__ = ["MAX_ORDER", "RotationGrid"]

MAX_ORDER = 8
"""Finest grid: 60 / 2^8 = 0.23 degrees."""

_TABLE_ORDER = 5
"""Up to here the frames of all directions are tabulated (12288 at most); beyond, on demand."""


@dataclass(frozen=True)
class RotationGrid:
    """The ``72 * 8**order`` cell centers of an equal-mass partition of SO(3).

    Nothing but the frames of the directions (at most 12288) is ever tabulated: matrices are made
    for the indices asked for. The index of a rotation is ``direction * n_psi + psi``, directions
    in HEALPix's nested order, ``psi_j = (j + 1/2) * spacing_deg``.

    Attributes
    ----------
    order
        HEALPix order, 0 to 8; spacings 60, 30, 15, 7.5, 3.75, 1.9, ... degrees.

    Raises
    ------
    InputError
        If the order is out of range.
    """

    order: int

    def __post_init__(self) -> None:
        require(
            0 <= self.order <= MAX_ORDER,
            "order of the rotation grid",
            expected=f"an integer from 0 to {MAX_ORDER}",
            got=str(self.order),
        )

    def __len__(self) -> int:
        return self.n_directions * self.n_psi

    @property
    def n_directions(self) -> int:
        """Viewing directions, ``12 * 4**order``."""
        return PIXELS_PER_ORDER0 << 2 * self.order

    @property
    def n_psi(self) -> int:
        """In-plane angles, ``6 * 2**order``."""
        return IN_PLANE_PER_ORDER0 << self.order

    @property
    def spacing_deg(self) -> float:
        """Step of the in-plane angle, about the side of a HEALPix pixel, ``60 / 2**order``."""
        return 360 / self.n_psi

    @property
    def cell_mass(self) -> float:
        """Haar probability of a cell, the same for all."""
        return 1 / len(self)

    def directions(self) -> Tensor:
        """Viewing directions ``R^T e_z`` in the molecule, nested, [12 * 4^o, 3] (float64)."""
        return viewing_direction(self._frames(torch.arange(self.n_directions))).clone()

    def psi_deg(self) -> Tensor:
        """In-plane angles in degrees, [6 * 2^o] (float64)."""
        return (torch.arange(self.n_psi, dtype=torch.float64) + 0.5) * self.spacing_deg

    def matrices(
        self,
        index: Tensor | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Rotations:
        """Rotations [*, 3, 3] at the cell centers ``index`` [*] (all of them if omitted).

        All of order 5 take 85 MB in single precision, of order 6 already 680 MB.
        """
        if index is None:
            index = torch.arange(len(self))
        index = index.cpu()
        self._check(index)
        frames = self._frames(index // self.n_psi).to(dtype)
        psi = torch.deg2rad(self.psi_deg())
        c, s = (table.to(dtype)[index % self.n_psi, None] for table in (psi.cos(), psi.sin()))
        x, y, n = frames.unbind(-2)
        return torch.stack([c * x - s * y, s * x + c * y, n], -2).to(device)

    def children(self, index: Tensor) -> Tensor:
        """The 8 cells of ``RotationGrid(order + 1)`` that make up each cell, [*, 8]."""
        direction, psi = index // self.n_psi, index % self.n_psi
        part = torch.arange(CHILDREN_PER_ROTATION, device=index.device)
        fine = (4 * direction[..., None] + part // 2) * (2 * self.n_psi)
        return fine + 2 * psi[..., None] + part % 2

    def parent(self, index: Tensor) -> Tensor:
        """The cell of ``RotationGrid(order - 1)`` that holds each cell, [*].

        Raises
        ------
        InputError
            At order 0.
        """
        require(self.order > 0, "parent", expected="a grid of order 1 or more", got="order 0")
        direction, psi = index // self.n_psi, index % self.n_psi
        return (direction // 4) * (self.n_psi // 2) + psi // 2

    def cell(self, rotations: Rotations) -> Tensor:
        """Index of the cell in which each rotation [*, 3, 3] lies, [*] (long).

        Cells partition SO(3): ``cell(matrices(i)) = i``, and the parent of a rotation's cell is
        its cell in the coarser grid.
        """
        exact = rotations.detach().cpu().double()
        toward = viewing_direction(exact).flatten(0, -2).numpy()
        pixels = healpix.vec2pix(2**self.order, *toward.T, nest=True)
        direction = torch.as_tensor(pixels).reshape(exact.shape[:-2])
        frame = _transport(direction // 4**self.order, viewing_direction(exact))
        turn = exact @ frame.mT
        psi = torch.rad2deg(torch.atan2(turn[..., 1, 0], turn[..., 0, 0])) / self.spacing_deg
        inside = psi.floor().long() % self.n_psi
        return (direction * self.n_psi + inside).to(rotations.device)

    def cells_within(self, rotation: Rotations, radius_deg: float) -> Tensor:
        """Indices, ascending, of the centers within ``radius_deg`` of one ``rotation`` [3, 3].

        For local searches; empty if the radius is too small for the spacing. A view can differ by
        no more than the rotation, so only directions within the radius are looked at.
        """
        exact, limit = rotation.detach().cpu().double(), cos(radians(min(radius_deg, 180)))
        near = _nearby(self.order, viewing_direction(exact), radius_deg)
        turn = self._frames(near) @ exact.mT
        psi = torch.deg2rad(self.psi_deg())
        even, odd = turn[:, 0, 0] + turn[:, 1, 1], turn[:, 0, 1] - turn[:, 1, 0]
        trace = turn[:, 2, 2, None] + even[:, None] * psi.cos() + odd[:, None] * psi.sin()
        row, column = torch.nonzero((trace - 1) / 2 >= limit - 1e-12, as_tuple=True)
        return (near[row] * self.n_psi + column).to(rotation.device)

    def _check(self, index: Tensor) -> None:
        inside = not index.numel() or (int(index.min()) >= 0 and int(index.max()) < len(self))
        require(
            inside,
            f"index into the rotation grid of order {self.order}",
            expected=f"integers from 0 to {len(self) - 1}",
            got=f"{index.min()} to {index.max()}" if not inside else "",
        )

    def _frames(self, direction: Tensor) -> Tensor:
        """Frames [*, 3, 3] of nested direction indices [*], float64."""
        if self.order <= _TABLE_ORDER:
            return _table(self.order)[direction]
        return _frames(self.order, direction)


def _vectors(order: int, direction: Tensor) -> Tensor:
    xyz = healpix.pix2vec(2**order, direction.numpy(), nest=True)
    return torch.from_numpy(np.stack(xyz, -1))


def _frames(order: int, direction: Tensor) -> Tensor:
    return _transport(direction // 4**order, _vectors(order, direction))


def _transport(base: Tensor, target: Tensor) -> Tensor:
    """Frames of the base pixels' centers carried to ``target`` [*, 3] by the smallest rotation."""
    frame = _base_frames()[base]
    start = viewing_direction(frame)
    axis, share = torch.linalg.cross(start, target), 1 + (start * target).sum(-1, keepdim=True)
    return torch.stack([_turn(row, axis, share) for row in frame.unbind(-2)], -2)


def _turn(vector: Tensor, axis: Tensor, share: Tensor) -> Tensor:
    """Rodrigues: ``v + a x v + a x (a x v) / (1 + cos)`` for ``a`` of length sin."""
    once: Tensor = torch.linalg.cross(axis, vector)
    twice: Tensor = torch.linalg.cross(axis, once)
    return vector + once + twice / share


@lru_cache(maxsize=1)
def _base_frames() -> Tensor:
    x, y, z = _vectors(0, torch.arange(PIXELS_PER_ORDER0)).unbind(-1)
    rot, tilt = torch.rad2deg(torch.atan2(y, x)), torch.rad2deg(torch.acos(z))
    return euler_to_matrix(torch.stack([rot, tilt, torch.zeros_like(rot)], -1))


@lru_cache(maxsize=_TABLE_ORDER + 1)
def _table(order: int) -> Tensor:
    return _frames(order, torch.arange(PIXELS_PER_ORDER0 * 4**order))


def _nearby(order: int, toward: Tensor, radius_deg: float) -> Tensor:
    """Directions of the grid within ``radius_deg`` of ``toward`` [3], ascending.

    Above the tabulated orders they are found by descent, with a margin for the parent's size.
    """
    if order > _TABLE_ORDER:
        coarse = _nearby(order - 1, toward, radius_deg + 60 / 2 ** (order - 1))
        direction = (4 * coarse[:, None] + torch.arange(4)).flatten()
        vectors = _vectors(order, direction)
    else:
        vectors = viewing_direction(_table(order))
        direction = torch.arange(len(vectors))
    return direction[vectors @ toward >= cos(radians(min(radius_deg, 180))) - 1e-12]
