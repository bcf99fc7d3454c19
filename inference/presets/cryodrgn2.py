"""cryoDRGN2: poses by a beam of candidates, conformations by a VAE."""

from cryoprob.inference.presets.base import Built, Preset, Row, Scene
from cryoprob.inference.presets.searching import searching
from cryoprob.inference.treatments.modal import Modal

__all__ = ["PRESET"]


def build(scene: Scene) -> Built:
    """A beam, from a grid of 15 degrees."""
    plan = scene.plan
    search = Modal(plan.beam, coarse_order=plan.coarse_order)
    return searching(scene, search, first=0.07, every=0.17)


PRESET = Preset(
    name="cryodrgn2",
    paper="Zhong et al. 2021, ICCV, 4066 (cryoDRGN2)",
    row=Row("coordinate network", "z of several numbers", "rotation, shift, z", "modal EM, VAE"),
    words=(
        "A network of conformations, z from an encoder with a normal q, poses from a"
        " hierarchical search that keeps the 8 best cells of every level, made anew every fifth"
        " pass after some first ones at random poses, and at the end; the band grows. The search"
        " is made at maps of 16 conformations spread over the latent space, each image at that"
        " nearest to its own, where the paper asks the network anew for every image, at contrast"
        " 1 and the file's defocus even where these are latent; coarse levels count what a cell"
        " leaves open as noise; the noise spectrum is learned; z's divergence counts little at"
        " first (kl_start). From a --reference the network starts at it, and the poses with a"
        " search in the band of its low pass: a map that cryosparc-abinitio finds on the same"
        " images is one. From nothing hundreds of noisy images are too few."
    ),
    plan={"zdim": 8, "batch": 32, "learn_rate": 3e-4, "epochs": 30.0, "beam": 8},
    build=build,
)
