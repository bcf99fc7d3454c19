"""E2GMM: Gaussians moved by z, which an encoder reads off the gradient of a ring score."""

import torch

from cryoprob.inference.encoders.score import Score
from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.vectors import NormalVector
from cryoprob.inference.objectives.ring_correlation import RingCorrelation, concentration_of_power
from cryoprob.inference.presets.base import Built, Preset, Row, Scene
from cryoprob.inference.presets.gaussians import VOLUME_RATE, cloud, molecule, structure
from cryoprob.inference.presets.networks import coordinates
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.point import Point
from cryoprob.models.volumes.gaussian_mixture import FREE

__all__ = ["PRESET"]

_NEUTRAL = 0.4


def build(scene: Scene) -> Built:
    """The neutral model first, then the encoder and the displacements that it asks for."""
    plan = scene.plan
    if scene.references:
        volume = molecule(scene, structure(scene, docked=True), docked=True, free=FREE)
    else:
        volume = cloud(scene)
    model, start = scene.model(volume, coordinates(scene)), Point(volume.start(scene.generator))
    turns, shifts = scene.known
    objective = RingCorrelation(concentration_of_power(scene.power.mean(0), scene.stack.box))
    kappa = objective.kappa * (torch.arange(len(objective.kappa)) >= objective.first)
    size = {"width": plan.width, "layers": plan.layers}
    encoder = Score(model, start, turns, shifts, kappa=kappa, **size).to(**scene.kind)
    law = NormalVector(plan.zdim, width=0.1, fixed=True)
    state = Amortized(encoder, law, scene.put(torch.zeros(1, plan.zdim)))
    guide = Guide(rotation=turns, shift=shifts, conformation=state, volume=start)
    options = {"volume_rate": VOLUME_RATE, "held": {"conformation": _NEUTRAL}}
    return scene.train(model, guide, objective, **options)


PRESET = Preset(
    name="e2gmm",
    paper="Chen and Ludtke 2021, Nat. Methods 18, 930 (E2GMM)",
    row=Row("Gaussians", "z in R^4", "z", "autoencoder of fixed noise"),
    words=(
        "Centers, amplitudes and widths free; rings' correlations in place of a likelihood of"
        " images, weighted by what they can reach over white noise (von Mises-Fisher) where the"
        " paper has their mean (no density of images, which --contrast, --defocus and latent"
        " --price need: they are refused); z of a fixed width 0.1, read off the gradient of the"
        " score in the neutral model as in the paper; held in the first 40 %. Here z moves centers"
        " only; its prior is normal; poses from the file. From nothing (gaussians=300, no gray"
        " scale) or --reference model.pdb that lies in the frame of the poses."
    ),
    config={"poses": "known"},
    plan={"zdim": 4, "batch": 32, "learn_rate": 3e-4, "epochs": 20.0},
    build=build,
)
