"""Parts that presets with networks share."""

from collections.abc import Callable
from typing import Any

import torch

from cryoprob.checks import require
from cryoprob.inference.encoders.base import Encoder
from cryoprob.inference.encoders.centering import Centering
from cryoprob.inference.encoders.convolutional import Convolutional
from cryoprob.inference.encoders.fourier_mlp import FourierMLP
from cryoprob.inference.laws.base import Law
from cryoprob.inference.laws.vectors import NormalVector
from cryoprob.inference.presets.base import Scene
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.base import Drawn
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.volumes.coordinate_network import CoordinateNetwork

__all__ = ["coordinates", "network", "pictured", "read_off", "read_poses", "read_views"]

_SPREAD = 10.0
"""On the weights of the rotation's six numbers: views spread over the sphere at once."""


def network(scene: Scene, size: int, generator: torch.Generator) -> CoordinateNetwork:
    """A coordinate network of the plan's width, for a conformation of ``size`` numbers."""
    plan, power = scene.plan, scene.spectrum
    shape: dict[str, Any] = {"width": plan.width, "layers": plan.layers}
    volume = CoordinateNetwork(scene.stack.box, size, generator=generator, power=power, **shape)
    return volume.to(**scene.kind)


def coordinates(scene: Scene) -> GaussianConformation:
    """The prior of as many coordinates as the plan has."""
    size = scene.plan.zdim
    require(size > 0, "zdim", expected="1 or more coordinates", got=str(size))
    return GaussianConformation(scene.put(torch.ones(size)))


def read_off(scene: Scene, moves: Drawn) -> Amortized:
    """A normal q of z that a perceptron reads off images moved to the middle."""
    plan, stack, power = scene.plan, scene.stack, scene.spectrum
    middle = Centering(moves, stack.pixel_size)
    shape: dict[str, Any] = {"width": plan.width, "layers": plan.layers}
    encoder = FourierMLP(stack.box, power, centering=middle, **shape).to(**scene.kind)
    return Amortized(encoder, NormalVector(plan.zdim), scene.put(torch.zeros(1, plan.zdim)))


def pictured(scene: Scene) -> Convolutional:
    """A convolutional encoder of the plan's width."""
    found = Convolutional(scene.stack.box, scene.spectrum, size=scene.plan.width)
    return found.to(**scene.kind)


def read_poses(
    scene: Scene, encoder: Encoder, rotation: Law, shift: Callable[[float], Law]
) -> tuple[Amortized, Amortized]:
    """Rotations and shifts read off the same features, laws of them that are fresh."""
    moves = shift(scene.plan.shift_extent * scene.unit_A)
    return read_views(scene, encoder, rotation), Amortized(encoder, moves, scene.nowhere_once)


def read_views(scene: Scene, encoder: Encoder, law: Law) -> Amortized:
    """Rotations read off features by a law whose first six numbers are the rotation's."""
    turns = Amortized(encoder, law, scene.rotation)
    turns.head.weight.data[:6].mul_(_SPREAD)
    return turns
