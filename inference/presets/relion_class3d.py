"""RELION's 3D classification."""

from cryoprob.inference.presets.base import Preset, Row

__all__ = ["PRESET"]

PRESET = Preset(
    name="relion-class3d",
    paper="Scheres et al. 2007, Nat. Methods 4, 27; Scheres 2012, J. Struct. Biol. 180, 519",
    row=Row("K times Fourier voxels", "class", "rotation, shift, class", "EM"),
    words=(
        "Class and pose summed out together; every class has a map with its own prior power and"
        " all share the noise; weights are the mean shares. From one reference the classes are"
        " told apart by the images that each is given by chance in a first step, as in RELION."
        " Not RELION's: prior power by empirical Bayes in place of the power spectrum times T;"
        " the exact M-step unless m_step=diagonal; one prior of the poses for all classes."
    ),
    plan={"classes": 4},
)
