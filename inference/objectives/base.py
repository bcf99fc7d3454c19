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
from cryoprob.inference.amplitude_law import AmplitudeLaw, Amplitudes
from cryoprob.inference.guide import Guide, Poses
from cryoprob.inference.treatments.known import Known
from cryoprob.models import sites
from cryoprob.models.image_likelihood import ImageLikelihood
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import Batch

__all__ = ["Objective", "Terms", "Weighed", "log_terms", "over_contrasts"]


@dataclass(frozen=True, eq=False)
class Terms:
    """The parts of ``log p(image, pose)`` at K draws, and what was summed out in the last.

    Attributes
    ----------
    prior, potential, likelihood
        [K, N] each; the potential is that of the model's terms, which are no part of the prior.
    joint
        ``log p(image, node | pose)``, of which the likelihood is the sum over nodes of the
        defocus, [J, K, N]; one of them where it is not summed out.
    contrast
        Its posterior at each of these; None where it is not summed out.
    """

    prior: Tensor
    potential: Tensor
    likelihood: Tensor
    joint: Tensor
    contrast: Amplitudes | None = None

    def over(self, poses: Poses, beta: float = 1.0) -> Tensor:
        """``log p(image | pose) - beta (log q(pose) - log prior(pose))``, [K, N].

        And the potential, which counts in full: structures keep their bonds whatever beta is.
        """
        return self.likelihood + self.potential - beta * (poses.log_q - self.prior)


class Objective(ABC):
    """A number per image that training raises.

    Attributes
    ----------
    kind
        ``elbo``, ``iwae``, ``profile_log_joint``; ``ring_correlation``, of the shapes of images
        alone; or ``inclusive`` where it raises log q at known poses and is no statement about an
        image.
    is_density
        It is a log density of images at the model, or a bound on one, or a Dirac's: what divides
        into nats that q costs.
    sums_imaging
        A contrast and a defocus that the guide leaves to it are summed out.
    """

    kind: str
    is_density: bool = False
    sums_imaging: bool = False

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

    is_density = True
    sums_imaging = True
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
    mean, exactly. Where the guide leaves a contrast to ``ConditionalGaussian`` or a defocus on
    nodes to ``Exact``, the likelihood is the integral or the sum over these at each draw (under a
    law of volumes a bound on its mean).

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
    if guide.sums_contrast:
        values[sites.CONTRAST] = batch.ctf.new_ones(len(batch))
    trace = poutine.trace(poutine.condition(model, values)).get_trace(batch)
    given = {site for site, part in guide.sites.items() if isinstance(part, Known)}
    given |= {sites.CONTRAST} if guide.sums_contrast else set()
    prior = potential = joint = torch.zeros_like(poses.log_q)
    terms = {term.name for term in model.factors}
    contrast = None
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or name in given or not node["cond_indep_stack"]:
            continue
        law: Any = node["fn"]
        value: Any = node["value"]
        if name == sites.IMAGE:
            lost = _lost(model, law, volume, poses)
            amplitude = AmplitudeLaw.of(model) if guide.sums_contrast else None
            found, contrast = over_contrasts(law, value, amplitude, lost)
            joint = joint + found
        elif name == sites.DEFOCUS and guide.sums_defocus:
            joint = joint + law.log_prob(value)  # of the nodes, [J, 1, N]
        elif name in terms:
            potential = potential + law.log_prob(value)
        else:
            prior = prior + law.log_prob(value)
    joint = joint if guide.sums_defocus else joint[None]
    return Terms(prior, potential, joint.logsumexp(0), joint, contrast)


def over_contrasts(
    law: ImageLikelihood, image: Tensor, amplitude: AmplitudeLaw | None, lost: Tensor | float = 0.0
) -> tuple[Tensor, Amplitudes | None]:
    """Log density of images under a law at contrast 1, integrated over a prior of that if given.

    And the contrast's posterior. ``lost`` is what the map's own variance takes off at contrast 1.
    """
    if amplitude is None:
        return law.log_prob(image) - lost, None
    noise_only, cross, energy = law.parts(image)
    summed, found = amplitude.summed(cross, energy + 2 * lost)
    return noise_only + summed, found


def _lost(
    model: ParticleModel, law: ImageLikelihood, volume: AnyMap, poses: Poses
) -> Tensor | float:
    """What the variance of a law of volumes takes off the mean log density; 0 of a map."""
    if not isinstance(volume, GaussianMap):
        return 0.0
    variance = volume.slice_variance(model.linear_volume.slicer, poses.rotation)
    return law.log_prob_lost(variance)
