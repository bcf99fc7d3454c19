"""CryoAI: poses read off by a convolutional encoder, one map held by a network."""

from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.rotations import DiracRotation
from cryoprob.inference.laws.shifts import DiracShift
from cryoprob.inference.objectives.symmetric import Symmetric
from cryoprob.inference.presets.base import Built, Preset, Row, Scene
from cryoprob.inference.presets.networks import network, pictured, read_poses
from cryoprob.inference.presets.references import held_first, warmed
from cryoprob.inference.treatments.point import Point

__all__ = ["PRESET"]


def build(scene: Scene) -> Built:
    """Encoder of both poses, coordinate network, the symmetric loss, a band that grows."""
    volume = network(scene, 0, scene.generator)
    turns, moves = read_poses(scene, pictured(scene), DiracRotation(), DiracShift)
    start = Point(scene.put(volume.start(scene.generator)))
    guide = Guide(rotation=turns, shift=moves, volume=start)
    options = {"first_radius": min(4, scene.stack.box // 2 - 1), "held": held_first(scene)}
    return warmed(scene, scene.train(scene.model(volume), guide, Symmetric(), **options))


PRESET = Preset(
    name="cryoai",
    paper="Levy et al. 2022, ECCV, 540 (CryoAI)",
    row=Row("coordinate network", "none", "rotation, shift", "autoencoder"),
    words=(
        "A convolutional encoder of VGG's shape gives six numbers of the rotation and the shift,"
        " both Diracs; the image and the image turned by 180 degrees compete (the symmetric loss);"
        " a network holds the Fourier transform. Residual ReLU layers with random Fourier features"
        " in place of FourierNet; the noise spectrum is learned from the residual, where the paper"
        " has squared errors; frequency marching over 60 % of the training."
    ),
    plan={"batch": 32, "learn_rate": 5e-4, "epochs": 30.0},
    build=build,
)
