"""Rotations of three-space: RELION's Euler angles, quaternions, uniform draws, angles, means.

A rotation takes the molecule to the laboratory (:mod:`cryoprob.conventions`); quaternions are
roma's (x, y, z, w) of unit length.
"""

import roma
import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.types import Rotations

__all__ = [
    "about_z",
    "angle_between",
    "check_rotations",
    "euler_to_matrix",
    "matrix_to_euler",
    "matrix_to_quaternion",
    "mean_rotation",
    "quaternion_to_matrix",
    "random_rotations",
    "viewing_direction",
]


def check_rotations(
    rotations: Rotations, where: str = "rotation", tolerance: float = 1e-3
) -> None:
    """Raise InputError unless all matrices [*, 3, 3] are rotations within ``tolerance``."""
    shape = tuple(rotations.shape)
    matrices = "rotation matrices [..., 3, 3]"
    require(shape[-2:] == (3, 3), where, expected=matrices, got=f"shape {list(shape)}")
    defect = rotations @ rotations.mT - torch.eye(3).to(rotations)
    wrong = ~((defect.abs().amax((-2, -1)) <= tolerance) & (torch.linalg.det(rotations) > 0))
    require(
        not bool(wrong.any()),
        where,
        expected="orthogonal matrices of determinant +1",
        got=f"{int(wrong.sum())} that are not",
        remedy="A determinant of -1 means a mirror; a scale is no part of a rotation.",
    )


def about_z(angle_deg: Tensor) -> Rotations:
    """Turns by ``angle_deg`` [*] counter-clockwise about z, [*, 3, 3]."""
    angle = torch.deg2rad(angle_deg)
    c, s, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    entries = [c, -s, zero, s, c, zero, zero, zero, zero + 1]
    return torch.stack(entries, -1).reshape(*angle.shape, 3, 3)


def euler_to_matrix(angles_deg: Tensor) -> Rotations:
    """Rotations [*, 3, 3] of RELION's (rot, tilt, psi) [*, 3] in degrees.

    ``R = Rz(-psi) Ry(-tilt) Rz(-rot)``, the transpose of scipy's intrinsic ``ZYZ``.

    Raises
    ------
    InputError
        If the last axis does not hold three angles.
    """
    got = f"shape {list(angles_deg.shape)}"
    require(angles_deg.shape[-1:] == (3,), "Euler angles", expected="[..., 3]", got=got)
    angles = torch.deg2rad(angles_deg if angles_deg.is_floating_point() else angles_deg.float())
    (cr, ct, cp), (sr, st, sp) = angles.cos().unbind(-1), angles.sin().unbind(-1)
    rows = [
        [cp * ct * cr - sp * sr, cp * ct * sr + sp * cr, -cp * st],
        [-sp * ct * cr - cp * sr, -sp * ct * sr + cp * cr, sp * st],
        [st * cr, st * sr, ct],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def matrix_to_euler(rotations: Rotations) -> Tensor:
    """RELION's (rot, tilt, psi) [*, 3] in degrees, tilt in [0, 180], the others in [-180, 180].

    Where tilt is 0 or 180 only a combination of rot and psi is defined: rot is 0 there. psi is
    read after undoing rot, so that the three together reproduce the matrix even at the poles.
    """
    a = rotations.mT
    sine = torch.hypot(a[..., 0, 2], a[..., 1, 2])
    pole = sine <= 8 * torch.finfo(a.dtype).eps
    rot = torch.where(pole, 0, torch.atan2(a[..., 1, 2], a[..., 0, 2]))
    c, s = rot.cos(), rot.sin()
    psi = torch.atan2(c * a[..., 1, 0] - s * a[..., 0, 0], c * a[..., 1, 1] - s * a[..., 0, 1])
    tilt = torch.atan2(sine, a[..., 2, 2])
    return torch.rad2deg(torch.stack([rot, tilt, psi], -1))


def viewing_direction(rotations: Rotations) -> Tensor:
    """The projection direction seen from the molecule, ``R^T e_z``, [*, 3]."""
    return rotations[..., 2, :]


def quaternion_to_matrix(quaternions: Tensor) -> Rotations:
    """Rotations [*, 3, 3] of quaternions [*, 4] (x, y, z, w) of any positive length."""
    rotations: Tensor = roma.unitquat_to_rotmat(roma.quat_normalize(quaternions))
    return rotations


def matrix_to_quaternion(rotations: Rotations) -> Tensor:
    """Unit quaternions [*, 4] (x, y, z, w) of rotations, with w >= 0."""
    quaternions = roma.rotmat_to_unitquat(rotations)
    return torch.where(quaternions[..., 3:] < 0, -quaternions, quaternions)


def random_rotations(
    n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Rotations:
    """``n`` independent rotations of the Haar measure, [n, 3, 3], on the generator's device.

    Normalized normal quaternions are uniform on the sphere S^3 (Shoemake, 1992).
    """
    device = generator.device
    normal = torch.randn(n, 4, generator=generator, dtype=torch.float64, device=device)
    return quaternion_to_matrix(normal).to(dtype)


def angle_between(first: Rotations, second: Rotations) -> Tensor:
    """Angle of ``first^T second`` in degrees, [*] in [0, 180]; accurate at 0 and at 180 alike."""
    turn = first.mT @ second
    cosine = turn.diagonal(dim1=-2, dim2=-1).sum(-1) - 1
    skew = (turn - turn.mT)[..., [2, 0, 1], [1, 2, 0]]
    return torch.rad2deg(torch.atan2(torch.linalg.vector_norm(skew, dim=-1), cosine))


def mean_rotation(rotations: Rotations, weights: Tensor | None = None) -> Rotations:
    """The rotation [*, 3, 3] that minimizes ``sum_i w_i |R - R_i|^2`` over [*, n, 3, 3].

    The projection of the weighted sum on SO(3) (Moakher, 2002, sec. 3).

    Parameters
    ----------
    weights
        [*, n], not negative; equal if omitted.

    Raises
    ------
    InputError
        If there are no rotations, or a weight is negative or all are zero.
    """
    if weights is None:
        weights = rotations.new_ones(rotations.shape[:-2])
    require(rotations.shape[-3] > 0, "rotations", expected="at least one", got="none")
    usable = bool((weights >= 0).all()) and bool((weights.sum(-1) > 0).all())
    remedy = "Pass a weight >= 0 for each rotation, not all zero."
    require(usable, "weights", expected="weights >= 0", got="negative or all 0", remedy=remedy)
    mean: Tensor = roma.special_procrustes((rotations * weights[..., None, None]).sum(-3))
    return mean
