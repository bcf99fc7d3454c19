"""Every published system that the reviews name: the table behind ``cryoprob presets``.

Donnat et al. 2022, Tables 1 and 4; Sorzano and Carazo 2022 and others for the systems beside.
"""

from dataclasses import dataclass

from cryoprob.inference.presets.menu import PRESETS

__all__ = ["SYSTEMS", "System"]


@dataclass(frozen=True)
class System:
    """One row.

    Attributes
    ----------
    title
        As published.
    preset
        Its name on the command line; empty where there is none.
    volume, conformation, hidden, inference
        What its volume and conformation are, which local latents are inferred, and how.
    """

    title: str
    preset: str
    volume: str
    conformation: str
    hidden: str
    inference: str

    @property
    def ready(self) -> bool:
        """It can be run."""
        return self.preset in PRESETS


_TABLE = """
RELION Refine3D | relion-refine3d | Fourier voxels | - | R, t | EM
RELION Class3D | relion-class3d | K x Fourier voxels | class | R, t, k | EM
cryoSPARC ab initio | cryosparc-abinitio | K x Fourier voxels | class | R, t, k | EM, stochastic
cryoSPARC refine | cryosparc-refine | Fourier voxels | - | R, t | modal EM
cryoDRGN | cryodrgn | network | R^n | z | VAE
cryoDRGN-BNB | cryodrgn-bnb | network | R^n | R, t, z | modal EM; VAE
cryoDRGN2 | cryodrgn2 | network | R^n | R, t, z | modal EM; VAE
CryoFold | cryofold | residue Gaussians | R^n | z | VAE
3DFlex |  | voxels, mesh flow | R^n | z | variational EM
3DVA | 3dva | linear modes | R^K | z | modal EM
PPCA | ppca | linear modes | R^K | z | EM
Multi-body |  | masked sum | 6 / body | body poses | EM
CryoPoseNet | cryoposenet | real voxels | - | R | autoencoder
E2GMM | e2gmm | Gaussians | R^4 | z | autoencoder, fixed noise
FSTdiff | fstdiff | Fourier voxels, normal q | - | R, t | variational EM
CryoVAEGAN |  | 2-D network | latent | R (2-D) | VAE, adversarial
atomVAE | atomvae | atoms | R^n | R, t, z | VAE
CryoGAN |  | voxels | - | none | adversarial
Multi-CryoGAN |  | 3-D network | segment | none | adversarial
cryoAI | cryoai | network | - | R, t | autoencoder
cryoFIRE | cryofire | network | R^8 | R, t, z | autoencoder
spatial-VAE |  | 2-D network | R^n | R (2-D), t, z | VAE
ManifoldEM, ESPER |  | none | manifold | z | spectral
StructMap, AlphaCryo4D |  | given maps | embedding | z | MDS; autoencoder
Covariance (ASPIRE) | covariance | mean and covariance | R^K | z | least squares
Laplacian volumes |  | linear modes | manifold | coefficients | least squares
HEMNMA |  | pseudo-atoms, modes | R^K | R, t, z | modal EM
DeepHEMNMA |  | pseudo-atoms, modes | R^K | R, t, z | autoencoder, supervised
Hyper-molecules |  | polynomial basis | [0,1]^d | R, t, z | MCMC
Zernike3D |  | voxels, polynomial flow | R^K | z | modal EM
Method of moments |  | spherical harmonics | - | none | moments
CryoBIFE |  | given maps | path | populations | EM; NUTS
"""


def _rows() -> tuple[System, ...]:
    lines = (line.split("|") for line in _TABLE.strip().splitlines())
    return tuple(System(*(word.strip() for word in line)) for line in lines)


SYSTEMS = _rows()
"""All of them, in the order of the table."""
