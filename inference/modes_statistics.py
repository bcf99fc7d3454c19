"""Sums over images that the M-step of linear modes needs, streamed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoprob.fourier.normal import Insertion
from cryoprob.inference.guide import Guide
from cryoprob.inference.linear_posterior import (
    LinearPosterior,
    Scored,
    linear_modes_of,
    scored,
)
from cryoprob.inference.statistics import PosteriorSummary, Statistics
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack

__all__ = ["ModesStatistics", "modes_e_step"]


@dataclass(eq=False)
class ModesStatistics:
    """Sufficient statistics of the components V_0 ... V_K, with ``w = (1, z)``.

    Attributes
    ----------
    common
        What does not depend on the number of modes; its insertion is the block of the mean.
    blocks
        Insertions for each pair a <= b of components: weights ``E[w_a w_b] c^2 / sigma2``, and
        for (0, b) the numerators ``E[w_b] c x / sigma2``.
    mean, covariance
        Posteriors of all N conformations, [N, K] and [N, K, K] (float64); zero where not seen.
    """

    common: Statistics
    blocks: dict[tuple[int, int], Insertion]
    mean: Tensor
    covariance: Tensor


def modes_e_step(
    model: ParticleModel,
    guide: Guide,
    stack: ParticleStack,
    index: Tensor | None = None,
    *,
    modes: bool = True,
    hard: bool = False,
    flat: bool = False,
    covariance: Tensor | None = None,
) -> ModesStatistics:
    """Exact posteriors of the conformations at known poses, and the M-step's sums.

    Parameters
    ----------
    index
        Images, default all.
    modes
        False leaves all components but the mean away.
    hard
        Take the posteriors' modes for certain: no covariance, and the bound is a log joint.
    flat
        No prior of z.
    covariance
        Of the components' modes, [S, 1 + K, 1 + K], where they are not known for certain.

    Raises
    ------
    InputError
        If poses are not known, or the volume or its conformation is another one.
    """
    index = torch.arange(len(stack)) if index is None else index.cpu()
    with torch.no_grad():
        to = _nothing_yet(model, len(stack), modes)
        options = {"modes": modes, "flat": flat}
        for part in scored(model, guide, stack, index, covariance=covariance, **options):
            to.common.add_power(part.images, model.noise.sigma2)
            posterior = part.posterior.modal() if hard else part.posterior
            _collect(model, part, posterior, to)
    return to


def _nothing_yet(model: ParticleModel, count: int, modes: bool) -> ModesStatistics:
    sigma2, volume = model.noise.sigma2, linear_modes_of(model)
    size = volume.conformation_size if modes else 0
    pairs = [(a, b) for b in range(1 + size) for a in range(b + 1)]
    blocks = {pair: Insertion(volume.slicer) for pair in pairs}
    common = Statistics(
        blocks[0, 0],
        PosteriorSummary.empty(count, sigma2.dtype, sigma2.device),
        torch.zeros_like(sigma2, dtype=torch.float64),
        torch.zeros_like(sigma2[:, 0], dtype=torch.float64),
        sigma2.new_zeros(count, dtype=torch.float64),
        sigma2.new_zeros((), dtype=torch.float64),
        torch.zeros_like(sigma2, dtype=torch.float64),
    )
    mean = torch.zeros(count, size, dtype=torch.float64, device=sigma2.device)
    return ModesStatistics(common, blocks, mean, mean.new_zeros(count, size, size))


def _collect(
    model: ParticleModel,
    part: Scored,
    posterior: LinearPosterior,
    to: ModesStatistics,
) -> None:
    """Insert some images into every block; their expected residuals and summaries."""
    first, second = (v.to(part.images.transfer) for v in posterior.moments())
    expected = torch.einsum("na,anm->nm", first.to(part.slices), part.slices)
    power = expected.abs().square() + _variance(part.slices, posterior.covariance)
    if part.errors is not None:
        power += torch.einsum("nab,nabm->nm", second, part.errors)
    images, group = part.images, int(part.images.group[0])
    sums = (part.numerator, images.transfer, expected, power / 2, part.rotation)
    to.common.add_slices(group, *sums, model.band, model.noise.sigma2[group])
    nothing = torch.zeros_like(part.numerator)
    for (a, b), insertion in to.blocks.items():
        if b:
            numerator = part.numerator * first[:, b, None] if a == 0 else nothing
            insertion.add(numerator, images.transfer * second[:, a, b, None], part.rotation)
    to.mean[images.index], to.covariance[images.index] = posterior.mean, posterior.covariance
    cross = (part.numerator.conj() * expected).real.sum(-1)
    energy = torch.linalg.vecdot(images.transfer, power)
    _summarize(part, posterior, cross, energy, to)


def _summarize(
    part: Scored, posterior: LinearPosterior, cross: Tensor, energy: Tensor, to: ModesStatistics
) -> None:
    to.common.shift_power += part.shift.square().double().sum()
    summary = PosteriorSummary(
        bound=posterior.log_evidence,
        rotation=part.rotation,
        shift=part.shift,
        probability=torch.ones_like(cross),
        entropy=torch.zeros_like(cross),
        cross=cross,
        energy=energy,
    )
    to.common.summary.put(part.images.index, summary)


def _variance(slices: Tensor, covariance: Tensor) -> Tensor:
    """Posterior variance of slices, [n, m], of conformations of covariance [n, K, K]."""
    total = torch.zeros_like(slices[0].real)
    covariance = covariance.to(total)
    for k in range(covariance.shape[-1]):
        here = torch.einsum("nl,lnm->nm", covariance[:, k].to(slices), slices[1:])
        total += (here.conj() * slices[1 + k]).real
    return total
