"""Covariance of maps by least squares, as in ASPIRE."""

from cryoprob.inference.covariance_fit import CovarianceFit
from cryoprob.inference.presets.base import Built, Preset, Row, Scene
from cryoprob.inference.presets.linear import modes_by

__all__ = ["PRESET"]


def build(scene: Scene) -> Built:
    """The whole covariance once; its leading eigenvectors are the modes."""
    return modes_by(scene, CovarianceFit(scene.seed), 1)


PRESET = Preset(
    name="covariance",
    paper="Katsevich et al. 2015, SIAM J. Imaging Sci. 8, 126; Anden, Singer 2018, ibid. 11, 1441",
    row=Row("mean and covariance", "z of several numbers", "z", "least squares"),
    words=(
        "Mean and whole covariance of the maps by least squares on the images' second moments, by"
        " conjugate gradients; the leading eigenvectors are modes, and z is the Wiener estimate"
        " at these. For boxes up to 16 (--box 16), where the whole covariance can be held; noise"
        " from the residual of the mean, where ASPIRE has the images' corners; no shrinkage of"
        " eigenvalues; voxels of the band in place of ASPIRE's Bessel basis."
    ),
    config={"poses": "known"},
    plan={"zdim": 2, "max_radius": 5},
    build=build,
)
