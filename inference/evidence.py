"""The price of an approximation, in nats per image, exactly: q and the posterior on one grid.

On a grid of pose cells ``h`` with masses, for every image

    log p(x) = ELBO(q) + KL(q || p(h | x)),
    KL(q || p) = min over the family of q  +  what this q lacks of that minimum,

the approximation gap and the amortization (or search) gap of Cremer, Li and Duvenaud (2018). A q
on the continuum is scored through its masses of the cells, a Dirac through its cell, so that the
rows add up. Donnat et al. 2022, eq. 7.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cryoprob.fourier.gaussian_map import AnyMap
from cryoprob.inference.best_law import best_bound
from cryoprob.inference.cells import CellMasses, masses_of
from cryoprob.inference.dense import DenseGrid, blocks
from cryoprob.inference.e_step import chunks, e_step
from cryoprob.inference.grids import on_grid
from cryoprob.inference.guide import Guide
from cryoprob.inference.levels import Level
from cryoprob.inference.treatments.base import Lawful
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack

__all__ = [
    "Budget",
    "GridScores",
    "budget",
    "discretization",
    "prices",
    "scores",
    "tempering",
]

_BLOCK_BYTES = 2**27


@dataclass(frozen=True, eq=False)
class GridScores:
    """The exact posterior of n images over a grid of poses.

    Attributes
    ----------
    index
        Places in the stack, [n].
    log_joint
        ``log p(image, pose)`` over noise, cell masses included, [n, T, Q] (float64).
    noise_only
        Log density of the images under noise alone, [n] (float64).
    log_prior
        Log cell masses, [T, Q] (float64).
    """

    index: Tensor
    log_joint: Tensor
    noise_only: Tensor
    log_prior: Tensor

    @property
    def log_evidence(self) -> Tensor:
        """Log p(image), poses summed out, [n] (float64)."""
        return self.noise_only + self.log_joint.flatten(1).logsumexp(1)

    @property
    def log_posterior(self) -> Tensor:
        """Of the cells, [n, T, Q]."""
        return self.log_joint - self.log_joint.flatten(1).logsumexp(1)[:, None, None]

    def bound(self, q: CellMasses) -> Tensor:
        """ELBO of a q on the cells, [n]."""
        return self.noise_only + q.mean(self.log_joint) + q.entropy()


def scores(
    model: ParticleModel, volume: AnyMap, stack: ParticleStack, index: Tensor
) -> Iterator[GridScores]:
    """Exact posteriors at a volume on the model's grids, block by block.

    Under a law of volumes the scores are expected under it, and what they sum to is no evidence
    but a lower bound of it, less the law's divergence from the prior over the images.

    Raises
    ------
    InputError
        If a pose prior is continuous.
    """
    with torch.no_grad():
        grid = DenseGrid.of(model, volume)
        log_prior = (grid.log_shift[:, None] + grid.log_rotation).double()
        size = max(1, _BLOCK_BYTES // (8 * log_prior.numel()))
        for images in chunks(model, stack, index):
            for part in blocks(len(images), size):
                some = images.take(part)
                joint = grid.posterior(some).logits.double()
                yield GridScores(some.index, joint, some.noise_only, log_prior)


@dataclass(frozen=True, eq=False)
class Budget:
    """Where the nats of n images go; ``evidence = bound + approximation + remainder``.

    Attributes
    ----------
    index
        Places in the stack, [n].
    evidence
        Log p(image | volume), exact on the grid, [n] (float64, as all that follow); under a law of
        volumes the bound on it that :func:`scores` tells of.
    bound
        ELBO of the family's q.
    approximation
        KL divergence of the best q of the family from the posterior (found by optimization).
    remainder
        What the family's own q lacks of the best one: the amortization gap of an encoder, the
        search gap of a beam, what the steps of a table have not reached.
    """

    index: Tensor
    evidence: Tensor
    bound: Tensor
    approximation: Tensor
    remainder: Tensor

    @property
    def gap(self) -> Tensor:
        """KL divergence of the family's q from the posterior, [n]."""
        return self.evidence - self.bound


def budget(
    model: ParticleModel,
    gridded: ParticleModel,
    guide: Guide,
    stack: ParticleStack,
    index: Tensor,
) -> Budget:
    """The gap budget of a guide's q at its volume, for images ``index`` [n].

    Parameters
    ----------
    model
        Which the guide's q is for (searches of a grid read their poses off the guide).
    gridded
        The same with poses on the grid on which everything is counted.
    """
    volume = guide.volume.maps
    parts = []
    for found in scores(gridded, volume, stack, index):
        evidence = found.log_evidence
        if guide.rotation.enumerates:
            bound, best = _exact(gridded, guide, stack, found), evidence
        else:
            bound, best = _drawn(model, gridded, guide, stack, found)
        parts.append(Budget(found.index, evidence, bound, evidence - best, best - bound))
    names = ("index", "evidence", "bound", "approximation", "remainder")
    return Budget(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _exact(
    gridded: ParticleModel, guide: Guide, stack: ParticleStack, found: GridScores
) -> Tensor:
    """The log evidence that the (pruned) sum over poses finds."""
    return e_step(gridded, guide, stack, found.index).summary.bound[found.index]


def _drawn(
    model: ParticleModel,
    gridded: ParticleModel,
    guide: Guide,
    stack: ParticleStack,
    found: GridScores,
) -> tuple[Tensor, Tensor]:
    """Bound of the guide's own q, and of the best q of its family, [n]."""
    level = Level.of(gridded)
    like = model.noise.sigma2
    batch = stack.batch(found.index, guide.band(model), like.dtype, like.device)
    guide.forget()
    with torch.no_grad():
        own = found.bound(masses_of(guide, batch, level))
    if not all(isinstance(part, Lawful) for part in guide.drawn):  # one cell is the family
        best = found.noise_only + found.log_joint.flatten(1).amax(1)
        return own, torch.maximum(own, best)
    numbers = [part.numbers_of(batch).detach() for part in guide.drawn if isinstance(part, Lawful)]
    laws = [part.law for part in guide.drawn if isinstance(part, Lawful)]
    own_numbers = numbers[0], numbers[1]
    best = best_bound(laws[0], laws[1], own_numbers, found.log_joint, level)
    return own, torch.maximum(own, found.noise_only + best)


def discretization(
    gridded: ParticleModel, volume: AnyMap, stack: ParticleStack, index: Tensor
) -> Tensor:
    """Log evidence of the next finer grid minus that of the model's own, [n] (float64).

    The error of the reference itself; large where the posterior is narrower than a cell, and no
    gap of any q. Both grids cover the same poses, so the sign is free.
    """
    finer = Level.of(gridded).finer()
    fine = on_grid(gridded, finer.rotation, finer.shift)
    found = [
        torch.cat([part.log_evidence for part in scores(model, volume, stack, index)])
        for model in (fine, gridded)
    ]
    return found[0] - found[1]


def prices(found: GridScores, *, mass: float, factor: float) -> dict[str, Tensor]:
    """What common tricks cost at best, in nats of each image [n], exactly.

    :func:`~cryoprob.inference.fixed_width.fixed_width` prices one more, of all images at once.

    Parameters
    ----------
    mass
        ``pruning``: the smallest set of cells that holds so much of the posterior; -log of what
        it holds.
    factor
        ``tempering``: the likelihood trusted so many times too much, and as much too little where
        it is below 1: what a beta-ELBO of ``beta = 1 / factor`` ends at (:func:`tempering`).
    """
    log_posterior = found.log_posterior.flatten(1)
    ranked = log_posterior.exp().sort(1, descending=True).values.cumsum(1)
    kept = ranked.gather(1, (ranked < mass).sum(1, keepdim=True).clamp(max=ranked.shape[1] - 1))
    return {
        "pruning": -kept[:, 0].clamp(max=1).log(),
        "one cell": -log_posterior.amax(1),
        "tempering": tempering(found, factor),
    }


def tempering(found: GridScores, factor: float) -> Tensor:
    """KL divergence, [n], of ``prior x likelihood^factor`` from the posterior.

    The likelihood is trusted as if the noise variance were ``1 / factor`` times what it is. This
    q, and no other, is where the beta-ELBO ``E_q log p(x | h) - beta KL(q || prior)`` of
    ``beta = 1 / factor`` is largest, so that the divergence is what such training costs even a q
    that may be anything. Higgins et al. 2017, ICLR (beta-VAE); cryoDRGN's default is a beta of 1
    over the latent dimension.
    """
    prior = found.log_prior.flatten()
    trusted = (prior + factor * (found.log_joint.flatten(1) - prior)).log_softmax(1)
    return (trusted.exp() * (trusted - found.log_posterior.flatten(1))).sum(1)
