"""Contrast and defocus of images under a q that is drawn from: what they are at each draw."""

import torch
from torch import Tensor

from cryoprob.inference.half import Half
from cryoprob.inference.imaging import Imaging
from cryoprob.inference.objectives.base import Terms, log_terms
from cryoprob.models import sites
from cryoprob.particles import Batch

__all__ = ["note_imaging"]

_DRAWS = 8
"""Of poses and conformation, where q has a density: it hardly moves what an image is seen with."""


def note_imaging(found: Imaging, half: Half, batch: Batch) -> None:
    """Write what the contrasts and defoci of a batch are under the half's q.

    What is summed out has its exact posterior at every draw of the other sites; means and
    standard deviations are those of the draws' mixture.
    """
    model, guide = half.model, half.guide
    poses = guide.draw(batch, _DRAWS)
    terms = log_terms(model, guide, guide.volume.coefficients.detach(), poses, batch)
    share, _ = guide.shares(poses, terms.prior, terms.likelihood)
    weight = torch.softmax(terms.joint.double(), 0) * share.double().exp()  # [J, K, N]
    if model.defocus is not None:
        nodes = model.defocus.points[:, None, None]
        place = nodes if poses.defocus is None else poses.defocus
        _note(found, sites.DEFOCUS, batch, weight, place.double(), 0.0)
    if sites.CONTRAST in model.local_priors:
        _note(found, sites.CONTRAST, batch, weight, *_contrast(terms, poses.contrast))


def _contrast(terms: Terms, drawn: Tensor | None) -> tuple[Tensor, float, Tensor | float]:
    """Distances of the contrast's means from 1, that, and variances about these means."""
    if terms.contrast is not None:
        return terms.contrast.mean.double() - 1, 1.0, terms.contrast.variance.double()
    assert drawn is not None
    return drawn.double() - 1, 1.0, 0.0


def _note(
    found: Imaging,
    site: str,
    batch: Batch,
    weight: Tensor,
    away: Tensor,
    around: float,
    variance: Tensor | float = 0.0,
) -> None:
    mean = (weight * away).sum((0, 1))
    square = (weight * (away**2 + variance)).sum((0, 1))
    found.note(site, batch.index, mean, square, around)
