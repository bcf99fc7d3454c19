"""CryoPoseNet: rotations read off by a convolutional encoder, a map of real voxels."""

from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.rotations import DiracRotation
from cryoprob.inference.objectives.profile_log_joint import ProfileLogJoint
from cryoprob.inference.presets.base import Built, Preset, Row, Scene
from cryoprob.inference.presets.networks import pictured, read_views
from cryoprob.inference.presets.references import held_first, warmed
from cryoprob.inference.treatments.point import Point
from cryoprob.models.volumes.real_voxels import RealVoxels

__all__ = ["PRESET"]


def build(scene: Scene) -> Built:
    """Encoder of the rotation, voxels in real space, both raised together."""
    box, power = scene.stack.box, scene.spectrum
    sd = float((power[1:6].mean() / box).sqrt())
    volume = RealVoxels(box, sd, **scene.kind)
    turns = read_views(scene, pictured(scene), DiracRotation())
    start = Point(scene.put(volume.start(scene.generator)))
    guide = Guide(rotation=turns, shift=scene.nowhere, volume=start)
    held = held_first(scene)
    return warmed(scene, scene.train(scene.model(volume), guide, ProfileLogJoint(), held=held))


PRESET = Preset(
    name="cryoposenet",
    paper="Nashed et al. 2021, ICCV workshops, 4049 (CryoPoseNet)",
    row=Row("real voxels", "none", "rotation", "autoencoder"),
    words=(
        "A convolutional encoder gives six numbers of the rotation, a Dirac; real voxels are"
        " turned trilinearly and summed along the view; images are taken as centered, as in the"
        " paper. Squared errors in units of a noise spectrum that is learned, in place of plain"
        " ones; a weak normal prior of the voxels. It ends in maps of spurious symmetry as the"
        " paper's does: see the symmetric loss of CryoAI."
    ),
    plan={"batch": 32, "learn_rate": 5e-4, "epochs": 30.0},
    build=build,
)
