"""Tables of normal laws, put at the modes of a search and raised by natural gradients."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cryoprob.checks import InputError
from cryoprob.geometry.grids import RotationGrid
from cryoprob.inference.dense import blocks
from cryoprob.inference.e_step import chunks
from cryoprob.inference.filtered import Filtered
from cryoprob.inference.grids import on_grid, pose_grids
from cryoprob.inference.half import Half
from cryoprob.inference.laws.rotations import ConcentratedLaw
from cryoprob.inference.laws.shifts import NormalShift
from cryoprob.inference.learn import Learner, Names, check_finite
from cryoprob.inference.local_search import Optimum, climb
from cryoprob.inference.natural_gradient import NaturalAscent
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.search import distinct_poses
from cryoprob.inference.treatments.base import Treatment
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.models.poses.rotation_support import SCALE_AT_ORIGIN
from cryoprob.particles import ParticleStack

__all__ = ["NaturalLearner"]

_STARTS = 4
"""Modes of the search whose Laplace's laws are tried; the one of the best bound is raised."""

_APART = 1.5
"""How far apart they are, in spacings of the coarsest grid."""

_BLOCK_BYTES = 2**26


@dataclass(frozen=True)
class NaturalLearner(Learner):
    """Laws of poses that are normal in the tangent space, raised to the top of their bounds.

    A search gives each image's best distinct poses. Of Laplace's laws around these and the law
    that the image has, natural gradients raise the one of the best ELBO, which never falls.
    (:class:`~cryoprob.inference.learn.TableLearner` is for other laws and other objectives.)

    Parameters
    ----------
    plan
        Grids and beam of the search, numbers of steps.
    seed, symmetry
        Of the search's grids.
    """

    searches: ClassVar[bool] = True

    plan: Schedule
    seed: int
    symmetry: str = "C1"

    def learn(self, half: Half, stack: ParticleStack, iteration: int, order: int) -> None:
        """Search, then at most the plan's ``learn_steps`` steps; images one by one.

        Raises
        ------
        InputError
            If the guide has other laws, or a bound is not finite, naming the image.
        """
        model, volume = half.model, half.guide.volume.maps
        seed = self.seed * 100003 + iteration
        grids = pose_grids(model, self.plan, order, seed=seed, symmetry=self.symmetry)
        modal = Modal(self.plan.beam, coarse_order=self.plan.coarse_order)
        apart = _APART * RotationGrid(self.plan.coarse_order).spacing_deg
        work = _Work.of(half, self.plan, stack.image_names, iteration)
        with torch.no_grad():
            for images in chunks(model, stack, half.index):
                gridded = on_grid(model, *grids)
                poses = distinct_poses(gridded, volume, modal, images, _STARTS, apart)
                for part in blocks(len(images), work.block):
                    work.raise_laws(images.take(part), *(pose[part] for pose in poses))


@dataclass(frozen=True, eq=False)
class _Work:
    """What raises the laws of a guide's tables at one iteration."""

    ascent: NaturalAscent
    tables: tuple[PerImage, PerImage]
    plan: Schedule
    names: Names
    iteration: int

    @classmethod
    def of(cls, half: Half, plan: Schedule, names: Names, iteration: int) -> "_Work":
        """For the tables of a half's guide, at its volume."""
        rotation, shift = half.guide.rotation, half.guide.shift
        if isinstance(rotation, PerImage) and isinstance(shift, PerImage):
            turns, moves = rotation.law, shift.law
            if isinstance(turns, ConcentratedLaw) and isinstance(moves, NormalShift):
                ascent = NaturalAscent(half.model, half.guide.volume.maps, turns, moves)
                return cls(ascent, (rotation, shift), plan, names, iteration)
        raise InputError(
            "guide",
            expected="tables (PerImage) of a ConcentratedLaw and a NormalShift",
            got=f"rotation {_name(rotation)}, shift {_name(shift)}",
            remedy="Use TableLearner, which follows the gradient of any law.",
        )

    @property
    def block(self) -> int:
        """Images that are worked on at once, at 13 slices for each start."""
        return max(1, _BLOCK_BYTES // (1000 * (_STARTS + 1) * len(self.ascent.model.band)))

    def raise_laws(self, images: Filtered, turns: Tensor, moves: Tensor) -> None:
        """From the best of the laws around poses [n, S, 3, 3] and [n, S, 2], and of the own."""
        numbers = self._starts(images, turns, moves)
        count, starts = numbers[0].shape[:2]
        first = torch.arange(count, device=turns.device)
        many = images.take(first.repeat_interleave(starts))
        stand = self.ascent.at(many, *(part.flatten(0, 1) for part in numbers))
        self._check(stand.bound, images)
        best = starts * first + stand.bound.view(count, starts).argmax(1)
        stand = self.ascent.climb(images, stand.take(best), self.plan.learn_steps)
        for table, found in zip(self.tables, (stand.rotation, stand.shift), strict=True):
            table.numbers.data[images.index] = found

    def _starts(self, images: Filtered, turns: Tensor, moves: Tensor) -> list[Tensor]:
        """Numbers [n, S, size] of Laplace's laws at the tops near poses, and of the own ones."""
        shape, model = turns.shape[:2], self.ascent.model
        row = torch.arange(len(images), device=turns.device).repeat_interleave(shape[1])
        many, steps = images.take(row), max(self.plan.polish, 2)
        poses = turns.flatten(0, 1), moves.flatten(0, 1)
        found = climb(model, self.ascent.volume, many, *poses, steps)
        self._check(found.log_joint + found.information.sum((1, 2)), images)
        numbers = [part.unflatten(0, shape) for part in self._laplace(found)]
        if not self.iteration:  # the tables hold nothing yet
            return numbers
        own = [table.numbers.data[images.index, None] for table in self.tables]
        return [torch.cat(pair, 1) for pair in zip(numbers, own, strict=True)]

    def _laplace(self, found: Optimum) -> tuple[Tensor, Tensor]:
        """Laws with the information's own blocks, that of the uniform prior's chart included."""
        information = found.information.double()
        turned = information[:, :3, :3] + torch.eye(3).to(information) / SCALE_AT_ORIGIN**2
        turn, move = (torch.linalg.inv(part) for part in (turned, information[:, 3:, 3:]))
        rotation = self.ascent.rotation.around(found.rotation.double(), turn)
        shift = self.ascent.shift.around(found.shift.double(), move)
        return rotation.to(found.rotation), shift.to(found.shift)

    def _check(self, value: Tensor, images: Filtered) -> None:
        """Stop where a value [n * S] is not finite."""
        where = f"q of the poses, iteration {self.iteration + 1}"
        each = value.view(len(images), -1).sum(1)
        check_finite(each, images.index, self.names, where)


def _name(part: Treatment) -> str:
    law = f" of a {type(part.law).__name__}" if isinstance(part, PerImage) else ""
    return f"{type(part).__name__}{law}"
