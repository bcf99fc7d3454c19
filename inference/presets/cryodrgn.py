"""cryoDRGN: a variational autoencoder of conformations at known poses."""

from cryoprob.inference.guide import Guide
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.presets.base import KL_START, Built, Preset, Row, Scene
from cryoprob.inference.presets.networks import coordinates, network, read_off
from cryoprob.inference.presets.references import warmed
from cryoprob.inference.treatments.point import Point

__all__ = ["PRESET"]


def build(scene: Scene) -> Built:
    """Encoder, normal q of z, coordinate network; both networks raised together."""
    generator, prior = scene.generator, coordinates(scene)
    volume, (turns, moves) = network(scene, scene.plan.zdim, generator), scene.known
    state, start = read_off(scene, moves), Point(scene.put(volume.start(generator)))
    guide = Guide(rotation=turns, shift=moves, conformation=state, volume=start)
    built = scene.train(scene.model(volume, prior), guide, Elbo(), kl_start=KL_START)
    return warmed(scene, built, known=True)


PRESET = Preset(
    name="cryodrgn",
    paper="Zhong et al. 2021, Nat. Methods 18, 176; Zhong et al. 2020, ICLR",
    row=Row("coordinate network", "z of several numbers", "z", "variational autoencoder"),
    words=(
        "Residual networks of the paper's shape for encoder and decoder, random Fourier features,"
        " a normal q of z, poses from the file. The half plane's complex coefficients in place of"
        " the full plane's Hartley numbers, which hold the same information. The noise spectrum is"
        " learned, so that the ELBO is one; its divergence counts little at first (kl_start), lest"
        " the noise takes what z could tell. beta=1/zdim gives the released loss, whose noise"
        " variance is beta / 2 in units of the images' (anneal=16 starts it larger). A --reference"
        " is where the decoder starts."
    ),
    config={"poses": "known"},
    plan={"zdim": 8, "batch": 32, "learn_rate": 3e-4, "epochs": 20.0},
    build=build,
)
