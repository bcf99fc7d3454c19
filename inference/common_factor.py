"""The factor that a map and the contrasts of its images can trade: who takes it up."""

import torch
from torch import Tensor

from cryoprob.inference.amplitude_law import AmplitudeLaw, expanded_scale
from cryoprob.inference.half import Half
from cryoprob.inference.imaging import Imaging

__all__ = ["common_factor", "rescale"]


def rescale(half: Half, found: Imaging, *, free: bool) -> None:
    """Let the map of a half take up the factor that its images' contrasts have in common.

    A part of the M-step, after that of the map; see
    :func:`~cryoprob.inference.amplitude_law.expanded_scale`. Where the prior power is estimated,
    too (``free``), it goes along with the map: it must not say how large contrasts are. So does
    the solution, of which that power is estimated. A map with a q stays as it is.

    With a free prior power the factor tends to the one by which the M-step shrinks its map (1 for
    many images), and so do the contrasts: images agree with a map that they have made themselves.
    """
    map_, prior = half.guide.volume.coefficients.data, half.model.volume.prior()
    away = float(prior.log_prob(torch.zeros_like(map_)) - prior.log_prob(map_))
    scale = common_factor(half, found, half.index, 0.0 if free else away)
    if scale == 1:
        return
    half.guide.volume.coefficients.data = scale * map_
    half.solutions = [one.scaled(scale) for one in half.solutions]
    if free:
        half.model.linear_volume.tau2.mul_(scale**2)


def common_factor(half: Half, found: Imaging, index: Tensor, divergence: float = 0.0) -> float:
    """The factor on a half's map that lets the contrasts of images ``index`` be as their prior.

    1 where the contrasts are given, and where the map has a q. ``divergence`` is that of
    :func:`~cryoprob.inference.amplitude_law.expanded_scale`.
    """
    law = AmplitudeLaw.of(half.model)
    if law is None or half.guide.volume.has_density:
        return 1.0
    return expanded_scale(law, found.contrast[index], found.contrast_std[index], divergence)
