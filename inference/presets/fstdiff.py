"""FSTdiff: variational inference of the map and of every image's pose."""

from cryoprob.inference.presets.base import Preset, Row

__all__ = ["PRESET"]

PRESET = Preset(
    name="fstdiff",
    paper="Ullrich et al. 2019, Differentiable probabilistic models of scientific imaging with"
    " the Fourier slice theorem, UAI",
    row=Row("Fourier voxels, each with a normal q", "none", "rotation, shift", "variational EM"),
    words=(
        "A normal q of every Fourier mode and, image by image, a concentrated q of the rotation."
        " Expected scores and the best widths of the map's modes are exact here, where the paper"
        " draws samples; poses are raised by natural gradients from a search, where the paper has"
        " plain gradients through the interpolation; the noise is learned."
    ),
    config={"family": "svi"},
    plan={"volume": "gaussian"},
)
