"""The price of a q that is as wide for every image, in nats per image, on the grid of poses."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoprob.fourier.gaussian_map import AnyMap
from cryoprob.inference.best_law import BestLaw, at_cells, at_moments, best_law
from cryoprob.inference.evidence import GridScores, scores
from cryoprob.inference.laws.rotations import ConcentratedLaw
from cryoprob.inference.laws.shifts import NormalShift
from cryoprob.inference.levels import Level
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack

__all__ = ["FixedWidth", "fixed_width"]


@dataclass(frozen=True, eq=False)
class FixedWidth:
    """What one width of q for all images costs.

    Attributes
    ----------
    index
        Places in the stack, [n].
    price
        ELBO of the best law of free width (for each image, and each axis) minus that of the best
        law of the one width, [n] (float64); never negative.
    free
        KL divergence of the best law of free width from the posterior, [n] (float64).
    rotation_deg, shift_A
        That width about every axis, degrees, and along x and y, Angstrom.
    """

    index: Tensor
    price: Tensor
    free: Tensor
    rotation_deg: float
    shift_A: float


def fixed_width(
    model: ParticleModel, volume: AnyMap, stack: ParticleStack, index: Tensor
) -> FixedWidth:
    """Price of a q whose rotations and shifts are as wide for every image, on the model's grids.

    Of laws concentrated about a mode, and normal: first the best ones of free widths, image by
    image (:func:`~cryoprob.inference.best_law.best_law`); then the best ones whose widths are all
    the medians of these, geometric means over axes; last, free widths again, from these on.
    """
    level, unit = Level.of(model), float(model.shift.sigma)
    laws = ConcentratedLaw(), NormalShift(unit)
    free = [
        best_law(*laws, at_moments(*laws, found.log_joint, level), found.log_joint, level)
        for found in scores(model, volume, stack, index)
    ]
    degrees = _median([laws[0].width_deg(part.rotation) for part in free])
    length = _median([laws[1].width_A(part.shift) for part in free])
    alike = _OneWidth(laws, degrees, length, level)
    rows = [
        (found.index, *alike.price(found, best))
        for found, best in zip(scores(model, volume, stack, index), free, strict=True)
    ]
    where, price, left = (torch.cat(part) for part in zip(*rows, strict=True))
    return FixedWidth(where, price, left, degrees, length)


@dataclass(frozen=True, eq=False)
class _OneWidth:
    """Laws of free widths, and the one width that they are held against."""

    laws: tuple[ConcentratedLaw, NormalShift]
    degrees: float
    length: float
    level: Level

    def price(self, found: GridScores, free: BestLaw) -> tuple[Tensor, Tensor]:
        """What the one width costs beyond the best free ones, and what those do, [n]."""
        joint, level = found.log_joint, self.level
        turning = ConcentratedLaw(self.degrees, fixed=True)
        moving = NormalShift(self.laws[1].unit, self.length, fixed=True)
        own = free.rotation[:, : turning.size], free.shift[:, : moving.size]
        alike = best_law(
            turning, moving, [own, *at_cells(turning, moving, joint, level)], joint, level
        )
        wide = ConcentratedLaw(self.degrees), NormalShift(self.laws[1].unit, self.length)
        poses = turning.mode(alike.rotation), moving.mode(alike.shift)
        start = wide[0].numbers(poses[0]), wide[1].numbers(poses[1])
        again = best_law(*self.laws, [start], joint, level).bound
        # the free widths may be the one width
        top = torch.maximum(torch.maximum(free.bound, again), alike.bound)
        return top - alike.bound, joint.flatten(1).logsumexp(1) - top


def _median(parts: list[Tensor]) -> float:
    return float(torch.cat(parts).double().quantile(0.5))
