"""Learning q by gradient steps, before an E-step uses it: tables, and encoders."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Adam, AdamW, Optimizer

from cryoprob.checks import InputError
from cryoprob.inference.dense import blocks
from cryoprob.inference.e_step import chunks, e_step
from cryoprob.inference.encoders.base import Encoder, fast_precision
from cryoprob.inference.filtered import Filtered
from cryoprob.inference.grids import off_grid, on_grid, pose_grids
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.local_search import Optimum, climb
from cryoprob.inference.m_step import update_noise
from cryoprob.inference.objectives.base import Objective
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.search import best_poses
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.models.volumes.base import Volume
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.particles import Batch, ParticleStack

__all__ = [
    "EncoderLearner",
    "Learner",
    "Names",
    "TableLearner",
    "check_finite",
    "local_parameters",
    "seeded",
    "trained",
]

Names = Callable[[Tensor], list[str]]
"""What a user calls the images of some indices."""

_STEEPEST = 1.0
"""Norm at which the gradient of an encoder is cut, nats per image."""

_NOISE_IMAGES = 500


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's own generators set to ``seed`` inside, and as they were after."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class Learner(ABC):
    """What an algorithm does for q before each E-step.

    Attributes
    ----------
    searches
        It looks for poses on a grid.
    """

    searches: ClassVar[bool] = False

    def begin(self, half: Half, stack: ParticleStack) -> None:
        """What a fit needs once, before the first step; the half's model may change."""
        return

    @abstractmethod
    def learn(self, half: Half, stack: ParticleStack, iteration: int, order: int) -> None:
        """Improve q of a half's guide at its volume, in place.

        ``order`` is that of the rotation grid which the resolution asks for.
        """


def ascend(
    half: Half, optimizer: Optimizer, objective: Objective, batch: Batch, names: Names, where: str
) -> float:
    """One step up the mean objective of a batch; returns it.

    Raises
    ------
    InputError
        If it is not finite for some image, naming that; nothing is changed then.
    """
    value = objective(half.model, half.guide, half.guide.volume.maps, batch)
    check_finite(value, batch.index, names, where)
    optimizer.zero_grad()
    (-value.mean()).backward()  # type: ignore[no-untyped-call]
    if isinstance(optimizer, AdamW):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        clip_grad_norm_(parameters, _STEEPEST, error_if_nonfinite=True)
    optimizer.step()
    half.guide.forget()
    return float(value.detach().mean())


@dataclass(frozen=True)
class TableLearner(Learner):
    """Tables: a search puts every image's law at its best pose, then Adam steps adapt it.

    Parameters
    ----------
    plan
        Grids and beam of the search, numbers of steps.
    objective
        What the steps raise.
    seed, symmetry
        Of the search's grids.
    """

    searches: ClassVar[bool] = True

    plan: Schedule
    objective: Objective
    seed: int
    symmetry: str = "C1"

    def learn(self, half: Half, stack: ParticleStack, iteration: int, order: int) -> None:
        """Search at every step; an image whose own law stands higher keeps it."""
        self._search(half, stack, iteration, order)
        if self.plan.learn_steps:
            self._adapt(half, stack, iteration)

    def _search(self, half: Half, stack: ParticleStack, iteration: int, order: int) -> None:
        model, volume = half.model, half.guide.volume.maps
        seed = self.seed * 100003 + iteration
        grids = pose_grids(model, self.plan, order, seed=seed, symmetry=self.symmetry)
        gridded = on_grid(model, *grids)
        modal = Modal(self.plan.beam, coarse_order=self.plan.coarse_order)
        with torch.no_grad():
            for images in chunks(model, stack, half.index):
                _, *pose = best_poses(gridded, volume, modal, images)
                found = climb(model, volume, images, pose[0], pose[1], max(self.plan.polish, 3))
                self._put(half, stack, images, found, iteration)

    def _put(
        self, half: Half, stack: ParticleStack, images: Filtered, found: Optimum, iteration: int
    ) -> None:
        rotation, shift = half.guide.rotation, half.guide.shift
        index = images.index
        if iteration:
            volume = half.guide.volume.maps
            batch = _batch(stack, half, index)
            rotation_now, shift_now = (part.mode(batch) for part in half.guide.drawn)
            stands = climb(half.model, volume, images, rotation_now, shift_now, 0).log_joint
            better = found.log_joint > stands
            index, found = index[better], found.take(better)
        covariance = found.covariance
        if isinstance(rotation, PerImage):
            turn = covariance[:, :3, :3]
            rotation.numbers.data[index] = rotation.law.around(found.rotation, turn)
        if isinstance(shift, PerImage):
            move = covariance[:, 3:, 3:]
            shift.numbers.data[index] = shift.law.around(found.shift, move)

    def _adapt(self, half: Half, stack: ParticleStack, iteration: int) -> None:
        """Images do not depend on each other at a volume: block by block, a fresh Adam each."""
        parameters = local_parameters(half.guide)
        where = f"q of the poses, iteration {iteration + 1}"
        for part in blocks(len(half.index), self.plan.batch):
            batch = _batch(stack, half, half.index[part])
            optimizer = Adam(parameters, lr=self.plan.learn_rate)
            for _ in range(self.plan.learn_steps):
                ascend(half, optimizer, self.objective, batch, stack.image_names, where)


@dataclass(frozen=True)
class EncoderLearner(Learner):
    """Encoders: minibatches of the stack, the objectives in turn, one AdamW for the whole fit.

    Parameters
    ----------
    plan
        Numbers of steps and images, rate.
    warm
        The objective before the first E-step, after the noise was set by one exact E-step.
    objectives
        Those before the later ones, a step each.
    symmetry
        Of that exact E-step.
    """

    plan: Schedule
    warm: Objective
    objectives: Sequence[Objective]
    symmetry: str = "C1"

    def begin(self, half: Half, stack: ParticleStack) -> None:
        """Set the noise: images that the model draws must have the contrast of real ones."""
        set_noise(half, stack, self.plan, self.symmetry)

    def learn(self, half: Half, stack: ParticleStack, iteration: int, order: int) -> None:
        """Train for the step's share: 100 steps of rising rate, then half a cosine to zero."""
        optimizer = AdamW(local_parameters(half.guide), lr=self.plan.learn_rate, fused=True)
        if half.optimizer:
            optimizer.load_state_dict(half.optimizer)
        steps = self.plan.warm_steps if iteration == 0 else self.plan.learn_steps
        menu = [self.warm] if iteration == 0 else list(self.objectives)
        where = f"encoder of the poses, iteration {iteration + 1}"
        narrow = _narrowed(half)
        with trained(half):
            for step in range(steps):
                rise = min(1.0, (step + 1) / min(100, steps))
                for group in optimizer.param_groups:
                    share = (1 + cos(pi * step / steps)) / 2
                    group["lr"] = self.plan.learn_rate * rise * share
                self._step(half, narrow, stack, optimizer, menu[step % len(menu)], where)
        half.optimizer = optimizer.state_dict()

    def _step(
        self,
        half: Half,
        narrow: Half,
        stack: ParticleStack,
        optimizer: Optimizer,
        objective: Objective,
        where: str,
    ) -> None:
        """Drawn images cost little in the encoder's own band; real ones need the model's."""
        drawn = objective.kind == "inclusive"
        used, count = (narrow, self.plan.batch) if drawn else (half, self.plan.batch // 8)
        count = max(1, count)
        if drawn:  # images lend their CTF and noise alone: any number of times
            index = half.index[torch.randint(len(half.index), (count,))]
        else:
            index = half.index[torch.randperm(len(half.index))[:count]]
        batch = _batch(stack, used, index)
        ascend(used, optimizer, objective, batch, stack.image_names, where)


@contextmanager
def trained(half: Half) -> Iterator[None]:
    """Training mode, in the fastest precision; both as they were after."""
    encoders = [part for part in half.guide.modules() if isinstance(part, Encoder)]
    sigma2 = half.model.noise.sigma2
    fast = None if sigma2.dtype == torch.float64 else fast_precision(sigma2.device)
    half.guide.train()
    parts: list[Volume | Encoder] = [half.model.volume, *encoders]
    for part in parts:
        part.precision = fast
    yield
    half.guide.eval()
    for part in parts:
        part.precision = None


def _narrowed(half: Half) -> Half:
    """The half with a model that explains no more shells than the encoders look at."""
    encoders = [part for part in half.guide.modules() if isinstance(part, Encoder)]
    model, radius = half.model, max(part.band.radius for part in encoders)
    old = model.linear_volume
    volume = FourierVoxels(
        model.band.box,
        old.tau2,
        radius=min(radius, model.band.radius),
        interpolation=old.interpolation,
        dtype=old.tau2.dtype,
        device=old.tau2.device,
    )
    free = off_grid(model)
    narrow = model.on(volume, free.rotation, free.shift)
    return Half(narrow, half.guide, half.index)


def set_noise(half: Half, stack: ParticleStack, plan: Schedule, symmetry: str) -> None:
    """Noise from the residual of one exact E-step over some images, at the half's volume."""
    grids = pose_grids(half.model, plan, min(2, plan.max_order), seed=0, symmetry=symmetry)
    exact = Exact(None if plan.mass == 1 else plan.mass, coarse_order=min(2, plan.coarse_order))
    guide = Guide(rotation=exact, shift=exact, volume=half.guide.volume)
    some = half.index[:: max(1, len(half.index) // _NOISE_IMAGES)]
    update_noise(half.model, e_step(on_grid(half.model, *grids), guide, stack, some))


def local_parameters(guide: Guide) -> list[nn.Parameter]:
    """Free numbers of the local sites; an encoder that they share counts once."""
    return list(nn.ModuleList(guide.sites.values()).parameters())


def _batch(stack: ParticleStack, half: Half, index: Tensor) -> Batch:
    like = half.model.noise.sigma2
    return stack.batch(index, half.guide.band(half.model), like.dtype, like.device)


def check_finite(value: Tensor, index: Tensor, names: Names, where: str) -> None:
    """Raise InputError, naming the images, unless the values [n] of images ``index`` are."""
    bad = ~value.isfinite()
    if bad.any():
        images = ", ".join(names(index[bad][:4]))
        raise InputError(
            where,
            expected="a finite objective for every image",
            got=f"{int(bad.sum())} that are not ({images})",
            remedy="Look at these images with `cryoprob info`, or lower --set learn_rate=...",
        )
