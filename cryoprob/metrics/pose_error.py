"""How far estimated poses are from the truth, once the map's own freedom is taken out.

A reconstruction from unknown poses is free to be turned, displaced and mirrored. That motion comes
from the maps (:func:`cryoprob.metrics.alignment.align_maps`) or, without maps, from the poses
themselves (:func:`align_poses`); :meth:`cryoprob.metrics.motion.Motion.move_poses` applies it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.geometry.rotations import angle_between, check_rotations, mean_rotation
from cryoprob.metrics.alignment import Alignment
from cryoprob.metrics.motion import Motion
from cryoprob.types import Rotations, Shifts

__all__ = ["PoseError", "align_poses", "pose_error"]

_SEEDS = 200
_SAMPLE = 2000
_PASSES = 20


@dataclass(frozen=True, eq=False)
class PoseError:
    """Errors of the poses of n images.

    Attributes
    ----------
    rotation_deg
        Angle between estimated and true rotation, the nearest of the group's, [n] in [0, 180].
    shift_A
        Distance between the shifts in Angstrom, [n]; None if shifts were not given.
    """

    rotation_deg: Tensor
    shift_A: Tensor | None

    @property
    def median_rotation_deg(self) -> float:
        """Median angle in degrees (the mean of the two middle ones if n is even)."""
        return _median(self.rotation_deg)

    @property
    def mean_rotation_deg(self) -> float:
        """Mean angle in degrees; poses drawn at random average 126.5."""
        return float(self.rotation_deg.mean())

    @property
    def median_shift_A(self) -> float | None:
        """Median distance in Angstrom."""
        return None if self.shift_A is None else _median(self.shift_A)

    @property
    def mean_shift_A(self) -> float | None:
        """Mean distance in Angstrom."""
        return None if self.shift_A is None else float(self.shift_A.mean())


def pose_error(
    rotation_est: Rotations,
    shift_est: Shifts | None,
    rotation_true: Rotations,
    shift_true: Shifts | None,
    alignment: Motion | None = None,
    group: Rotations | None = None,
) -> PoseError:
    """Errors of estimated poses after the motion that lays the estimated map on the true one.

    Parameters
    ----------
    rotation_est, rotation_true
        [n, 3, 3].
    shift_est, shift_true
        [n, 2] in Angstrom, or None.
    alignment
        From ``align_maps(estimated, true)`` or :func:`align_poses`; None if both maps share one
        frame.
    group
        Point group of the true map about its origin [m, 3, 3]: R and ``R g`` are the same pose.

    Raises
    ------
    InputError
        If shapes disagree, there are no images, or a matrix is not a rotation.
    """
    _check(rotation_est, rotation_true, shift_est, shift_true)
    shift = rotation_est.new_zeros(len(rotation_est), 2) if shift_est is None else shift_est
    rotation = rotation_est.double()
    shift = shift.double()
    if alignment is not None:
        rotation, shift = alignment.move_poses(rotation, shift)
    angle = _orbit_angle(rotation, rotation_true.to(rotation), _group(group))
    if shift_est is None or shift_true is None:
        return PoseError(angle, None)
    return PoseError(angle, torch.linalg.vector_norm(shift - shift_true.to(shift), dim=-1))


def align_poses(
    rotation_est: Rotations,
    rotation_true: Rotations,
    shift_est: Shifts | None = None,
    shift_true: Shifts | None = None,
    *,
    hands: bool = True,
    group: Rotations | None = None,
) -> Alignment:
    """The motion that best lays estimated poses on true ones, without any map.

    The rotation minimizes the mean angle, the shift the mean distance: medians on SO(3) and in
    space, which bear many poses that are altogether wrong. They start from the best of up to 200
    images' own answers and go on by reweighted chordal means (Weiszfeld; Hartley, Aftab and
    Trumpf, 2011, L1 rotation averaging).

    Parameters
    ----------
    rotation_est, rotation_true
        [n, 3, 3].
    shift_est, shift_true
        [n, 2] in Angstrom; without them the shift of the motion is 0.
    hands
        Whether the mirrored map's poses are tried, too.
    group
        Point group of the true map [m, 3, 3].

    Returns
    -------
    Alignment
        Its score is minus the mean angle in degrees.

    Raises
    ------
    InputError
        As :func:`pose_error`.
    """
    _check(rotation_est, rotation_true, shift_est, shift_true)
    elements = _group(group)
    found = {}
    for mirrored in (False, True)[: 1 + hands]:
        neutral = Motion(torch.eye(3).double(), torch.zeros(3).double(), mirrored)
        turned, _ = neutral.move_poses(rotation_est.double(), torch.zeros(1, 2).double())
        own = rotation_true.to(turned).mT @ turned
        rotation = _median_rotation(own, elements)
        mean = _orbit_angle(rotation, own, elements, left=True).mean()
        found[mirrored] = (-float(mean), rotation)
    mirrored = max(found, key=lambda hand: found[hand][0])
    score, rotation = found[mirrored]
    motion = Motion(rotation, torch.zeros(3).double(), mirrored)
    if shift_est is not None and shift_true is not None:
        motion = _with_shift(motion, rotation_est.double(), shift_est - shift_true.to(shift_est))
    other = found[not mirrored][0] if hands else None
    return Alignment(motion.rotation, motion.shift_A, mirrored, score, other)


def _median(values: Tensor) -> float:
    return float(values.double().quantile(0.5)) if len(values) <= 2**24 else float(values.median())


def _check(
    rotation: Rotations, truth: Rotations, shift: Shifts | None, shift_true: Shifts | None
) -> None:
    for matrices, where in ((rotation, "estimated rotations"), (truth, "true rotations")):
        check_rotations(matrices, where)
    n, got = len(truth), f"{list(rotation.shape)} and {list(truth.shape)}"
    paired = rotation.shape == truth.shape == (n, 3, 3) and n > 0
    require(paired, "rotations", expected="[n, 3, 3] twice, n > 0", got=got)
    for values, where in ((shift, "estimated shifts"), (shift_true, "true shifts")):
        right = values is None or values.shape == (n, 2)
        got = "" if values is None else f"shape {list(values.shape)}"
        require(right, where, expected=f"shape [{n}, 2]", got=got)


def _group(group: Rotations | None) -> Rotations:
    return torch.eye(3, dtype=torch.float64)[None] if group is None else group.double()


def _orbit_angle(
    first: Rotations, second: Rotations, group: Rotations, left: bool = False
) -> Tensor:
    """Least angle in degrees from ``first`` to ``second g`` (``left``: to ``g second``), [n]."""
    angles = None
    for element in group.to(second):
        angle = angle_between(first, element @ second if left else second @ element)
        angles = angle if angles is None else torch.minimum(angles, angle)
    assert angles is not None
    return angles


def _nearest(rotation: Rotations, own: Rotations, group: Rotations) -> Rotations:
    """Of each ``g own`` [n, 3, 3] the one nearest to ``rotation`` [3, 3]."""
    likeness = torch.einsum("ij,mik,nkj->nm", rotation, group, own)
    return group[likeness.argmax(1)] @ own


def _median_rotation(own: Rotations, group: Rotations) -> Rotations:
    """The rotation of least mean angle to the orbits ``g own``, own [n, 3, 3]."""
    group = group.to(own)
    rotation = _best_seed(own, group)
    for _ in range(_PASSES):
        near = _nearest(rotation, own, group)
        weight = 1 / angle_between(rotation, near).clamp(min=0.01)
        rotation = mean_rotation(near, weight)
    return rotation


def _best_seed(own: Rotations, group: Rotations) -> Rotations:
    """Of some images' own answers the one of least mean angle to a sample of all."""
    seeds, sample = (own[:: -(-len(own) // most)] for most in (_SEEDS, _SAMPLE))
    orbits = (group[:, None] @ sample).flatten(2)
    trace = torch.stack([(seeds.flatten(1) @ orbit.mT) for orbit in orbits]).amax(0)
    mean = torch.acos(((trace - 1) / 2).clamp(-1, 1)).mean(1)
    return seeds[mean.argmin()]


def _with_shift(motion: Motion, rotation: Rotations, excess: Shifts) -> Motion:
    """Add the shift s of least mean distance between ``(R' s)_xy`` and ``excess`` [n, 2]."""
    rows = motion.move_poses(rotation, torch.zeros_like(excess).double())[0][:, :2]
    wanted, weight = excess.to(rows), torch.ones(len(rows)).to(rows)
    shift = motion.shift_A.to(rows)
    for _ in range(_PASSES):
        pull = rows.mT * weight[:, None, None]
        shift = torch.linalg.pinv((pull @ rows).sum(0)) @ (pull @ wanted[..., None]).sum(0)[:, 0]
        left = torch.linalg.vector_norm((rows @ shift) - wanted, dim=-1)
        weight = 1 / left.clamp(min=left.mean() * 1e-3 + 1e-12)
    return Motion(motion.rotation, shift, motion.mirrored)
