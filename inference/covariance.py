"""The full covariance of the molecule's maps by least squares, at known poses, in small boxes.

For images ``x_i = A_i V_i + noise``, ``V_i ~ (mu, Sigma)`` of any law, the empirical covariance of
each image is fitted by that of its model: no normal law is assumed and no rank. Katsevich,
Katsevich and Singer 2015, SIAM J. Imaging Sci. 8, 126; Anden and Singer 2018, SIAM J. Imaging
Sci. 11, 1441 (ASPIRE).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.shells import shell_index_3d
from cryoprob.fourier.slices import Slicer
from cryoprob.fourier.transforms import ifft3
from cryoprob.inference.conjugate_gradients import conjugate_gradients
from cryoprob.inference.e_step import chunks
from cryoprob.inference.guide import Guide
from cryoprob.inference.linear_posterior import known_poses
from cryoprob.inference.statistics import reals
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack
from cryoprob.types import Maps

__all__ = [
    "CovarianceEstimate",
    "estimate_covariance",
    "fourier_basis",
    "least_squares_covariance",
    "least_squares_mean",
]

_LARGEST = 16
_SHARE = 256


@dataclass(frozen=True, eq=False)
class CovarianceEstimate:
    """Mean and covariance of maps in an orthonormal basis of d band-limited ones.

    Attributes
    ----------
    basis
        [d, D, D, D].
    mean
        Coordinates, [d].
    covariance
        [d, d]; symmetric, and not positive where noise rules.
    iterations
        Conjugate-gradient steps taken.
    """

    basis: Maps
    mean: Tensor
    covariance: Tensor
    iterations: int

    def mean_map(self) -> Maps:
        """[D, D, D]."""
        return torch.einsum("d,dzyx->zyx", self.mean, self.basis)

    def modes(self, count: int) -> Maps:
        """The leading eigenvectors times the roots of their eigenvalues, [count, D, D, D]."""
        values, vectors = torch.linalg.eigh(self.covariance)
        scaled = vectors * values.clamp(min=0).sqrt()
        return torch.einsum("dk,dzyx->kzyx", scaled[:, -count:].flip(1), self.basis)


def estimate_covariance(
    model: ParticleModel,
    guide: Guide,
    stack: ParticleStack,
    index: Tensor | None = None,
    *,
    ridge: float = 0.0,
    mean_ridge: float = 0.0,
    tolerance: float = 1e-5,
    max_iterations: int = 200,
    memory: int = 2**31,
) -> CovarianceEstimate:
    """Covariance of the maps that images ``index`` (default all) show at known poses.

    Images are whitened by the model's noise; maps are sought in the model's band. Nothing is
    asked of the volume. In float64: second moments of few images are an ill-posed problem.

    Parameters
    ----------
    ridge, mean_ridge
        Penalties of squares, per image: of the covariance in units of what an image adds to the
        diagonal of the normal equations, and of the mean's coordinates.
    tolerance, max_iterations
        Of the conjugate gradients.
    memory
        Bytes that the images' operators may take.

    Raises
    ------
    InputError
        If poses are not known, the box is larger than 16, or the operators do not fit.
    """
    index = torch.arange(len(stack)) if index is None else index.cpu()
    got = str(stack.box)
    remedy = "Crop the images (ParticleStack.read(box=16)), or fit LinearModes."
    small = stack.box <= _LARGEST
    require(small, "box", expected=f"{_LARGEST} or less", got=got, remedy=remedy)
    basis = fourier_basis(stack.box, model.band.radius).to(model.noise.sigma2.device)
    need = len(index) * 2 * len(model.band) * len(basis) * basis.element_size()
    require(
        need <= memory,
        "operators of the images",
        expected=f"{memory / 2**20:.0f} MiB or less",
        got=f"{need / 2**20:.0f} MiB",
        remedy="Use fewer images, a smaller band (set_band), or more memory.",
    )
    with torch.no_grad():
        parts = _whitened(model, guide, stack, index, basis)
        operators, images = (torch.cat(part) for part in zip(*parts, strict=True))
        mean = least_squares_mean(operators, images, ridge=mean_ridge)
        diagonal = operators.square().sum(1)
        found, steps = least_squares_covariance(
            operators,
            images - operators @ mean,
            ridge=ridge * float((diagonal.mean(0) ** 2).mean()),
            tolerance=tolerance,
            max_iterations=max_iterations,
        )
    return CovarianceEstimate(basis, mean, found, steps)


def least_squares_mean(operators: Tensor, images: Tensor, *, ridge: float = 0.0) -> Tensor:
    """``argmin_mu sum_i |x_i - A_i mu|^2 / n + ridge |mu|^2``, [d]; of many the smallest.

    Parameters
    ----------
    operators
        ``A_i``, [n, p, d].
    images
        ``x_i``, [n, p].
    """
    n, _, d = operators.shape
    flat = operators.flatten(0, 1)
    normal = flat.T @ flat / n + ridge * torch.eye(d).to(flat)
    found: Tensor = torch.linalg.pinv(normal, hermitian=True) @ (flat.T @ images.flatten()) / n
    return found


def least_squares_covariance(
    operators: Tensor,
    residuals: Tensor,
    *,
    sigma2: float = 1.0,
    ridge: float = 0.0,
    tolerance: float = 1e-5,
    max_iterations: int = 200,
) -> tuple[Tensor, int]:
    """Least squares for the covariance of maps seen through operators.

    Minimizes ``sum_i |r_i r_i^T - A_i Sigma A_i^T - sigma2 I|_F^2 / n + ridge |Sigma|_F^2`` by
    conjugate gradients on ``sum_i G_i Sigma G_i / n + ridge Sigma = B``, with ``G_i = A_i^T A_i``.

    Parameters
    ----------
    operators
        ``A_i``, [n, p, d].
    residuals
        ``r_i = x_i - A_i mu``, [n, p].
    sigma2
        Variance of the noise of every number of ``r_i`` that ``A_i`` reaches.
    ridge
        Penalty; 0 for none.

    Returns
    -------
    Tensor, int
        Sigma, [d, d], and the steps taken.
    """
    n = len(operators)
    flat = operators.flatten(0, 1)
    seen = torch.einsum("npd,np->nd", operators, residuals)
    right = (seen.T @ seen - sigma2 * flat.T @ flat) / n
    energy = operators.square().sum(1)
    weight = energy.T @ energy / n + ridge
    weight = weight + 1e-3 * weight.mean()

    def operate(matrix: Tensor) -> Tensor:
        found = ridge * matrix
        for part in operators.split(_SHARE):
            inner = part @ matrix @ part.mT
            found = found + part.flatten(0, 1).T @ (inner @ part).flatten(0, 1) / n
        return found

    start = torch.zeros_like(right)
    found, steps = conjugate_gradients(
        operate, right, start, lambda matrix: matrix / weight, tolerance, max_iterations
    )
    return (found + found.T) / 2, steps


def fourier_basis(box: int, radius: int) -> Maps:
    """Orthonormal maps that span those of shells up to ``radius``, [d, D, D, D] (float64).

    Cosines and sines, by shell.
    """
    shell = shell_index_3d(box)
    k = torch.arange(box) - box // 2
    flat = (k[:, None, None] * box + k[:, None]) * box + k
    upper = ((shell <= radius) & (flat >= 0)).nonzero()
    upper = upper[torch.argsort(shell[tuple(upper.T)], stable=True)]
    spectra = torch.zeros(len(upper), box, box, box, dtype=torch.complex128)
    spectra[(torch.arange(len(upper)), *upper.T)] = 1
    waves = ifft3(spectra)
    pairs = torch.view_as_real(waves).movedim(-1, 1) * 2**0.5
    pairs[0, 0] /= 2**0.5  # the mean has no partner
    return pairs.flatten(0, 1)[torch.arange(2 * len(upper)) != 1]


def _whitened(
    model: ParticleModel, guide: Guide, stack: ParticleStack, index: Tensor, basis: Maps
) -> list[tuple[Tensor, Tensor]]:
    """Operators [n, p, d] and images [n, p] of unit noise, shifted back to the center.

    Numbers that the CTF hides are zero in both.
    """
    poses, found = known_poses(guide), []
    slicer = Slicer(model.band, dtype=basis.dtype, device=basis.device)
    for images in chunks(model, stack, index):
        rotation, shift = (values[images.index].to(basis) for values in poses)
        root = images.transfer.to(basis).sqrt()
        phase = shift_phase(model.band, shift, model.pixel_size)
        safe = torch.where(root > 0, root, torch.ones_like(root))
        values = reals(images.image * phase.conj() / safe)
        columns = [reals(slicer.slices(one, rotation) * root) for one in basis]
        found.append((torch.stack(columns, -1), values))
    return found
