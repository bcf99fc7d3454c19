"""The price of one pose and a normal conformation per image, in nats, by the chain rule.

For a q that has one pose cell ``h`` of a grid and a law of z

    log p(x) = ELBO + KL(q(z) || p(z | x, h)) + (log p(x) - log p(x, h)),

the price of z's law at that pose and the price of one pose. Poses are summed over the grid, z over
the nodes of a Gauss-Hermite rule, each a map of its own. Terms of the model are part of p, whose
evidence is then told up to a constant.
"""

from dataclasses import dataclass
from itertools import product
from math import log

import torch
from torch import Tensor

from cryoprob.checks import InputError, require
from cryoprob.fourier.bands import full_band
from cryoprob.inference.dense import blocks
from cryoprob.inference.e_step import chunks, e_step
from cryoprob.inference.few_poses import score_few
from cryoprob.inference.grids import on_grid, pose_grids
from cryoprob.inference.guide import Guide, Poses
from cryoprob.inference.half import Half
from cryoprob.inference.joint_finish import answer
from cryoprob.inference.learn import seeded
from cryoprob.inference.levels import Level
from cryoprob.inference.objectives.base import Objective
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.treatments.base import Drawn, Lawful
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.point import Point
from cryoprob.inference.voxel_model import voxel_model
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import ShiftGridPrior
from cryoprob.models.poses.uniform_rotation import RotationGridPrior
from cryoprob.particles import Batch, ParticleStack
from cryoprob.quadrature import normal_rule
from cryoprob.types import Rotations, Shifts

__all__ = ["ConformationBudget", "check_priced", "conformation_budget", "nodes_of"]

_DRAWS, _BYTES, _CHUNK = 128, 2**27, 64


@dataclass(frozen=True, eq=False)
class ConformationBudget:
    """Where the nats of n images go; ``evidence = bound + conformation + pose``.

    Attributes
    ----------
    index
        Places in the stack, [n].
    evidence
        Log p(image | volume), poses and conformations summed out, [n] (float64, as all).
    bound
        ELBO of one cell and the law of z; minus infinity where that is a Dirac too.
    conformation
        Divergence of the law of z from its posterior at the pose.
    error
        Standard error of ``conformation``, which is of draws.
    pose
        What one pose costs, right or wrong: all of the posterior outside of its cell.

    With a Dirac of z the bound has no lower limit, and ``conformation`` no upper one.
    """

    index: Tensor
    evidence: Tensor
    bound: Tensor
    conformation: Tensor
    error: Tensor
    pose: Tensor


def check_priced(half: Half, nodes: int, objective: Objective | None = None) -> None:
    """Raise unless a guide's poses are known or Diracs, and its conformation has a law.

    Raises
    ------
    InputError
        If not, if contrast or defocus is latent, if there would be more than 200 nodes, or if
        what trained model and guide is no density of images.
    """
    _check_density(objective)
    half.model.require_known_imaging()
    guide, prior = half.guide, half.model.conformation
    poses = guide.rotation, guide.shift
    known = {isinstance(part, Known) for part in poses}
    dirac = all(isinstance(part, Drawn) and not part.has_density for part in poses)
    normal = isinstance(prior, GaussianConformation) and isinstance(guide.conformation, Lawful)
    if not dirac or not normal or len(known) > 1:
        got = ", ".join(type(part).__name__ for part in guide.sites.values())
        wanted = "poses both known or both Diracs, and a law of z whose prior is normal"
        remedy = "Posteriors that are exact (ppca, classes) cost nothing."
        raise InputError("price", expected=wanted, got=got, remedy=remedy)
    if known == {False}:
        assert isinstance(prior, GaussianConformation)
        nodes_of(prior, nodes)


def _check_density(objective: Objective | None) -> None:
    """Raise where scale and noise of the model have not been fitted to the images."""
    if objective is None or objective.is_density:
        return
    raise InputError(
        "price",
        expected="a training by a density of images (elbo, iwae, profile_log_joint)",
        got=f"one by the {objective.kind}",
        remedy="It fits neither the gray scale nor the noise, which the evidence of images is of."
        " Price a fit of another preset: cryodrgn, cryofold.",
    )


def nodes_of(prior: GaussianConformation, count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes [count^size, size] of a normal prior, and their log weights (float64).

    Raises
    ------
    InputError
        If they would be more than 200.
    """
    size = prior.size
    wanted, got = "at most 200 nodes", f"{count} along each of {size} axes"
    remedy = "Fit with a smaller zdim (--set zdim=2): searched poses are summed at every node."
    require(count > 0 and count**size <= 200, "nodes", expected=wanted, got=got, remedy=remedy)
    axis, log_weight = normal_rule(count)
    rows = torch.tensor(list(product(range(count), repeat=size)))
    return axis[rows] * prior.scale.double().cpu(), log_weight[rows].sum(1)


def conformation_budget(
    half: Half,
    stack: ParticleStack,
    index: Tensor,
    plan: Schedule,
    *,
    order: int,
    nodes: int,
    seed: int,
    objective: Objective | None = None,
) -> ConformationBudget:
    """The budget of a guide whose poses are known or Diracs, and whose conformation has a law.

    Parameters
    ----------
    half
        Model and guide.
    index
        Images, [n].
    plan
        Shift grid and coarsest rotations of the exact sum.
    order
        Of the rotation grid, whose cells the poses are counted in.
    nodes
        Of z, along each axis; what more of them change is the rule's own error. (Known poses need
        neither grid nor nodes: they cost nothing.)
    seed
        Of the grid's turn and of draws of z.
    objective
        Of the training, where it chooses between answers of q (``Symmetric``).

    Raises
    ------
    InputError
        As :func:`check_priced`.
    """
    guide = half.guide
    check_priced(half, nodes, objective)
    with torch.no_grad(), seeded(seed):
        if isinstance(guide.rotation, Known):
            own = _given(half, stack, index)
            pose = torch.zeros_like(own.log_mass)
        else:
            grids = pose_grids(half.model, plan, order, seed=seed)
            level = Level(*grids, half.model.band.radius)
            own = _own_cells(half, stack, index, level, objective)
            pose = _pose_prices(half, stack, index, own, (plan, grids, nodes))
        bound, inner, error = _conformations(half, stack, index, own, objective)
    return ConformationBudget(index, inner + pose, bound, inner - bound, error, pose)


def _pose_prices(
    half: Half, stack: ParticleStack, index: Tensor, own: "_Cells", on: "_Grid"
) -> Tensor:
    """Log p(image) less log p(image, own cell), z summed over nodes in both, [n]."""
    model, (plan, grids, nodes) = half.model, on
    assert isinstance(model.conformation, GaussianConformation)
    places, log_weight = nodes_of(model.conformation, nodes)
    like, volume = model.noise.sigma2, half.guide.volume.coefficients.detach()
    summed, given, search = [], [], Exact(plan.mass, coarse_order=plan.coarse_order)
    for place, weight in zip(places.to(like), log_weight.to(like.device), strict=True):
        density = model.volume.density(volume, place)
        mass = weight + model.log_potential(volume, place)
        alone = Guide(rotation=search, shift=search, volume=Point(density))
        one = on_grid(voxel_model(model, density), *grids)
        summed.append(mass + e_step(one, alone, stack, index).summary.bound[index])
        given.append(mass + _at_cells(one, density, stack, index, own))
    return torch.stack(summed).logsumexp(0) - torch.stack(given).logsumexp(0)


_Grid = tuple[Schedule, tuple[RotationGridPrior, ShiftGridPrior], int]
"""Settings, pose grids, and nodes of z along each axis."""


@dataclass(frozen=True, eq=False)
class _Cells:
    """The pose cells of n images: centers [n, 3, 3] and [n, 2], log masses [n] (float64)."""

    rotation: Tensor
    shift: Tensor
    log_mass: Tensor


def _given(half: Half, stack: ParticleStack, index: Tensor) -> _Cells:
    """Known poses, which have all the mass."""
    like = half.model.noise.sigma2
    batch = stack.batch(index, half.model.band.prefix(1), like.dtype, like.device)
    turns, moves = (part.mode(batch) for part in half.guide.drawn)
    return _Cells(turns, moves, torch.zeros_like(moves[:, 0], dtype=torch.float64))


def _own_cells(
    half: Half, stack: ParticleStack, index: Tensor, level: Level, objective: Objective | None
) -> _Cells:
    """The cells in which the guide's Diracs lie."""
    like, parts = half.model.noise.sigma2, []
    centers, places = level.rotation.matrices(), level.shift.points()
    for some in index.split(_block(half)):
        batch = stack.batch(some, full_band(stack.box), like.dtype, like.device)
        turns, moves, _ = answer(half, objective, batch)
        turn = (turns.flatten(1).to(centers) @ centers.flatten(1).mT).argmax(1)
        parts.append((turn, torch.cdist(moves.to(places), places).argmin(1)))
    half.guide.forget()
    turn, move = (torch.cat(part) for part in zip(*parts, strict=True))
    mass = level.rotation.log_mass + level.shift.log_mass().double()[move]
    return _Cells(centers[turn], places[move], mass)


def _at_cells(
    model: ParticleModel, density: Tensor, stack: ParticleStack, index: Tensor, own: _Cells
) -> Tensor:
    """Log p(image, cell) at a map, [n]."""
    found = torch.empty_like(own.log_mass)
    row = torch.full((len(stack),), -1)
    row[index] = torch.arange(len(index))
    for images in chunks(model, stack, index):
        for part in blocks(len(images), _CHUNK):
            some = images.take(part)
            place = row[some.index.cpu()]
            nothing = own.shift.new_zeros(1, len(place))
            poses = Poses(own.rotation[place][None], own.shift[place][None], nothing, nothing)
            found[place] = some.noise_only + score_few(model, density, some, poses)[0]
    return found + own.log_mass


def _conformations(
    half: Half, stack: ParticleStack, index: Tensor, own: _Cells, objective: Objective | None
) -> tuple[Tensor, ...]:
    """At the cells: the ELBO of the law of z, log p with z summed out by draws, their error."""
    like, found = half.model.noise.sigma2, []
    for rows in torch.arange(len(index)).split(_block(half)):
        batch = stack.batch(index[rows], full_band(stack.box), like.dtype, like.device)
        _, _, seen = answer(half, objective, batch)
        bound, inner, error = _by_draws(half, batch, seen, own.rotation[rows], own.shift[rows])
        mass = own.log_mass[rows]
        found.append((bound + mass, inner + mass, error))
    half.guide.forget()
    return tuple(torch.cat(one) for one in zip(*found, strict=True))


def _by_draws(
    half: Half, batch: Batch, seen: Batch, rotation: Rotations, shift: Shifts
) -> tuple[Tensor, Tensor, Tensor]:
    """ELBO of the law of z (as ``seen``), the evidence, and the error of both; [n] each.

    Half of the draws are the prior's, so that what the law misses is seen.
    """
    model, part = half.model, half.guide.conformation
    assert isinstance(part, Lawful) and model.conformation is not None
    prior, volume = model.conformation.prior(), half.guide.volume.coefficients.detach()
    wide = prior.sample((_DRAWS, len(rotation)))
    if not part.has_density:
        score = _log_image(model, volume, (rotation, shift), batch, wide)
        inner, error = _log_mean(score)
        return torch.full_like(inner, -torch.inf), inner, error
    numbers = part.numbers_of(seen)
    value = torch.cat([part.law.draw(numbers, _DRAWS).value, wide])
    image = _log_image(model, volume, (rotation, shift), batch, value)
    joint, log_q = image + prior.log_prob(value), part.law(numbers).log_prob(value)
    proposal = torch.logaddexp(log_q, prior.log_prob(value)) - log(2)
    ratio = (joint - log_q)[:_DRAWS]
    inner, error = _log_mean(joint - proposal)
    return ratio.mean(0), inner, torch.hypot(error, ratio.std(0) / _DRAWS**0.5)


def _log_image(
    model: ParticleModel,
    volume: Tensor,
    poses: tuple[Rotations, Shifts],
    batch: Batch,
    value: Tensor,
) -> Tensor:
    """Log density of the images at poses and draws of z, the model's terms of these in it."""
    law = model.likelihood(volume, *poses, batch, value)
    return law.log_prob(batch.image).double() + model.log_potential(volume, value).double()


def _log_mean(values: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the mean of exponentials of [K, n], and its standard error, [n] each."""
    count = len(values)
    weight = torch.softmax(values, 0)
    error = (count * weight.square().sum(0) - 1).clamp(min=0).sqrt() / count**0.5
    return values.logsumexp(0) - log(count), error


def _block(half: Half) -> int:
    """Images whose draws are scored together."""
    return max(1, _BYTES // (2 * _DRAWS * 16 * len(half.model.band)))
