"""Draws of a fit's map, and the log likelihood of every image at draws of a map."""

from dataclasses import replace

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.inference.chains import Chains
from cryoprob.inference.expectation import expectation
from cryoprob.inference.grids import on_grid, pose_grids
from cryoprob.inference.half import Half
from cryoprob.inference.learn import seeded
from cryoprob.inference.m_step import posterior_sample
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.point import Point
from cryoprob.particles import ParticleStack
from cryoprob.types import Maps

__all__ = ["draw_volumes", "log_likelihood", "scored", "summed_out"]


def draw_volumes(
    half: Half,
    stack: ParticleStack,
    *,
    chains: int = 4,
    draws: int = 25,
    seed: int,
    order: int | None = None,
    symmetry: str = "C1",
) -> Chains:
    """Independent draws of a map from its Gaussian posterior at the fitted weights of the poses.

    Exact for known poses. Where poses are inferred, or contrast and defocus latent, their weights
    are held at those of the fitted map, so that the draws are too narrow by what these would give
    way (beside latent contrasts the map's gray scale above all):
    :func:`~cryoprob.inference.gibbs.sample_gibbs` is exact, for small problems. Each draw costs an
    E-step (its log likelihood) and a solution of the normal equations.

    Parameters
    ----------
    half
        Model, guide and images: ``result.fitted``.
    stack
        The particles of the fit.
    chains, draws
        C chains of S draws; all are independent.
    seed
        Of the draws.
    order, symmetry
        As for :func:`log_likelihood`.

    Raises
    ------
    InputError
        If there are no draws, if there are conformations, or as :func:`log_likelihood`.
    """
    got = type(half.model.conformation).__name__
    require(half.model.conformation is None, "draws of the map", expected="one map", got=got)
    wanted = chains > 0 and draws > 0
    require(wanted, "draws", expected="one or more", got=f"{chains} chains of {draws}")
    generator = torch.Generator().manual_seed(seed)
    mean, tau2 = half.guide.volume.coefficients.detach(), half.model.linear_volume.tau2
    with torch.no_grad(), seeded(seed):
        found = expectation(half.model, half.guide, stack, half.index, symmetry=symmetry)
        sums = found.parts[0].insertion
        noises = [sums.noise(1, generator)[0] for _ in range(chains * draws)]
        equations = sums.equations(release=True)
        right = equations.right_side()
        volumes = torch.stack(
            [posterior_sample(equations, tau2, right + one, mean, generator) for one in noises]
        )
    volumes = volumes.unflatten(0, (chains, draws))
    unscored = Chains(volumes, volumes.new_zeros(chains, draws, dtype=torch.float64))
    return scored(unscored, half, stack, order=order, symmetry=symmetry)


def scored(
    draws: Chains,
    half: Half,
    stack: ParticleStack,
    *,
    order: int | None = None,
    symmetry: str = "C1",
) -> Chains:
    """The same draws of the map with their log likelihoods and log joint density.

    At the half's own noise; arguments as for :func:`draw_volumes`.
    """
    maps = draws.volume.flatten(0, 1)
    rows = [log_likelihood(half, one, stack, order=order, symmetry=symmetry) for one in maps]
    each = torch.stack(rows).unflatten(0, draws.volume.shape[:2])
    prior = half.model.linear_volume.prior().log_prob(draws.volume).double()
    return replace(draws, log_likelihood=each, log_joint=each.sum(-1) + prior)


def log_likelihood(
    half: Half,
    volume: Maps,
    stack: ParticleStack,
    *,
    order: int | None = None,
    symmetry: str = "C1",
) -> Tensor:
    """``log p(image | volume)`` in nats of the half's images [n] float64, poses summed out.

    So are contrast and defocus, where they are latent.

    Parameters
    ----------
    half
        Model, guide and images.
    volume
        [D, D, D].
    stack
        The particles that the half's images are of.
    order
        Of the rotation grid on which the poses are summed out; None leaves that to the guide.
    symmetry
        Point group of the map.

    Raises
    ------
    InputError
        If the guide does not sum them out (its nats are a bound, or not even that) and no
        ``order`` is given.
    """
    judge = half if order is None else summed_out(half, order, symmetry=symmetry)
    guide = judge.guide
    require(
        guide.kind == "log_evidence",
        "log likelihood",
        expected="a guide that sums the poses out",
        got=f"one whose nats are of kind {guide.kind!r}",
        remedy="Give the order of a rotation grid to sum them out on (order=2 is 15 degrees).",
    )
    here = guide.replaced(volume=Point(volume))
    found = expectation(judge.model, here, stack, half.index, symmetry=symmetry)
    return found.summary.bound[half.index]


def summed_out(half: Half, order: int, *, symmetry: str = "C1") -> Half:
    """The half with its poses on the grid of ``order`` and the exact posterior there.

    All other parts are shared; grids finer than order 2 are searched from that one on.
    """
    plan = Schedule(turn=False, coarse_order=min(order, 2), max_order=max(order, 2))
    model = on_grid(half.model, *pose_grids(half.model, plan, order, seed=0, symmetry=symmetry))
    exact = Exact(plan.mass, coarse_order=plan.coarse_order) if order > 2 else Exact()
    return Half(model, half.guide.replaced(rotation=exact, shift=exact), half.index)
