"""Objectives: what a guide's free numbers are trained to raise, per image."""

from abc import ABC, abstractmethod
from copy import copy
from dataclasses import dataclass
from typing import Any, Self

import torch
from pyro import poutine
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.gaussian_map import AnyMap, GaussianMap, mean_of
from cryoprob.inference.guide import Guide, Poses
from cryoprob.inference.treatments.known import Known
from cryoprob.models import sites
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import Batch

__all__ = ["Objective", "Terms", "Weighed", "log_terms"]


@dataclass(frozen=True, eq=False)
class Terms:
    """The two halves of ``log p(image, pose)``, each [K, N]."""

    prior: Tensor
    likelihood: Tensor

    def over(self, poses: Poses, beta: float = 1.0) -> Tensor:
        """``log p(image | pose) - beta (log q(pose) - log prior(pose))``, [K, N]."""
        return self.likelihood - beta * (poses.log_q - self.prior)


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

    def weighted(self, beta: float) -> "Objective":
        """The same with this weight on the divergence of q (of a Dirac: on its log prior).

        Raises
        ------
        InputError
            Where it has no such term.
        """
        wanted = "1 for an objective without a divergence to weigh"
        require(beta == 1, "weight of the divergence", expected=wanted, got=f"{beta:g}")
        return self

    def turned(self, index: Tensor, quarters: Tensor) -> "Objective":
        """The same where images ``index`` [N] come turned by 90 degrees ``quarters`` [N] times."""
        return self


class Weighed(Objective):
    """An objective whose divergence can be weighed.

    Attributes
    ----------
    beta
        The weight.
    """

    beta: float = 1.0

    def weighted(self, beta: float) -> Self:
        """With this weight, times its own, on that (of a Dirac: on its log prior)."""
        found = copy(self)
        found.beta = self.beta * beta
        return found


def log_terms(
    model: ParticleModel, guide: Guide, volume: AnyMap, poses: Poses, batch: Batch
) -> Terms:
    """Log densities of the model's own sites, image by image, at drawn poses.

    The model is run under Pyro's handlers as it is; whatever sites it has inside the particle
    plate count, the given ones (``Known``) excepted. Under a law of volumes the likelihood is its
    mean, exactly. Where the guide leaves a defocus on nodes to ``Exact``, the likelihood is the
    sum over these at each draw (under a law of volumes a bound on its mean).

    Raises
    ------
    InputError
        If model and guide have unlike sites.
    """
    guide.check(model)
    values = {site: getattr(poses, site) for site in guide.drawn_sites}
    values[sites.VOLUME] = mean_of(volume)
    if guide.sums_defocus:
        assert model.defocus is not None
        values[sites.DEFOCUS] = model.defocus.points[:, None, None].expand(-1, 1, len(batch))
    trace = poutine.trace(poutine.condition(model, values)).get_trace(batch)
    given = {site for site, part in guide.sites.items() if isinstance(part, Known)}
    prior, likelihood = torch.zeros_like(poses.log_q), torch.zeros_like(poses.log_q)
    mass = None  # of the nodes, [J, 1, N]
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
        elif name == sites.DEFOCUS and guide.sums_defocus:
            mass = found
        else:
            prior = prior + found
    if mass is not None:
        likelihood = torch.logsumexp(likelihood + mass, 0)
    return Terms(prior, likelihood)
