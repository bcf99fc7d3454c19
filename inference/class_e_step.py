"""The E-step of classes: which volume an image shows, together with its pose.

For every class the posterior over poses is that of its own volume; what an image says of the
classes is the ratio of the evidences so found. Scheres 2012, eq. 8, with classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
from torch import Tensor

from cryoprob.checks import InputError
from cryoprob.inference.dense import DenseGrid, blocks
from cryoprob.inference.e_step import chunks, finest, nothing_yet, whole
from cryoprob.inference.few_poses import add_few, score_few
from cryoprob.inference.filtered import Filtered
from cryoprob.inference.guide import Guide
from cryoprob.inference.members import Expectation, Member, members
from cryoprob.inference.statistics import PosteriorSummary, Statistics, reals
from cryoprob.inference.treatments.base import Near
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.known import Known
from cryoprob.models.conformations.classes import Classes
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack

__all__ = ["class_e_step"]


def class_e_step(
    model: ParticleModel,
    guide: Guide,
    stack: ParticleStack,
    index: Tensor | None = None,
    *,
    symmetry: str = "C1",
) -> Expectation:
    """Posteriors of classes and poses of images ``index`` (default all), and the M-step's sums.

    Raises
    ------
    InputError
        If the poses are neither known nor summed out on a grid.
    """
    index = torch.arange(len(stack)) if index is None else index.cpu()
    with torch.no_grad():
        parts = members(model, guide)
        log_weight = _log_weights(model)
        sums = [nothing_yet(part.model, len(stack), symmetry) for part in parts]
        shared = sums[0]
        sums[1:] = [_sharing(shared, one) for one in sums[1:]]
        run = _route(parts, guide, stack, log_weight)
        shares = log_weight.new_zeros(len(stack), len(parts))
        for images in chunks(model, stack, index):
            shared.add_power(images, model.noise.sigma2)
            shares[images.index] = run(images, sums)
        summary = _joined([one.summary for one in sums], shares, log_weight)
        return Expectation(sums, shares, summary)


def _log_weights(model: ParticleModel) -> Tensor:
    """Prior of the classes, [K] (float64)."""
    assert isinstance(model.conformation, Classes)
    return model.conformation.weights.double().log()


def _sharing(first: Statistics, other: Statistics) -> Statistics:
    """Sums of another class: its own insertion and summary, all else the first one's."""
    return replace(first, insertion=other.insertion, summary=other.summary)


_Run = Callable[[Filtered, Sequence[Statistics]], Tensor]
"""From a chunk of images to the posterior of the classes [n, K]; adds to the sums."""


def _route(parts: list[Member], guide: Guide, stack: ParticleStack, log_weight: Tensor) -> _Run:
    turns = guide.rotation
    if isinstance(turns, Known) and isinstance(guide.shift, Known):
        return _known(parts, stack, log_weight)
    if isinstance(turns, Exact) and whole(parts[0].model, parts[0].guide):
        return _dense(parts, turns.block_bytes, log_weight)
    if isinstance(turns, Exact | Near):
        return _searched(parts, stack, log_weight)
    raise InputError(
        "guide",
        expected="poses that are Known, Exact, Local or Proposed beside Exact classes",
        got=type(turns).__name__,
    )


def _searched(parts: list[Member], stack: ParticleStack, log_weight: Tensor) -> _Run:
    """Coarse to fine in each class; then the classes share out the images."""

    def run(images: Filtered, sums: Sequence[Statistics]) -> Tensor:
        found = []
        for part in parts:
            search, keep = finest(part.model, part.guide, stack, images)
            found.append((search, search.scan(keep)))
        shares = _posterior([search.log_evidence for search, _ in found], log_weight)
        for (search, kept), to, share in zip(found, sums, shares.unbind(1), strict=True):
            search.collect(kept, to, share if len(parts) > 1 else None)
        return shares

    return run


def _dense(parts: list[Member], block_bytes: int, log_weight: Tensor) -> _Run:
    """The whole grid in every class, block by block."""
    grids = [DenseGrid.of(part.model, part.guide.volume.maps) for part in parts]

    def run(images: Filtered, sums: Sequence[Statistics]) -> Tensor:
        pairs = [(torch.zeros_like(grid.slices), torch.zeros_like(grid.energy)) for grid in grids]
        cells = len(grids[0].shifts) * len(grids[0].rotations) * len(grids)
        shares = []
        for block in blocks(len(images), max(1, block_bytes // (4 * cells))):
            some = images.take(block)
            found = [grid.posterior(some) for grid in grids]
            share = _posterior([one.log_evidence for one in found], log_weight)
            shares.append(share)
            for one, pair, to, part in zip(found, pairs, sums, share.unbind(1), strict=True):
                by = part if len(parts) > 1 else None
                one.accumulate(reals(pair[0]), pair[1], by)
                to.shift_power += one.shift_power(by)
                to.summary.put(some.index, one.summary())
        group = int(images.group[0])
        sigma2 = parts[0].model.noise.sigma2[group]
        for grid, (numerator, weight), to in zip(grids, pairs, sums, strict=True):
            at = (grid.slices, grid.energy, grid.rotations, grid.band)
            to.add_slices(group, numerator, weight, *at, sigma2)
        return torch.cat(shares)

    return run


def _known(parts: list[Member], stack: ParticleStack, log_weight: Tensor) -> _Run:
    """At given poses."""

    def run(images: Filtered, sums: Sequence[Statistics]) -> Tensor:
        like = images.transfer
        batch = stack.batch(images.index, parts[0].model.band, like.dtype, like.device)
        poses = parts[0].guide.draw(batch, 1)
        scores = [score_few(one.model, one.guide.volume.maps, images, poses) for one in parts]
        shares = _posterior([score[0] for score in scores], log_weight)
        for part, to, share in zip(parts, sums, shares.unbind(1), strict=True):
            by, place = share if len(parts) > 1 else None, part.guide.volume.maps
            add_few(part.model, place, images, poses, _alone, to, by)
        return shares

    return run


def _alone(log_likelihood: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and bound of one given pose."""
    return torch.zeros_like(log_likelihood), log_likelihood[0].double()


def _posterior(evidence: Sequence[Tensor], log_weight: Tensor) -> Tensor:
    """Of the classes, [n, K] (float64), from each one's log evidence [n]."""
    return torch.softmax(torch.stack(list(evidence), 1) + log_weight, 1)


def _joined(
    parts: Sequence[PosteriorSummary], shares: Tensor, log_weight: Tensor
) -> PosteriorSummary:
    """The classes' summaries as one."""
    bound = torch.stack([part.bound for part in parts], 1) + log_weight
    best = shares.argmax(1)
    rows = torch.arange(len(best), device=best.device)
    found = {
        item.name: torch.stack([getattr(part, item.name) for part in parts], 1)[rows, best]
        for item in fields(PosteriorSummary)
    }
    for name in ("cross", "energy"):
        each = torch.stack([getattr(part, name) for part in parts], 1)
        found[name] = (each * shares.to(each)).sum(1)
    entropy = -torch.special.xlogy(shares, shares).sum(1)
    inside = torch.stack([part.entropy for part in parts], 1)
    found["entropy"] = (shares.to(inside) * inside).sum(1) + entropy.to(inside)
    found["probability"] = found["probability"] * shares[rows, best].to(found["probability"])
    return PosteriorSummary(**found | {"bound": bound.logsumexp(1)})
