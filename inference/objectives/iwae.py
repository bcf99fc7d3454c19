"""The importance-weighted bound."""

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.gaussian_map import AnyMap
from cryoprob.inference.guide import Guide
from cryoprob.inference.objectives.base import Objective, log_terms
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import Batch

__all__ = ["Iwae"]


class Iwae(Objective):
    """``E log (1/K) sum_k p(image, pose_k) / q(pose_k)``: rises with K, below the log evidence.

    Burda et al. 2016, eq. 8. Where q has heads each gets K draws, in shares of their weights.

    Parameters
    ----------
    draws
        K, per image and head.
    """

    kind = "iwae"
    is_density = True
    sums_imaging = True

    def __init__(self, draws: int) -> None:
        require(draws > 0, "draws", expected="a positive number", got=str(draws))
        self.draws = draws

    def __call__(self, model: ParticleModel, guide: Guide, volume: AnyMap, batch: Batch) -> Tensor:
        """The bound of each image, [N].

        Raises
        ------
        InputError
            If q is a Dirac.
        """
        got = "a Dirac"
        wanted = "a q with a density at every continuous site"
        require(guide.kind != "profile_log_joint", "iwae", expected=wanted, got=got)
        poses = guide.draw(batch, self.draws)
        terms = log_terms(model, guide, volume, poses, batch)
        return torch.logsumexp(terms.over(poses) + poses.log_weight, 0)
