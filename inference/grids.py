"""Pose grids of a step: orders, turns, and the shift grid that goes with them."""

import torch

from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.schedule import Schedule
from cryoprob.models.local_prior import LocalPrior
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.base import ShiftPrior
from cryoprob.models.poses.gaussian_shift import GaussianShift, ShiftGridPrior
from cryoprob.models.poses.uniform_rotation import RotationGridPrior, UniformRotation

__all__ = ["off_grid", "on_grid", "pose_grids"]


def pose_grids(
    model: ParticleModel,
    plan: Schedule,
    order: int,
    *,
    seed: int,
    symmetry: str = "C1",
    least: int = 0,
) -> tuple[RotationGridPrior, ShiftGridPrior]:
    """Grids of rotations and shifts at an ``order``, for a model's pixels and shift width.

    The rotations are turned at random by ``seed`` (if the plan asks for it); the shifts are
    halved once per order above the plan's coarsest, and ``least`` times at least.
    """
    like = model.noise.sigma2
    generator = torch.Generator().manual_seed(seed)
    turn = random_rotations(1, generator, dtype=torch.float64)[0] if plan.turn else None
    uniform = UniformRotation(like.dtype, like.device)
    prior = GaussianShift(float(model.shift.sigma), like.dtype, like.device)
    lengths = (plan.shift_extent * model.pixel_size, plan.shift_step * model.pixel_size)
    refine = max(order - plan.coarse_order, least)
    rotation = uniform.discretize(order, symmetry=symmetry, turn=turn)
    return rotation, prior.discretize(*lengths, refine=refine)


def on_grid(
    model: ParticleModel, rotation: RotationGridPrior, shift: ShiftGridPrior
) -> ParticleModel:
    """The same model, all other parts shared, with its poses on grids."""
    return _posed(model, rotation, shift)


def off_grid(model: ParticleModel) -> ParticleModel:
    """The same model, all other parts shared, with its poses on the continuum."""
    like = model.noise.sigma2
    shift = GaussianShift(float(model.shift.sigma), like.dtype, like.device)
    return _posed(model, UniformRotation(like.dtype, like.device), shift)


def _posed(model: ParticleModel, rotation: LocalPrior, shift: ShiftPrior) -> ParticleModel:
    return model.on(model.volume, rotation, shift)
