"""Linear modes at known poses: what PPCA, 3DVA and covariance estimation share."""

from functools import partial

import torch

from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.linear_modes_em import ModesEM, ModesState
from cryoprob.inference.loop import Algorithm
from cryoprob.inference.modes_finish import finish_modes, turn_to_axes
from cryoprob.inference.presets.base import Built, Scene
from cryoprob.inference.treatments.conditional_gaussian import ConditionalGaussian
from cryoprob.inference.treatments.point import Point
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.volumes.linear_modes import LinearModes

__all__ = ["linear_modes", "modes_by"]

_SHARE = 0.1
"""Prior power of a mode at the start, in units of the mean's."""


def linear_modes(scene: Scene, **options: bool) -> Built:
    """Mean and modes, exact posteriors of z, EM of kinds that :class:`ModesEM` names."""
    plan = scene.plan
    wanted = {"noise": plan.noise, "tau2": plan.tau2} | options
    algorithm = ModesEM(scene.seed, max_iterations=plan.max_iterations, **wanted)
    kind = {"hard": algorithm.hard, "flat": algorithm.orthonormal}
    return modes_by(scene, algorithm, plan.max_iterations, **kind)


def modes_by(
    scene: Scene, algorithm: Algorithm, steps: int, *, hard: bool = False, flat: bool = False
) -> Built:
    """Mean and modes that an algorithm finds, posteriors of z as :func:`finish_modes` tells."""
    plan, box, size = scene.plan, scene.stack.box, scene.plan.zdim
    signal = scene.spectrum / box
    radius = plan.max_radius or box // 2 - 1
    volume = LinearModes(box, size, signal, _SHARE * signal, radius=radius, **scene.kind)
    model = scene.model(volume, GaussianConformation(scene.put(torch.ones(size))))
    turns, moves = scene.known
    start = scene.put(torch.zeros(1 + size, box, box, box))
    if scene.start is not None:
        start[0] = scene.start
    exact, point = ConditionalGaussian(), Point(start)
    guide = Guide(rotation=turns, shift=moves, conformation=exact, volume=point)
    half = Half(model, guide, scene.everything)
    state = ModesState(half)
    settle = partial(turn_to_axes, half)
    finish = partial(finish_modes, state, scene.stack, hard=hard, flat=flat)
    return Built(half, algorithm, state, steps, finish, settle)
