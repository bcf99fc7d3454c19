"""cryoSPARC's homogeneous refinement."""

from cryoprob.inference.presets.base import Preset, Row

__all__ = ["PRESET"]

PRESET = Preset(
    name="cryosparc-refine",
    paper="Punjani et al. 2017, Nat. Methods 14, 290",
    row=Row("Fourier voxels", "none", "rotation, shift", "modal EM"),
    words=(
        "The best pose of every image by branch and bound over a subdivided grid with frequency"
        " marching, under the paper's probabilistic bound of the high frequencies; half sets and"
        " their FSC for the prior power; the diagonal M-step. Not cryoSPARC's: the bound of the"
        " supplement is reproduced in form, its constants are its own; no non-uniform"
        " regularization; poses end on the grid unless polish is set."
    ),
    config={"family": "modal-em", "half_sets": True},
    plan={"bound": "probable", "m_step": "diagonal"},
)
