"""Families side by side: each one's q priced at its own volume, and all at a common one."""

from copy import deepcopy
from dataclasses import dataclass, replace
from time import perf_counter

import torch
from torch import Tensor

from cryoprob.inference.e_step import e_step
from cryoprob.inference.evidence import Budget, budget
from cryoprob.inference.families import Family, Recipe
from cryoprob.inference.grids import off_grid, on_grid, pose_grids
from cryoprob.inference.half import Half
from cryoprob.inference.learn import seeded
from cryoprob.inference.schedule import Schedule
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack

__all__ = ["Accounts", "Priced", "gridded"]


@dataclass(frozen=True, eq=False)
class Priced:
    """A family's budget at one volume, and the rate of its E-step there, images a second.

    ``volume_kl`` is KL(q || prior) of a volume that has a q, nats per image of the fit: less it,
    the budget's evidence is a bound on the evidence of the data; None where the volume is a point.
    """

    budget: Budget
    images_per_s: float
    volume_kl: float | None = None


@dataclass(frozen=True)
class Accounts:
    """How q's are priced: the images and the grid that all families share.

    Parameters
    ----------
    stack
        All particles.
    index
        Those whose gaps are counted, [n].
    plan
        Settings of the fits.
    order
        Of the rotation grid on which everything is counted.
    seed, symmetry
        As of the fits.
    """

    stack: ParticleStack
    index: Tensor
    plan: Schedule
    order: int
    seed: int
    symmetry: str = "C1"

    def own(self, row: Family, half: Half) -> Priced:
        """The budget at the family's own volume, with q as the fit left it.

        A search is made again, on the grid that all share.
        """
        divergence = _divergence(half)
        moved = Half(half.model, deepcopy(half.guide), self.index)
        return self._priced(row, moved, divergence)

    def common(self, row: Family, half: Half, reference: Half) -> Priced:
        """The budget at the volume, noise and priors of a ``reference``.

        Searches and tables start anew there; an encoder goes on from its own fit, with the
        family's training steps of a first E-step.
        """
        model = off_grid(reference.model)
        guide = deepcopy(half.guide)
        guide.volume = deepcopy(reference.guide.volume)
        moved = Half(model, guide, self.index)
        if row.learner is not None:
            volume = guide.volume.coefficients.data
            plan = row.settle(self.plan)
            recipe = Recipe(model, volume, plan, len(self.stack), self.seed, self.symmetry)
            everything = Half(model, guide, half.index)
            with seeded(self.seed):
                row.learner(recipe).learn(everything, self.stack, 0, self.order)
        return self._priced(row, moved, _divergence(reference))

    def _priced(self, row: Family, half: Half, divergence: float | None) -> Priced:
        guide, model, plan = half.guide, off_grid(half.model), row.settle(self.plan)
        grid = gridded(model, self.plan, self.order, self.symmetry)
        searched = grid if guide.rotation.searches else model
        began = perf_counter()
        with seeded(self.seed):
            e_step(searched, guide, self.stack, self.index, draws=max(plan.draws, 1))
            rate = len(self.index) / (perf_counter() - began)
            found = budget(model, grid, guide, self.stack, self.index)
            return Priced(found, rate, divergence)


def _divergence(half: Half) -> float | None:
    """KL(q || prior) of a half's volume over its images, nats, where the volume has a q."""
    volume = half.guide.volume
    if not volume.has_density:
        return None
    with torch.no_grad():
        return float(volume.kl(half.model.volume.prior())) / len(half.index)


def gridded(model: ParticleModel, plan: Schedule, order: int, symmetry: str) -> ParticleModel:
    """The model with its poses on the grid of an ``order``, not turned."""
    still = replace(plan, turn=False)
    return on_grid(model, *pose_grids(model, still, order, seed=0, symmetry=symmetry))
