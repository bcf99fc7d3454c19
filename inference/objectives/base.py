"""Objectives: what a guide's free numbers are trained to raise, per image."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from cryoprob.fourier.gaussian_map import AnyMap, GaussianMap, mean_of
from cryoprob.inference.guide import Guide, Poses
from cryoprob.inference.treatments.known import Known
from cryoprob.models import sites
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import Batch

__all__ = ["Objective", "Terms", "log_terms"]


@dataclass(frozen=True, eq=False)
class Terms:
    """The two halves of ``log p(image, pose)``, each [K, N]."""

    prior: Tensor
    likelihood: Tensor


class Objective(ABC):
    """A number per image that training raises.

    Attributes
    ----------
    kind
        ``elbo``, ``iwae``, ``profile_log_joint``, or ``inclusive`` where it raises log q at
        known poses and is no statement about an image.
    """

    kind: str

    @abstractmethod
    def __call__(self, model: ParticleModel, guide: Guide, volume: AnyMap, batch: Batch) -> Tensor:
        """The objective of each image of the batch, [N], nats; its mean under a law of volumes."""

    def flipped(self, model: ParticleModel, guide: Guide, volume: AnyMap, batch: Batch) -> Tensor:
        """Images whose answer is what q says of them turned by 180 degrees, turned back, [N]."""
        return torch.zeros(len(batch.index), dtype=torch.bool, device=batch.image.device)

    def turned(self, index: Tensor, quarters: Tensor) -> "Objective":
        """The same where images ``index`` [N] come turned by 90 degrees ``quarters`` [N] times."""
        return self


def log_terms(
    model: ParticleModel, guide: Guide, volume: AnyMap, poses: Poses, batch: Batch
) -> Terms:
    """Log densities of the model's own sites, image by image, at drawn poses.

    The model is run under Pyro's handlers as it is; whatever sites it has inside the particle
    plate count, the given ones (``Known``) excepted. Under a law of volumes the likelihood is its
    mean, exactly.

    Raises
    ------
    InputError
        If model and guide have unlike sites.
    """
    guide.check(model)
    values = {site: getattr(poses, site) for site in guide.sites}
    values[sites.VOLUME] = mean_of(volume)
    trace = poutine.trace(poutine.condition(model, values)).get_trace(batch)
    given = {site for site, part in guide.sites.items() if isinstance(part, Known)}
    prior, likelihood = torch.zeros_like(poses.log_q), torch.zeros_like(poses.log_q)
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or name in given or not node["cond_indep_stack"]:
            continue
        law: Any = node["fn"]
        found = law.log_prob(node["value"])
        if name == sites.IMAGE:
            likelihood = likelihood + found
            if isinstance(volume, GaussianMap):
                slicer = model.linear_volume.slicer
                variance = volume.slice_variance(slicer, poses.rotation)
                likelihood = likelihood - law.log_prob_lost(variance)
        else:
            prior = prior + found
    return Terms(prior, likelihood)
