"""Probabilistic principal components of maps, at known poses."""

from cryoprob.inference.presets.base import Built, Preset, Row, Scene
from cryoprob.inference.presets.linear import linear_modes

__all__ = ["PRESET"]


def build(scene: Scene) -> Built:
    """Exact EM; variational in the modes too with ``volume=gaussian``."""
    return linear_modes(scene, doubt=scene.plan.volume == "gaussian", contrast=scene.plan.contrast)


PRESET = Preset(
    name="ppca",
    paper="Tagare, Kucukelbir, Sigworth, Wang and Rao 2015, J. Struct. Biol. 191, 245",
    row=Row("mean and linear modes", "z of several numbers", "z", "EM"),
    words=(
        "Exact normal posterior of z for every image, and an exact M-step: conjugate gradients on"
        " the coupled normal equations of mean and modes, which interpolated slices ask for, where"
        " the paper solves voxel by voxel. The mean is updated too, noise and prior powers are"
        " learned, the scale of z is expanded at each step (parameter-expanded EM)."
        " volume=gaussian counts the modes' own uncertainty (variational Bayes): less prone to"
        " take noise for modes. Modes are told along their principal axes."
    ),
    config={"poses": "known"},
    plan={"zdim": 2, "max_iterations": 30},
    build=build,
)
