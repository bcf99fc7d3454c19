"""Learning from images drawn from the model itself: neural posterior estimation."""

from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from cryoprob.fourier.gaussian_map import AnyMap, mean_of
from cryoprob.inference.guide import Guide
from cryoprob.inference.objectives.base import Objective
from cryoprob.inference.treatments.known import Known
from cryoprob.models import sites
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import Batch

__all__ = ["Sleep"]


class Sleep(Objective):
    """``log q(pose | image)`` at poses and images that the model draws: never short of data.

    Its optimum over all q is the exact posterior (``E KL(p || q)``, inclusive: q covers all modes,
    where the ELBO's picks one). The real images lend only their CTFs and noise, and poses that
    are ``Known``; of a law of volumes the mean is imaged. Hinton et al. 1995 (wake-sleep); Le et
    al. 2019, "Revisiting reweighted wake-sleep".
    """

    kind = "inclusive"

    def __call__(self, model: ParticleModel, guide: Guide, volume: AnyMap, batch: Batch) -> Tensor:
        """Log q at the drawn poses, [N]."""
        guide.check(model)
        given = {sites.VOLUME: mean_of(volume)}
        for site, part in guide.sites.items():
            if isinstance(part, Known):
                given[site] = part.mode(batch)
        with torch.no_grad():
            free = poutine.condition(poutine.uncondition(model), given)
            nodes: Any = poutine.trace(free).get_trace(batch).nodes
        drawn = replace(batch, image=nodes[sites.IMAGE]["value"])
        guide.forget()
        return guide.log_score(drawn, **{site: nodes[site]["value"] for site in guide.sites})
