"""The exact normal posterior of what an image is linear in: a conformation, or its contrast."""

from cryoprob.checks import InputError
from cryoprob.inference.treatments.base import Treatment
from cryoprob.particles import Batch

__all__ = ["ConditionalGaussian"]


class ConditionalGaussian(Treatment):
    """q(z | pose, image) = p(z | pose, image), a normal law in closed form; nothing is learned.

    The E-step integrates z out (:mod:`cryoprob.inference.linear_posterior`), and the bound is the
    log evidence. It needs a volume that is linear in the conformation (``LinearModes``) with a
    normal prior. Tagare et al. 2015, J. Struct. Biol. 191, 245. A contrast with a normal prior is
    integrated out likewise, with whatever volume (:mod:`cryoprob.inference.imaging_e_step`; at
    each draw of the other sites by objectives, :mod:`cryoprob.inference.objectives.base`).
    """

    def forward(self, site: str, batch: Batch) -> None:
        """Not for Pyro's estimators by draws: the site is integrated out.

        Raises
        ------
        InputError
            Always.
        """
        raise InputError(
            site,
            expected="a treatment that can be drawn from, for an objective by draws",
            got=type(self).__name__,
            remedy="Fit with ModesEM (a contrast: with EM or Joint), which integrates it out; or"
            " use PerImage or Amortized.",
        )
