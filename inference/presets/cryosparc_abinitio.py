"""cryoSPARC's ab initio reconstruction."""

from cryoprob.inference.presets.base import Preset, Row

__all__ = ["PRESET"]

PRESET = Preset(
    name="cryosparc-abinitio",
    paper="Punjani et al. 2017, Nat. Methods 14, 290",
    row=Row("Fourier voxels", "none", "rotation, shift", "EM, stochastic"),
    words=(
        "From nothing by stochastic EM over minibatches, poses summed out on a grid, band growing"
        " and solvent masked; the likelihood is tempered by a noise spectrum that starts at the"
        " images' power and follows the residual. Several starts, ranked by their evidence, where"
        " cryoSPARC has one; the M-step of a minibatch is blended with the map so far in place of"
        " momentum and a preconditioner; one class only; poses by grids in place of importance"
        " sampling. One step of refinement follows."
    ),
    plan={"max_iterations": 1},
)
