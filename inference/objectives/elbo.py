"""The evidence lower bound, whole or with a weight on its divergence."""

from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.gaussian_map import AnyMap
from cryoprob.inference.guide import Guide
from cryoprob.inference.objectives.base import Weighed, log_terms
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import Batch

__all__ = ["Elbo"]


class Elbo(Weighed):
    """``E_q log p(image | pose) - beta KL(q || prior)``, by draws.

    A bound on the log evidence for ``beta >= 1`` only, tightest at 1; with a smaller one the
    likelihood is trusted as if the noise were smaller by that factor. Donnat et al. 2022, eq. 8
    (whose divergence is that from the prior, as in its appendix C).

    Parameters
    ----------
    draws
        Per image and head.
    beta
        Weight of the divergence.

    Raises
    ------
    InputError
        If q is a Dirac: its divergence is infinite, its objective ``ProfileLogJoint``.
    """

    kind = "elbo"

    def __init__(self, draws: int = 1, beta: float = 1.0) -> None:
        require(draws > 0, "draws", expected="a positive number", got=str(draws))
        require(beta > 0, "beta", expected="a positive weight", got=f"{beta:g}")
        self.draws, self.beta = draws, beta

    def __call__(self, model: ParticleModel, guide: Guide, volume: AnyMap, batch: Batch) -> Tensor:
        """The bound of each image, [N]."""
        require(
            guide.kind != "profile_log_joint",
            "elbo",
            expected="a q with a density at every continuous site",
            got="a Dirac",
            remedy="Train it by ProfileLogJoint, which says what it is.",
        )
        poses = guide.draw(batch, self.draws)
        terms = log_terms(model, guide, volume, poses, batch)
        return (poses.log_weight.exp() * terms.over(poses, self.beta)).sum(0)
