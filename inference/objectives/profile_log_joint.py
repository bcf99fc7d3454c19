"""The log joint at a Dirac: modal inference, which has no ELBO."""

from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.gaussian_map import AnyMap
from cryoprob.inference.guide import Guide
from cryoprob.inference.objectives.base import Weighed, log_terms
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import Batch

__all__ = ["ProfileLogJoint"]


class ProfileLogJoint(Weighed):
    """``log p(image, pose)`` at the pose that q stands at; with heads, the best mixture of them.

    The entropy of a Dirac is minus infinity and left out, so this bounds nothing and has no zero:
    it depends on the units of the pose. Donnat et al. 2022, eq. 13 (with the log that it misses).
    """

    kind = "profile_log_joint"

    def __call__(self, model: ParticleModel, guide: Guide, volume: AnyMap, batch: Batch) -> Tensor:
        """The log joint of each image, [N].

        Raises
        ------
        InputError
            If q has a density.
        """
        require(
            guide.kind == self.kind,
            "profile_log_joint",
            expected="a Dirac at the rotation or the shift",
            got=f"a guide whose objective is the {guide.kind}",
            remedy="Train it by Elbo or Iwae.",
        )
        poses = guide.draw(batch, 1)
        terms = log_terms(model, guide, volume, poses, batch)
        return (poses.log_weight.exp() * terms.over(poses, self.beta)).sum(0)
