"""Search and gradients in turn: poses from a grid, volume and conformations by gradient steps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.e_step import chunks
from cryoprob.inference.grids import on_grid, pose_grids
from cryoprob.inference.half import Half
from cryoprob.inference.joint import Joint, JointState
from cryoprob.inference.latent import centers
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.search import searcher
from cryoprob.inference.treatments.base import Drawn
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.voxel_model import voxel_model
from cryoprob.particles import ParticleStack

__all__ = ["Alternating", "search_poses"]

_BLOCK = 512


@dataclass(frozen=True)
class Alternating:
    """Gradient steps as of :class:`Joint`, at poses that a search finds anew from time to time.

    Before the first search poses are random, and the volume learns what all views share. Zhong et
    al. 2020 (cryoDRGN-BNB) and 2021 (cryoDRGN2).

    Parameters
    ----------
    joint
        The gradient steps.
    plan
        Grids of the search; the order of the finest grid grows with the band.
    modal
        How a grid is searched: its beam, or bound.
    first, every
        Records (of 50 steps) before the first search, and from one to the next.
    start_radius
        Largest shell of a search before the first step: what the volume's start tells of; 0 for
        the band of the first steps.
    states
        Conformations, spread over the latent space, at whose maps poses are searched: each image
        at that nearest to its own.
    """

    joint: Joint
    plan: Schedule
    modal: Modal
    first: int
    every: int
    states: int = 16
    start_radius: int = 0

    def step(self, state: JointState, stack: ParticleStack) -> dict[str, Any]:
        """A search where one is due, then fifty gradient steps; after the last ones a search."""
        number, half = state.iteration, state.half
        if number == 0:
            self._scatter(half)
            half.model.volume.set_band(self.start_radius or self.joint.first_radius)
        if number >= self.first and (number - self.first) % self.every == 0:
            self._search(half, stack, number)
        record = self.joint.step(state, stack)
        if state.done:
            self._search(half, stack, number + 1)
        return record

    def _search(self, half: Half, stack: ParticleStack, number: int) -> None:
        """The search before record ``number``, or after the last."""
        seed = self.joint.seed * 100003 + number
        search_poses(half, stack, self.plan, self.modal, seed=seed, states=self.states)

    def _scatter(self, half: Half) -> None:
        """Random poses for all images."""
        generator = torch.Generator().manual_seed(self.joint.seed)
        turns, moves = _tables(half)
        drawn = random_rotations(len(turns.numbers), generator, torch.float64)
        turns.numbers.data = turns.law.numbers(drawn.to(turns.numbers))
        moves.numbers.data.zero_()


def search_poses(
    half: Half, stack: ParticleStack, plan: Schedule, modal: Modal, *, seed: int, states: int
) -> None:
    """Search the best pose of every image at the map of a conformation near its own.

    A latent contrast is taken as 1 here, a latent defocus as the file's.

    Raises
    ------
    InputError
        If the guide's poses are not tables of Diracs.
    """
    turns, moves = _tables(half)
    order = plan.order(half.model.band.radius)
    with torch.no_grad():
        for density, index in _maps(half, stack, states, seed):
            model = voxel_model(half.model.as_given(), density)
            gridded = on_grid(model, *pose_grids(model, plan, order, seed=seed))
            search = searcher(gridded, density, modal)
            for images in chunks(gridded, stack, index):
                _, turn, move = search(images)
                turns.numbers.data[images.index] = turns.law.numbers(turn)
                moves.numbers.data[images.index] = moves.law.numbers(move)


def _maps(half: Half, stack: ParticleStack, states: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Maps [D, D, D] of conformations, each with the images that are searched there."""
    model, guide = half.model, half.guide
    weights = guide.volume.coefficients.detach()
    if model.conformation is None:
        return [(model.volume.density(weights), half.index)]
    assert isinstance(guide.conformation, Drawn)
    like, found = model.noise.sigma2, []
    for index in half.index.split(_BLOCK):
        guide.forget()
        batch = stack.batch(index, full_band(stack.box), like.dtype, like.device)
        found.append(guide.conformation.mode(batch))
    guide.forget()
    values = torch.cat(found)
    points, nearest = centers(values, min(states, len(values)), seed)
    parts = [(point, half.index[nearest.cpu() == k]) for k, point in enumerate(points)]
    return [(model.volume.density(weights, point), own) for point, own in parts if len(own)]


def _tables(half: Half) -> tuple[PerImage, PerImage]:
    """The Diracs of all images' poses."""
    turns, moves = half.guide.rotation, half.guide.shift
    if isinstance(turns, PerImage) and isinstance(moves, PerImage) and not turns.has_density:
        return turns, moves
    got = f"rotation {type(turns).__name__}, shift {type(moves).__name__}"
    wanted = "tables of Diracs at rotation and shift (PerImage)"
    raise InputError("guide", expected=wanted, got=got)
