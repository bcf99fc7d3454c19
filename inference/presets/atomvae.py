"""atomVAE: a structure displaced by z, poses and z read off by one encoder."""

import torch

from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.rotations import ConcentratedLaw
from cryoprob.inference.laws.shifts import NormalShift
from cryoprob.inference.laws.vectors import NormalVector
from cryoprob.inference.objectives.iwae import Iwae
from cryoprob.inference.presets.base import Built, Preset, Row, Scene
from cryoprob.inference.presets.gaussians import (
    VOLUME_RATE,
    bonds,
    molecule,
    structure,
)
from cryoprob.inference.presets.networks import coordinates, pictured, read_poses
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.point import Point
from cryoprob.models.structure_factors import Deviation

__all__ = ["PRESET"]

_POSES_ONLY, _AWAY_A = 0.4, 10.0


def build(scene: Scene) -> Built:
    """One encoder of pose and z, importance-weighted; poses alone in a first phase."""
    plan, found = scene.plan, structure(scene, docked=False)
    volume = molecule(scene, found, docked=False)
    near = Deviation(volume.positions, _AWAY_A)
    model = scene.model(volume, coordinates(scene), [bonds(scene, found), near])
    encoder = pictured(scene)
    turns, moves = read_poses(scene, encoder, ConcentratedLaw(20.0), NormalShift)
    state = Amortized(encoder, NormalVector(plan.zdim), scene.put(torch.zeros(1, plan.zdim)))
    start = Point(volume.start(scene.generator))
    guide = Guide(rotation=turns, shift=moves, conformation=state, volume=start)
    held = {"volume": _POSES_ONLY, "conformation": _POSES_ONLY}
    return scene.train(model, guide, Iwae(plan.learn_draws), volume_rate=VOLUME_RATE, held=held)


PRESET = Preset(
    name="atomvae",
    paper="Rosenbaum et al. 2021, arXiv 2106.14108 (atomVAE)",
    row=Row("atoms", "z of several numbers", "rotation, shift, z", "variational autoencoder"),
    words=(
        "Needs --reference model.pdb, which is centered. One convolutional encoder gives normal q"
        " of rotation, shift and z; the bound is importance-weighted over 8 draws of them all;"
        " poses alone in the first 40 %, displacements at 0. Gaussians of residues in place of"
        " heavy atoms; bonds and distances as factors; gray scale by evidence on a grid; the noise"
        " is learned. From random poses noisy images of all views do not lead the encoder to the"
        " right ones (nor the paper's): search poses with another preset and take cryofold there."
    ),
    plan={"zdim": 8, "batch": 32, "learn_rate": 5e-4, "epochs": 30.0, "learn_draws": 8},
    build=build,
)
