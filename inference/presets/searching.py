"""Networks of conformations at poses that are searched: what the cryoDRGN family shares."""

from dataclasses import replace
from typing import Any

import torch

from cryoprob.inference.alternating import Alternating
from cryoprob.inference.encoders.centering import Centering
from cryoprob.inference.encoders.fourier_mlp import FourierMLP
from cryoprob.inference.guide import Guide
from cryoprob.inference.joint import Joint
from cryoprob.inference.laws.rotations import DiracRotation
from cryoprob.inference.laws.shifts import DiracShift
from cryoprob.inference.laws.vectors import NormalVector
from cryoprob.inference.objectives.profile_log_joint import ProfileLogJoint
from cryoprob.inference.presets.base import Built, Scene
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.volumes.coordinate_network import CoordinateNetwork

__all__ = ["searching"]


def searching(scene: Scene, search: Modal, *, first: float, every: float) -> Built:
    """Tables of poses that a search fills, normal q of z, a network; none of z with ``zdim=0``.

    Parameters
    ----------
    search
        How grids are searched.
    first, every
        Share of the training before the first search, and from one to the next.
    """
    plan, stack, generator = scene.plan, scene.stack, scene.generator
    box, power = stack.box, scene.sigma2.mean(0)
    size: dict[str, Any] = {"width": plan.width, "layers": plan.layers}
    volume = CoordinateNetwork(box, plan.zdim, generator=generator, power=power, **size)
    volume = volume.to(**scene.kind)
    turns = PerImage(DiracRotation(), scene.rotation.expand(len(stack), 3, 3))
    moves = PerImage(DiracShift(scene.unit_A), scene.nowhere.values)
    state, prior = None, None
    if plan.zdim:
        encoder = FourierMLP(box, power, centering=Centering(moves, stack.pixel_size), **size)
        center = scene.put(torch.zeros(1, plan.zdim))
        state = Amortized(encoder.to(**scene.kind), NormalVector(plan.zdim), center)
        prior = GaussianConformation(scene.put(torch.ones(plan.zdim)))
    start = Point(scene.put(volume.start(generator)))
    guide = Guide(rotation=turns, shift=moves, conformation=state, volume=start)
    held: dict[str, float] = {"rotation": 1.0, "shift": 1.0}
    options: dict[str, Any] = {"first_radius": min(6, box // 2 - 1), "held": held}
    built = scene.train(scene.model(volume, prior), guide, ProfileLogJoint(), **options)
    times = (max(1, round(share * built.steps)) for share in (first, every))
    assert isinstance(built.algorithm, Joint)
    return replace(built, algorithm=Alternating(built.algorithm, plan, search, *times))
