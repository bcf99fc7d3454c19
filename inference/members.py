"""The classes of a reconstruction, each with a model and a guide of its own, and their E-step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoprob.checks import InputError
from cryoprob.inference.guide import Guide
from cryoprob.inference.imaging import Imaging
from cryoprob.inference.statistics import PosteriorSummary, Statistics
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.point import Point
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.volumes.mixture import Mixture

__all__ = ["Expectation", "Member", "members"]


@dataclass(frozen=True, eq=False)
class Member:
    """One class as a model and a guide of its own; all but the volume is shared."""

    model: ParticleModel
    guide: Guide


@dataclass(frozen=True, eq=False)
class Expectation:
    """What an E-step gives: sums of the M-step class by class, and what was found of every image.

    Attributes
    ----------
    parts
        The sums of each class; residual, counts and the rest are of all classes, in all of them.
    shares
        Posterior of the classes, [N, K] (float64).
    summary
        Of every image: its log evidence over all classes, and the pose in its best class.
    imaging
        Of every image: contrast and defocus, where these are summed out.
    """

    parts: list[Statistics]
    shares: Tensor
    summary: PosteriorSummary
    imaging: Imaging | None = None

    @classmethod
    def of(cls, statistics: Statistics) -> "Expectation":
        """Of the only class."""
        summary = statistics.summary
        return cls([statistics], torch.ones_like(summary.bound)[:, None], summary)


def members(model: ParticleModel, guide: Guide) -> list[Member]:
    """The classes; the model and the guide themselves where there are none.

    Raises
    ------
    InputError
        If the volume is a :class:`Mixture` and the guide does not sum its classes out; or contrast
        or defocus of classes is a latent site.
    """
    volume = model.volume
    if not isinstance(volume, Mixture):
        return [Member(model, guide)]
    if not isinstance(guide.conformation, Exact):
        got = f"conformation {type(guide.conformation).__name__}"
        raise InputError("guide", expected="classes summed out (conformation=Exact())", got=got)
    found = []
    rest = model.rotation, model.shift, model.noise, model.pixel_size, model.known_contrast
    for part, own in zip(volume.volumes, guide.volume.coefficients.detach(), strict=True):
        alone = Guide(rotation=guide.rotation, shift=guide.shift, volume=Point(own))
        found.append(Member(ParticleModel(part, *rest), alone))
    return found
