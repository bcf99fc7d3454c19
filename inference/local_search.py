"""The best pose off the grid: Gauss-Newton ascent on SO(3) x R^2 from a start, image by image."""

from dataclasses import dataclass

import roma
import torch
from torch import Tensor

from cryoprob.fourier.gaussian_map import AnyMap, mean_of, variance_of
from cryoprob.inference.filtered import Filtered
from cryoprob.inference.statistics import reals
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel
from cryoprob.types import Rotations, Shifts

__all__ = ["Optimum", "climb"]

_STEP_RAD = 2e-3
_DAMPING = 1e-3
_LONGEST_RAD = 0.2


@dataclass(frozen=True, eq=False)
class Optimum:
    """Poses of n images and how sharply the images hold them.

    Attributes
    ----------
    rotation, shift
        [n, 3, 3] and [n, 2] (Angstrom).
    log_joint
        ``log p(image, pose) - log p(image | noise)`` without the rotation's prior, [n].
    information
        Fisher information (Gauss-Newton) of turns about the laboratory's axes (radians) and of
        the shift (Angstrom), prior of the shift included, [n, 5, 5].
    """

    rotation: Rotations
    shift: Shifts
    log_joint: Tensor
    information: Tensor

    def take(self, rows: Tensor) -> "Optimum":
        """Those of some images."""
        parts = (self.rotation, self.shift, self.log_joint, self.information)
        return Optimum(*(part[rows] for part in parts))

    @property
    def covariance(self) -> Tensor:
        """Laplace's covariance, [n, 5, 5]."""
        found: Tensor = torch.linalg.inv(self.information)
        return found


def climb(
    model: ParticleModel,
    volume: AnyMap,
    images: Filtered,
    rotation: Rotations,
    shift: Shifts,
    steps: int,
) -> Optimum:
    """Raise the log joint of every image by at most ``steps`` steps; it never falls.

    The predicted image is linearized in the five numbers of a pose (by differences); each step
    solves the 5 x 5 normal equations, damped more (Levenberg-Marquardt) where a step failed.
    """
    pose = rotation, shift
    system = _linearized(model, volume, images, *pose)
    damping = torch.full_like(system.value, _DAMPING)
    for _ in range(steps):
        diagonal = system.information.diagonal(dim1=-2, dim2=-1)
        damped = system.information + torch.diag_embed(damping[:, None] * diagonal + 1e-12)
        move = torch.linalg.solve(damped, system.gradient)
        length = move[:, :3].norm(dim=1, keepdim=True)
        move = move * (_LONGEST_RAD / length.clamp(min=_LONGEST_RAD))
        trial = _moved(*pose, move)
        tried = _linearized(model, volume, images, *trial)
        better = tried.value > system.value
        pose = (
            torch.where(better[:, None, None], trial[0], pose[0]),
            torch.where(better[:, None], trial[1], pose[1]),
        )
        system = system.where(better, tried)
        damping = torch.where(better, damping / 5, damping * 10)
    return Optimum(*pose, system.value, system.information)


@dataclass(frozen=True, eq=False)
class _System:
    value: Tensor
    gradient: Tensor
    information: Tensor

    def where(self, better: Tensor, other: "_System") -> "_System":
        """The other's rows where ``better`` [n]."""
        return _System(
            torch.where(better, other.value, self.value),
            torch.where(better[:, None], other.gradient, self.gradient),
            torch.where(better[:, None, None], other.information, self.information),
        )


def _linearized(
    model: ParticleModel, volume: AnyMap, images: Filtered, rotation: Rotations, shift: Shifts
) -> _System:
    """Log joint, its gradient and Gauss-Newton information at poses."""
    band = model.band
    mean, steps = mean_of(volume), _STEP_RAD * torch.eye(5).to(shift)[:3, None]
    slices = model.volume.slices(mean, rotation)
    turns = [_moved(rotation, shift, step)[0] for step in steps]
    turned = [model.volume.slices(mean, turn) for turn in turns]
    phase = shift_phase(band, shift, model.pixel_size)
    unit = -2j * torch.pi / (band.box * model.pixel_size)
    waves = torch.stack([band.kx, band.ky]).to(shift) * unit
    columns = [(other - slices) / _STEP_RAD for other in turned] + [w * slices for w in waves]
    tangent = reals(torch.stack(columns, 1) * phase[:, None])
    predicted = slices * phase
    image, transfer = images.image, images.transfer.repeat_interleave(2, -1)
    residual = reals(image) - transfer * reals(predicted)
    cross = torch.linalg.vecdot(reals(image), reals(predicted))
    energy = torch.linalg.vecdot(images.transfer, predicted.abs().square())
    precision = model.shift.sigma**-2
    gradient = (tangent @ residual[..., None])[..., 0]
    gradient[:, 3:] -= shift * precision
    information = (tangent * transfer[:, None]) @ tangent.mT
    information[:, [3, 4], [3, 4]] += precision
    value = cross - energy / 2 - shift.square().sum(-1) * precision / 2
    poses = torch.stack([rotation, *turns])
    variance = variance_of(volume, model.linear_volume.slicer, poses)
    if variance is not None:
        lost = torch.linalg.vecdot(images.transfer, variance) / 2
        value = value - lost[0]
        gradient[:, :3] -= (lost[1:] - lost[0]).T / _STEP_RAD
    return _System(value, gradient, information)


def _moved(rotation: Rotations, shift: Shifts, move: Tensor) -> tuple[Rotations, Shifts]:
    """Poses after turns about the laboratory's axes and shifts by ``move`` [n, 5]."""
    turn = roma.rotvec_to_rotmat(move[..., :3].contiguous())
    return turn @ rotation, shift + move[..., 3:]
