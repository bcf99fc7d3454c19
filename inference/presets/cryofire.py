"""CryoFIRE: poses and conformation read off by one encoder."""

import torch

from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.rotations import DiracRotation
from cryoprob.inference.laws.shifts import DiracShift
from cryoprob.inference.laws.vectors import DiracVector
from cryoprob.inference.objectives.symmetric import Symmetric
from cryoprob.inference.presets.base import Built, Preset, Row, Scene
from cryoprob.inference.presets.networks import coordinates, network, pictured, read_poses
from cryoprob.inference.presets.references import POSES_ONLY, held_first, warmed
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.point import Point

__all__ = ["PRESET"]


def build(scene: Scene) -> Built:
    """As CryoAI, with a conformation that is held in a first phase."""
    size = scene.plan.zdim
    volume = network(scene, size, scene.generator)
    model, encoder = scene.model(volume, coordinates(scene)), pictured(scene)
    turns, moves = read_poses(scene, encoder, DiracRotation(), DiracShift)
    state = Amortized(encoder, DiracVector(size), scene.put(torch.zeros(1, size)))
    start = Point(scene.put(volume.start(scene.generator)))
    guide = Guide(rotation=turns, shift=moves, conformation=state, volume=start)
    held = {"conformation": POSES_ONLY, **held_first(scene)}
    options = {"first_radius": min(4, scene.stack.box // 2 - 1), "held": held}
    return warmed(scene, scene.train(model, guide, Symmetric(), **options))


PRESET = Preset(
    name="cryofire",
    paper="Levy et al. 2022, NeurIPS 35, 13038 (CryoFIRE)",
    row=Row("coordinate network", "z of several numbers", "rotation, shift, z", "autoencoder"),
    words=(
        "One convolutional encoder gives rotation, shift and conformation, all Diracs; the"
        " symmetric loss; a first phase in which z learns nothing; a band that grows. z has its"
        " normal prior, which the paper leaves out; in the first phase z is what the fresh head"
        " says, where the paper draws it at random; the encoder's features tell of the view"
        " first, so that z encodes the pose in part (three quarters of its variance were linear"
        " in the rotation after a short training); the noise spectrum is learned. From a"
        " --reference the network starts at it, and is held in the first phase."
    ),
    plan={"zdim": 8, "batch": 32, "learn_rate": 5e-4, "epochs": 30.0},
    build=build,
)
