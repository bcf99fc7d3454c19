"""CryoFold: a structure's residues as Gaussians, displaced by a variational autoencoder."""

from cryoprob.inference.guide import Guide
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.presets.base import Built, Preset, Row, Scene
from cryoprob.inference.presets.gaussians import (
    VOLUME_RATE,
    bonds,
    molecule,
    structure,
)
from cryoprob.inference.presets.networks import coordinates, read_off
from cryoprob.inference.treatments.point import Point

__all__ = ["PRESET"]


def build(scene: Scene) -> Built:
    """Residues of a structure, a residual network of z that moves them, bonds that hold."""
    found = structure(scene, docked=True)
    volume = molecule(scene, found, docked=True, free=("positions",))
    model = scene.model(volume, coordinates(scene), [bonds(scene, found)])
    turns, moves = scene.known
    state, start = read_off(scene, moves), Point(volume.start(scene.generator))
    guide = Guide(rotation=turns, shift=moves, conformation=state, volume=start)
    return scene.train(model, guide, Elbo(), volume_rate=VOLUME_RATE)


PRESET = Preset(
    name="cryofold",
    paper="Zhong et al. 2021, arXiv 2107.01331 (CryoFold)",
    row=Row("Gaussians of residues", "z of several numbers", "z", "variational autoencoder"),
    words=(
        "Needs --reference model.pdb that lies in the frame of the poses (docked into a map of"
        " them whose middle voxel is at the origin) and within the ensemble. Two Gaussians a"
        " residue, at C-alpha and side chain (one where the file has C-alphas alone), heavy as"
        " their electrons and of one width; a network of z moves them; bonds keep the structure's"
        " lengths to 0.3 A, as a factor of the model. Poses from the file; the mean structure is"
        " free beside the network; the gray scale is regressed once; the noise is learned."
    ),
    config={"poses": "known"},
    plan={"zdim": 8, "batch": 32, "learn_rate": 3e-4, "epochs": 20.0},
    build=build,
)
