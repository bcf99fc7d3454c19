"""cryoSPARC's 3D variability analysis."""

from cryoprob.inference.presets.base import Built, Preset, Row, Scene
from cryoprob.inference.presets.linear import linear_modes

__all__ = ["PRESET"]


def build(scene: Scene) -> Built:
    """Hard EM whose modes are made orthonormal after each step."""
    return linear_modes(scene, hard=True, orthonormal=True, contrast=scene.plan.contrast)


PRESET = Preset(
    name="3dva",
    paper="Punjani and Fleet 2021, J. Struct. Biol. 213, 107702",
    row=Row("mean and linear modes", "z of several numbers", "z", "modal EM"),
    words=(
        "z is the least-squares fit of every image, without prior and without doubt; modes by the"
        " M-step at these z, made orthonormal after each step, which holds their scale: subspaces"
        " are right, amplitudes are not, as noise counts for motion (ppca has them); z is told in"
        " units of its standard deviation along the first axis. The M-step is coupled over voxels"
        " where the paper's is component by component; a band up to max_radius in place of the"
        " low-pass filter; amplitudes per image with contrast=true; the mean is updated too."
    ),
    config={"poses": "known"},
    plan={"zdim": 3, "max_iterations": 20},
    build=build,
)
