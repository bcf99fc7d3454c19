"""The end of a fit of linear modes: principal axes, every image's coordinates, maps along them."""

import torch
from torch import Tensor

from cryoprob.inference.build import noise_log_density
from cryoprob.inference.finish import verdict
from cryoprob.inference.half import Half
from cryoprob.inference.joint_finish import states_of, summary_at
from cryoprob.inference.latent import collapse
from cryoprob.inference.linear_modes_em import ModesState, principal
from cryoprob.inference.linear_posterior import known_poses, linear_modes_of, prior_scale
from cryoprob.inference.modes_m_step import BlockEquations, determined
from cryoprob.inference.modes_statistics import modes_e_step
from cryoprob.inference.result import FitResult
from cryoprob.particles import ParticleStack

__all__ = ["finish_modes", "turn_to_axes"]

_NOTHING = 1e-6
"""Standard deviation of a mode that has vanished, in units of the first one's."""


def turn_to_axes(half: Half) -> Tensor:
    """Turn a half's modes to their principal axes, most variance first, in place.

    All modes get the norm of the first, so that coordinates differ as much as their maps do; the
    prior has the standard deviations that they then have, [K], which are returned.
    """
    point, prior = half.guide.volume.coefficients, prior_scale(half.model)
    axes = principal(point.data, prior)
    ratio = axes.singular_values / axes.singular_values[0].clamp(min=_NOTHING)
    ratio = ratio.clamp(min=_NOTHING).to(prior)
    point.data = axes.coefficients
    point.data[1:] /= ratio[:, None, None, None]
    prior.copy_(ratio)
    return ratio


def finish_modes(
    state: ModesState, stack: ParticleStack, *, hard: bool = False, flat: bool = False
) -> FitResult:
    """Exact posteriors of the coordinates along the principal axes, and maps.

    ``mode_1`` ... are the maps' standard deviations along the axes. After a fit that was ``hard``
    the coordinates are Diracs at the posteriors' modes, and without a prior if it was ``flat``.
    """
    half = state.half
    model, point = half.model, half.guide.volume.coefficients
    whose = model, half.guide, stack
    found = modes_e_step(*whose, hard=hard, flat=flat, covariance=state.covariance)
    tau2 = linear_modes_of(model).tau2
    numbers = determined(BlockEquations.of(found), point.data, tau2)
    numbers += flat * found.mean.numel()  # fitted, too
    kind = "profile_log_joint" if hard else "log_evidence"
    axes = principal(point.data, prior_scale(model))
    unit = turn_to_axes(half)
    mean = axes.latent(found.mean) * unit.to(found.mean)
    spread = axes.covariance(found.covariance).diagonal(dim1=1, dim2=2).sqrt()
    spread = spread * unit.to(spread)
    with torch.no_grad():
        states = states_of(half, mean, spread)
        volume = model.volume.density(point.data, mean.mean(0).to(point))
    for k, mode in enumerate(point.data[1:], 1):
        states.maps[f"mode_{k}"] = (unit[k - 1] * mode).cpu()
    rotation, shift = known_poses(half.guide)
    told, noise = collapse(mean, spread), noise_log_density(stack)
    posterior = summary_at(found.common.summary.bound, rotation, shift)
    return FitResult(
        volume=volume.cpu(),
        volume_std=None,
        pixel_size=stack.pixel_size,
        resolution_A=model.band.box * stack.pixel_size / model.band.radius,
        criterion="the band of the fit; no half sets",
        posterior=posterior,
        history=state.history,
        trust=f"{verdict(posterior, noise, [], True, kind, numbers)} {told}".rstrip(),
        fitted=half,
        states=states,
    )
