"""Parts that presets with networks share."""

from typing import Any

import torch

from cryoprob.checks import require
from cryoprob.inference.encoders.centering import Centering
from cryoprob.inference.encoders.fourier_mlp import FourierMLP
from cryoprob.inference.laws.vectors import NormalVector
from cryoprob.inference.presets.base import Scene
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.base import Drawn
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.volumes.coordinate_network import CoordinateNetwork

__all__ = ["coordinates", "network", "read_off"]


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
