"""cryoDRGN's first search of poses: branch and bound."""

from cryoprob.inference.presets.base import Built, Preset, Row, Scene
from cryoprob.inference.presets.searching import searching
from cryoprob.inference.treatments.bounded import Bounded

__all__ = ["PRESET"]


def build(scene: Scene) -> Built:
    """Branch and bound, from a grid of 30 degrees."""
    plan = scene.plan
    search = Bounded(plan.bound, coarse_order=plan.coarse_order)
    if search.beam is not None:  # of bounds that have a pose to beat
        search.beam = plan.beam
    return searching(scene, search, first=0.07, every=0.17)


PRESET = Preset(
    name="cryodrgn-bnb",
    paper="Zhong et al. 2020, ICLR (CryoDRGN), algorithm 1",
    row=Row("coordinate network", "z of several numbers", "rotation, shift, z", "modal EM, VAE"),
    words=(
        "A network of conformations, z from an encoder with a normal q, poses by branch and bound"
        " over nested grids with frequency marching; the first passes at random poses, then poses"
        " searched anew every fifth pass. The search is made at maps of 16 conformations spread"
        " over the latent space, each image at that nearest to its own, where the paper asks the"
        " network anew for every image, at contrast 1 and the file's defocus even where these are"
        " latent; the bound is the probabilistic one of cryoSPARC's form, since the paper's, which"
        " bound=points gives, is none on cells; the noise spectrum is learned, and z's divergence"
        " counts little at first (kl_start). The paper's second stage is a fit of cryodrgn with a"
        " larger width to the poses of this one (its particles.star). From a --reference the"
        " network starts at it, and the poses with a search in the band of its low pass."
    ),
    plan={
        "zdim": 8,
        "batch": 32,
        "learn_rate": 3e-4,
        "epochs": 30.0,
        "coarse_order": 1,
        "bound": "probable",
        "beam": 16,
    },
    build=build,
)
