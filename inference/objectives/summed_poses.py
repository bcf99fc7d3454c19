"""Poses summed out on their grid, exactly; only the conformation has a q."""

import torch
from torch import Tensor

from cryoprob.checks import InputError, require
from cryoprob.fourier.gaussian_map import AnyMap, mean_of
from cryoprob.inference.amplitude_law import AmplitudeLaw
from cryoprob.inference.guide import Guide
from cryoprob.inference.levels import Level
from cryoprob.inference.objectives.base import Weighed, over_contrasts
from cryoprob.inference.treatments.base import Drawn
from cryoprob.inference.treatments.exact import Exact
from cryoprob.models import sites
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import Batch

__all__ = ["SummedPoses"]


class SummedPoses(Weighed):
    """``E_q(z) [log sum over poses p(image, pose | z) + log p(z) - log q(z)]``, by draws of z.

    The bound of exact rotations with amortized conformations: what ``TraceEnum_ELBO`` sums on the
    same model and guide. Every image has slices of its own, Q of them a draw: for small grids and
    batches. A defocus on nodes (``Exact``) and a contrast (``ConditionalGaussian``) are summed out
    along with the poses.

    Parameters
    ----------
    draws
        Of the conformation, per image.
    """

    kind = "elbo"

    def __init__(self, draws: int = 1) -> None:
        require(draws > 0, "draws", expected="a positive number", got=str(draws))
        self.draws = draws

    def __call__(self, model: ParticleModel, guide: Guide, volume: AnyMap, batch: Batch) -> Tensor:
        """The bound of each image, [N].

        Raises
        ------
        InputError
            If poses are not summed out on a grid, the conformation has no density, or there is a
            contrast or a defocus that is not summed out.
        """
        part = guide.conformation
        exact = isinstance(guide.rotation, Exact) and isinstance(guide.shift, Exact)
        if not exact or not isinstance(part, Drawn) or not part.has_density:
            raise InputError(
                "guide",
                expected="Exact poses, and a conformation with a density (PerImage, Amortized)",
                got=", ".join(type(one).__name__ for one in guide.sites.values()),
            )
        guide.check(model)
        if set(guide.drawn_sites) & {sites.CONTRAST, sites.DEFOCUS}:
            model.require_known_imaging()  # no draws of them
        guide.forget()
        level = Level.of(model)
        rotation, shift = level.rotation, level.shift
        log_prior = shift.log_mass()[:, None, None] + rotation.log_mass
        nodes = None
        if model.defocus is not None:
            nodes = model.defocus.points[:, None, None, None]  # [J, 1, 1, 1]
            log_prior = log_prior + model.defocus.log_mass[:, None, None, None]
        drawn = part.draw(batch, self.draws)
        assert model.conformation is not None
        own = mean_of(volume)
        ratio = model.conformation.prior().log_prob(drawn.value) - drawn.log_q
        turns = rotation.matrices()[:, None]  # [Q, 1, 3, 3]
        moves = shift.points()[:, None, None]  # [T, 1, 1, 2]
        amplitude = AmplitudeLaw.of(model)
        at = None if amplitude is None else batch.ctf.new_ones(len(batch))
        each = []
        for state in drawn.value:
            law = model.likelihood(own, turns, moves, batch, state, at, nodes)
            joint = over_contrasts(law, batch.image, amplitude)[0] + log_prior
            each.append(joint.flatten(0, -2).logsumexp(0) + model.log_potential(own, state))
        share = drawn.log_weight.exp()
        return (share * (torch.stack(each) + self.beta * ratio)).sum(0)
