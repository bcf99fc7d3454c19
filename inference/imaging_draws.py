"""Contrast and defocus of images under a q that is drawn from: what they are at each draw."""

import torch
from torch import Tensor

from cryoprob.inference.half import Half
from cryoprob.inference.imaging import Imaging
from cryoprob.inference.objectives.base import Terms, log_terms
from cryoprob.models import sites
from cryoprob.particles import Batch

__all__ = ["note_imaging"]


def note_imaging(found: Imaging, half: Half, batch: Batch, draws: int) -> None:
    """Write what the contrasts and defoci of a batch are under the half's q.

    What is summed out has its exact posterior at every draw of the other sites; means and
    standard deviations are those of the draws' mixture.
    """
    model, guide = half.model, half.guide
    poses = guide.draw(batch, draws)
    terms = log_terms(model, guide, guide.volume.coefficients.detach(), poses, batch)
    share, _ = guide.shares(poses, terms.prior + terms.potential, terms.likelihood)
    weight = torch.softmax(terms.joint.double(), 0) * share.double().exp()  # [J, K, N]
    if model.defocus is not None:
        nodes = model.defocus.points[:, None, None]
        place = nodes if poses.defocus is None else poses.defocus
        moments = _moments(weight, place.double())
        found.note(sites.DEFOCUS, batch.index, *moments)
    if sites.CONTRAST in model.local_priors:
        mean, variance = _contrast(terms, poses.contrast)
        moments = _moments(weight, mean.double() - 1, variance)
        found.note(sites.CONTRAST, batch.index, *moments, around=1)


def _contrast(terms: Terms, drawn: Tensor | None) -> tuple[Tensor, Tensor | float]:
    """The contrast's means at the draws, and variances about these."""
    if terms.contrast is not None:
        return terms.contrast.mean, terms.contrast.variance.double()
    assert drawn is not None
    return drawn, 0.0


def _moments(
    weight: Tensor, value: Tensor, variance: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """Means and mean squares [N] of values over nodes and draws, [J, K, N]."""
    return (weight * value).sum((0, 1)), (weight * (value**2 + variance)).sum((0, 1))
