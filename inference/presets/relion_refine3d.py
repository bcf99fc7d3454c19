"""RELION's 3D auto-refine."""

from cryoprob.inference.presets.base import Preset, Row

__all__ = ["PRESET"]

PRESET = Preset(
    name="relion-refine3d",
    paper="Scheres 2012, J. Struct. Biol. 180, 519; Zivanov et al. 2018, eLife 7, e42166",
    row=Row("Fourier voxels", "none", "rotation, shift", "EM"),
    words=(
        "Poses summed out on nested HEALPix grids, coarse to fine, keeping 0.999 of the mass; two"
        " independent halves whose FSC sets the prior power; noise spectra per optics group;"
        " bands and grids that grow with the resolution; the diagonal M-step, which is RELION's"
        " and not the maximizer. Not RELION's: coarse scores count what a cell leaves open as"
        " noise; no local searches with Gaussian priors around earlier poses; no norm"
        " correction unless contrast=true."
    ),
    config={"half_sets": True},
    plan={"m_step": "diagonal", "mass": 0.999},
)
