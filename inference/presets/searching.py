"""Networks of conformations at poses that are searched: what the cryoDRGN family shares."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from cryoprob.inference.alternating import Alternating
from cryoprob.inference.guide import Guide
from cryoprob.inference.joint import Joint
from cryoprob.inference.laws.rotations import DiracRotation
from cryoprob.inference.laws.shifts import DiracShift
from cryoprob.inference.objectives.profile_log_joint import ProfileLogJoint
from cryoprob.inference.presets.base import KL_START, Built, Scene
from cryoprob.inference.presets.networks import coordinates, network, read_off
from cryoprob.inference.presets.references import warmed
from cryoprob.inference.result import FitResult
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point

__all__ = ["searching"]

_AS_GIVEN = (
    "Poses were searched for at contrast 1 and at the file's defocus; what of these is latent was"
    " summed out at the poses that were found."
)


def searching(scene: Scene, search: Modal, *, first: float, every: float) -> Built:
    """Tables of poses that a search fills, normal q of z, a network; none of z with ``zdim=0``.

    From a reference the network starts at it, and the poses with a search in the reference's band.

    Parameters
    ----------
    search
        How grids are searched.
    first, every
        Share of the training before the first search, and from one to the next.
    """
    plan, stack, generator = scene.plan, scene.stack, scene.generator
    grids = plan.only("coarse_order", "max_order", "turn", "shift_extent", "shift_step")
    volume = network(scene, plan.zdim, generator)
    turns = PerImage(DiracRotation(), scene.rotation.expand(len(stack), 3, 3))
    moves = PerImage(DiracShift(scene.unit_A), scene.nowhere.values)
    state, prior = (read_off(scene, moves), coordinates(scene)) if plan.zdim else (None, None)
    start = Point(scene.put(volume.start(generator)))
    guide = Guide(rotation=turns, shift=moves, conformation=state, volume=start)
    held: dict[str, float] = {"rotation": 1.0, "shift": 1.0}
    first_radius = min(6, stack.box // 2 - 1)
    options: dict[str, Any] = {"first_radius": first_radius, "held": held, "kl_start": KL_START}
    built = scene.train(scene.model(volume, prior), guide, ProfileLogJoint(), **options)
    begun, period = (max(1, round(share * built.steps)) for share in (first, every))
    assert isinstance(built.algorithm, Joint)
    turn = Alternating(built.algorithm, grids, search, begun, period)
    if scene.references:
        told = int(stack.box * stack.pixel_size / scene.low_pass_A)
        radius = min(max(first_radius, told), built.algorithm.radius)
        turn = replace(turn, first=0, start_radius=radius)
    finish = partial(_told, built.finish)
    return warmed(scene, replace(built, algorithm=turn, finish=finish))


def _told(finish: Callable[[], FitResult]) -> FitResult:
    """The result of a training; says what its searches did not look at."""
    result = finish()
    if result.imaging is not None:
        result.trust += f" {_AS_GIVEN}"
    return result
