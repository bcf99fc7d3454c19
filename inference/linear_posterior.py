"""The exact normal posterior of conformations that slices are an affine function of.

With slices ``U_0 + sum_k z_k U_k`` and a normal prior of z, an image's log joint is quadratic in
z: the posterior and the evidence are closed. Tagare et al. 2015, J. Struct. Biol. 191, 245.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import log, pi

import torch
from torch import Tensor

from cryoprob.checks import InputError, require
from cryoprob.inference.dense import blocks
from cryoprob.inference.e_step import chunks
from cryoprob.inference.filtered import Filtered
from cryoprob.inference.guide import Guide
from cryoprob.inference.slice_errors import SliceErrors
from cryoprob.inference.statistics import reals
from cryoprob.inference.treatments.known import Known
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.volumes.base import Volume
from cryoprob.models.volumes.linear_modes import LinearModes
from cryoprob.particles import ParticleStack
from cryoprob.types import Coefficients, Rotations, Shifts

__all__ = [
    "LinearPosterior",
    "Scored",
    "components",
    "known_poses",
    "latents",
    "linear_modes_of",
    "linear_posterior",
    "prior_scale",
    "scored",
]

_BYTES = 2**27


@dataclass(frozen=True, eq=False)
class LinearPosterior:
    """Normal posteriors of the conformations of n images, all in float64.

    Attributes
    ----------
    mean, covariance
        [n, K] and [n, K, K].
    log_evidence
        log p(image | pose, coefficients), z integrated out, nats over all pixels, [n].
    log_joint
        log p(image, z) at the mean, which is the mode too, [n].
    """

    mean: Tensor
    covariance: Tensor
    log_evidence: Tensor
    log_joint: Tensor

    def modal(self) -> "LinearPosterior":
        """Diracs at the modes: no covariance, and the log joint for the evidence."""
        nothing = torch.zeros_like(self.covariance)
        return LinearPosterior(self.mean, nothing, self.log_joint, self.log_joint)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Means of ``w = (1, z)``, [n, 1 + K], and of ``w w^T``, [n, 1 + K, 1 + K]."""
        first = torch.nn.functional.pad(self.mean, (1, 0), value=1.0)
        second = first[:, :, None] * first[:, None, :]
        second[:, 1:, 1:] += self.covariance
        return first, second


@dataclass(frozen=True, eq=False)
class Scored:
    """Some images of one optics group, their slices and their posteriors.

    Attributes
    ----------
    images
        n of them.
    rotation, shift
        Their poses, [n, 3, 3] and [n, 2] (Angstrom).
    numerator
        The filtered images shifted back, [n, m] complex.
    slices
        Of all components, [1 + K, n, m].
    posterior
        Of their conformations.
    errors
        Covariances of the slices, [n, 1 + K, 1 + K, m], where components are not known for
        certain.
    """

    images: Filtered
    rotation: Rotations
    shift: Shifts
    numerator: Coefficients
    slices: Coefficients
    posterior: LinearPosterior
    errors: Tensor | None = None


def linear_posterior(
    image: Coefficients,
    transfer: Tensor,
    noise_only: Tensor,
    slices: Coefficients,
    precision: Tensor,
    errors: Tensor | None = None,
) -> LinearPosterior:
    """Posteriors of z, where an image's slice is ``U_0 + sum_k z_k U_k``.

    Parameters
    ----------
    image
        ``c x / sigma2``, shifted back to the center, [n, m] complex.
    transfer
        ``c^2 / sigma2``, [n, m].
    noise_only
        Log density of the images under noise alone, [n] (float64).
    slices
        ``U``, [1 + K, n, m] complex.
    precision
        Of the prior ``z ~ N(0, diag(1 / precision))``, [K]; 0 is flat, and counts nothing in
        ``log_joint``.
    errors
        Where the components are normal and not known: ``Cov(U_a, U_b)``, [n, 1 + K, 1 + K, m];
        densities are then the exponentials of mean logs. Default none.
    """
    basis = reals(slices).movedim(0, 1)
    gram = (reals(slices * transfer).movedim(0, 1) @ basis.mT).double()
    if errors is not None:
        gram += torch.einsum("nm,nabm->nab", transfer, errors).double()
    linear = (reals(image)[:, None] @ basis.mT)[:, 0].double()
    precision = precision.double()
    force = linear[:, 1:] - gram[:, 0, 1:]
    root = torch.linalg.cholesky(gram[:, 1:, 1:] + torch.diag(precision))
    mean = torch.cholesky_solve(force[..., None], root)[..., 0]
    unit = torch.eye(len(precision), dtype=root.dtype, device=root.device)
    covariance = torch.cholesky_solve(unit.expand_as(root), root)
    half_log = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    proper = precision[precision > 0]
    peak = noise_only + linear[:, 0] - gram[:, 0, 0] / 2 + (force * mean).sum(-1) / 2
    peak = peak + (proper / (2 * pi)).log().sum() / 2
    return LinearPosterior(mean, covariance, peak - half_log + len(unit) * log(2 * pi) / 2, peak)


def components(volume: Volume, coefficients: Tensor, rotation: Rotations) -> Coefficients:
    """Slices [1 + K, *, m] whose combination ``U_0 + sum_k z_k U_k`` is the volume's slice at z.

    Raises
    ------
    InputError
        If the volume is not linear in the conformation.
    """
    require(
        volume.linear_in_conformation,
        "volume",
        expected="one that is linear in the conformation (LinearModes)",
        got=type(volume).__name__,
        remedy="Use PerImage or Amortized for the conformation.",
    )
    if isinstance(volume, LinearModes):
        return volume.component_slices(coefficients, rotation)
    size = volume.conformation_size
    states = torch.eye(1 + size, dtype=rotation.dtype, device=rotation.device)[:, 1:]
    inner = (1,) * (rotation.dim() - 2)
    found = volume.slices(coefficients, rotation[None], states.reshape(1 + size, *inner, size))
    return torch.cat([found[:1], found[1:] - found[:1]])


def prior_scale(model: ParticleModel) -> Tensor:
    """Standard deviations of the model's normal conformations, [K].

    Raises
    ------
    InputError
        If their prior is another one.
    """
    part = model.conformation
    if isinstance(part, GaussianConformation):
        return part.scale
    raise InputError(
        "conformation",
        expected="a normal prior (GaussianConformation)",
        got="none" if part is None else type(part).__name__,
    )


def scored(
    model: ParticleModel,
    guide: Guide,
    stack: ParticleStack,
    index: Tensor,
    *,
    modes: bool = True,
    flat: bool = False,
    covariance: Tensor | None = None,
) -> Iterator[Scored]:
    """Images ``index`` at their known poses, some of one optics group at a time.

    Parameters
    ----------
    modes
        False leaves all components but the first away.
    flat
        No prior of z.
    covariance
        Of the components' modes, [S, 1 + K, 1 + K], where they are not known for certain.

    Raises
    ------
    InputError
        If poses are not known, or the conformation's posterior is not normal.
    """
    poses = known_poses(guide)
    volume = guide.volume.coefficients.detach()
    precision = prior_scale(model).double() ** -2 * (not flat)
    if not modes:
        volume, precision = volume[:1], precision[:0]
    doubt = None
    if covariance is not None:
        doubt = SliceErrors.of(linear_modes_of(model).slicer, covariance.to(model.noise.sigma2))
    count = 1 + len(precision)
    each = 40 * count + (0 if doubt is None else 24 * count**2)
    for chunk in chunks(model, stack, index):
        for part in blocks(len(chunk), max(1, _BYTES // (each * len(model.band)))):
            images = chunk.take(part)
            rotation, shift = (values[images.index] for values in poses)
            phase = shift_phase(model.band, shift, model.pixel_size)
            back = (images.image * phase.conj()).resolve_conj()
            slices = components(model.volume, volume, rotation)
            data = back, images.transfer, images.noise_only
            errors = None if doubt is None else doubt(rotation)
            found = linear_posterior(*data, slices, precision, errors)
            yield Scored(images, rotation, shift, back, slices, found, errors)


def linear_modes_of(model: ParticleModel) -> LinearModes:
    """The model's volume.

    Raises
    ------
    InputError
        If it is another one than linear modes.
    """
    if isinstance(model.volume, LinearModes):
        return model.volume
    got = type(model.volume).__name__
    raise InputError("volume", expected="linear modes (LinearModes)", got=got)


def latents(
    model: ParticleModel,
    guide: Guide,
    stack: ParticleStack,
    index: Tensor | None = None,
    covariance: Tensor | None = None,
    *,
    flat: bool = False,
) -> LinearPosterior:
    """Posteriors of the conformations of images ``index`` (default all) at the guide's volume.

    Where the components are not known for certain, ``covariance`` [S, 1 + K, 1 + K] is theirs.
    With ``flat`` there is no prior of z.

    Raises
    ------
    InputError
        As :func:`scored`.
    """
    index = torch.arange(len(stack)) if index is None else index.cpu()
    with torch.no_grad():
        found = scored(model, guide, stack, index, flat=flat, covariance=covariance)
        parts = [(one.images.index, one.posterior) for one in found]
    order = torch.argsort(torch.cat([rows for rows, _ in parts]))
    order = order[torch.argsort(torch.argsort(index)).to(order.device)]
    names = "mean", "covariance", "log_evidence", "log_joint"
    return LinearPosterior(
        *(torch.cat([getattr(part, name) for _, part in parts])[order] for name in names)
    )


def known_poses(guide: Guide) -> tuple[Rotations, Shifts]:
    """The given poses of all images.

    Raises
    ------
    InputError
        If there are none.
    """
    if isinstance(guide.rotation, Known) and isinstance(guide.shift, Known):
        return guide.rotation.values, guide.shift.values
    raise InputError(
        "guide",
        expected="known poses",
        got=f"rotation {type(guide.rotation).__name__}, shift {type(guide.shift).__name__}",
        remedy="Use Known(rotation) and Known(shift).",
    )
