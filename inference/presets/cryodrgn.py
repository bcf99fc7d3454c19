"""cryoDRGN: a variational autoencoder of conformations at known poses."""

from typing import Any

import torch

from cryoprob.inference.encoders.centering import Centering
from cryoprob.inference.encoders.fourier_mlp import FourierMLP
from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.vectors import NormalVector
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.presets.base import Built, Preset, Row, Scene
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.point import Point
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.volumes.coordinate_network import CoordinateNetwork

__all__ = ["PRESET"]


def build(scene: Scene) -> Built:
    """Encoder, normal q of z, coordinate network; both networks raised together."""
    plan, stack, generator = scene.plan, scene.stack, scene.generator
    size: dict[str, Any] = {"width": plan.width, "layers": plan.layers}
    power = scene.sigma2.mean(0)
    volume = CoordinateNetwork(stack.box, plan.zdim, generator=generator, power=power, **size)
    volume = volume.to(**scene.kind)
    model = scene.model(volume, GaussianConformation(scene.put(torch.ones(plan.zdim))))
    turns, moves = scene.known
    centering = Centering(moves, stack.pixel_size)
    encoder = FourierMLP(stack.box, power, centering=centering, **size).to(**scene.kind)
    state = Amortized(encoder, NormalVector(plan.zdim), scene.put(torch.zeros(1, plan.zdim)))
    start = Point(scene.put(volume.start(generator)))
    guide = Guide(rotation=turns, shift=moves, conformation=state, volume=start)
    return scene.train(model, guide, Elbo())


PRESET = Preset(
    name="cryodrgn",
    paper="Zhong et al. 2021, Nat. Methods 18, 176; Zhong et al. 2020, ICLR",
    row=Row("coordinate network", "z of several numbers", "z", "variational autoencoder"),
    words=(
        "Residual networks of the paper's shape for encoder and decoder, random Fourier features,"
        " a normal q of z, poses from the file. The half plane's complex coefficients in place of"
        " the full plane's Hartley numbers, which hold the same information. The noise spectrum is"
        " learned, so that the ELBO is one; beta=1/zdim gives the released loss, whose noise"
        " variance is beta / 2 in units of the images'."
    ),
    config={"poses": "known"},
    plan={"zdim": 8, "batch": 32, "learn_rate": 3e-4, "epochs": 20.0},
    build=build,
)
