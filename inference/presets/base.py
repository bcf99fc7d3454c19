"""What a preset is: a published system as parts of this package, put together in one file."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cryoprob.checks import InputError, require
from cryoprob.fourier.bands import full_band
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.build import assemble, starting_noise
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.imaging import Latent, exact_imaging
from cryoprob.inference.joint import Joint, JointState
from cryoprob.inference.joint_finish import finish_joint, settle_contrasts
from cryoprob.inference.loop import Algorithm, State
from cryoprob.inference.noted import Noted, NotedSchedule
from cryoprob.inference.objectives.base import Objective
from cryoprob.inference.result import FitResult
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.starts import reference_map
from cryoprob.inference.treatments.base import Treatment
from cryoprob.inference.treatments.known import Known
from cryoprob.models import sites
from cryoprob.models.conformations.base import Conformation
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.structure_factors import Term
from cryoprob.models.volumes.base import Volume
from cryoprob.particles import ParticleStack
from cryoprob.types import Maps

__all__ = ["KL_START", "Built", "Preset", "Row", "Scene"]

KL_START = 0.05
"""Weight of a normal q's divergence at the start: low, lest a learned noise take its place."""

_CONTRAST_HELD = 0.2
"""Share of the training in which contrasts are 1, until the volume is no longer one of chance."""


@dataclass(frozen=True)
class Row:
    """A system's row of the review's Tables 1 and 4.

    Attributes
    ----------
    volume, conformation
        What a volume and a conformation are.
    hidden
        Local latents that are inferred.
    inference
        The review's name of how.
    """

    volume: str
    conformation: str
    hidden: str
    inference: str


@dataclass(frozen=True, eq=False)
class Scene(Noted):
    """What a preset builds from; notes what is read of the plan and of the options.

    What a preset leaves unread has its default (:mod:`cryoprob.inference.unused` sees to it), so
    that a reading which is no use, of what all presets share, may go by :attr:`given`. A part that
    reads settings only later is handed those it has (:meth:`Schedule.only`).

    Attributes
    ----------
    stack
        All particles.
    plan
        Settings, the preset's own and the user's.
    power
        Mean power of the images per group and shell, [G, S].
    references, low_pass_A
        Paths of maps or structures to start from, and the maps' filter; none from nothing.
    seed, symmetry
        Of the fit.
    kind
        ``dtype`` and ``device``.
    latent
        Which of contrast and defocus are sites of their own.
    sketch
        It is built for what it reads only: no image is looked at.
    given
        The plan, its readings not noted.
    """

    watched = frozenset({"references", "low_pass_A", "symmetry"})

    stack: ParticleStack
    plan: Schedule
    power: Tensor
    references: list[str]
    low_pass_A: float
    seed: int
    symmetry: str
    kind: dict[str, Any]
    latent: Latent = field(default_factory=Latent)
    sketch: bool = False
    given: Schedule = field(init=False)

    def __post_init__(self) -> None:
        vars(self).update(given=self.plan, plan=NotedSchedule(self.plan), read=set())

    @property
    def known(self) -> tuple[Known, Known]:
        """The poses of the particles' file, as given.

        Raises
        ------
        InputError
            If there are none.
        """
        stack = self.stack
        if stack.rotation is None or stack.shift is None:
            raise InputError("poses", expected="particles with poses", got="none")
        return Known(self.put(stack.rotation)), Known(self.put(stack.shift))

    @property
    def start(self) -> Maps | None:
        """The reference map [D, D, D], or None."""
        return self.reader() if self.references else None

    @property
    def reader(self) -> Callable[[], Maps]:
        """Reads the first reference [D, D, D]."""
        given = self.references[0], self.stack, self.low_pass_A
        return lambda: self.put(reference_map(*given))

    @property
    def nowhere(self) -> Known:
        """No shifts."""
        return Known(self.put(torch.zeros(len(self.stack), 2)))

    @property
    def nowhere_once(self) -> Tensor:
        """No shift, [1, 2]."""
        return self.put(torch.zeros(1, 2))

    @property
    def rotation(self) -> Tensor:
        """A random rotation, [1, 3, 3]."""
        return self.put(random_rotations(1, self.generator, torch.float64))

    @property
    def unit_A(self) -> float:
        """Angstrom per pixel, half of it: shifts are usually within half of their extent."""
        return self.stack.pixel_size / 2

    @property
    def everything(self) -> Tensor:
        """Indices of all images."""
        return torch.arange(len(self.stack))

    @property
    def generator(self) -> torch.Generator:
        """A new one of the fit's seed."""
        return torch.Generator().manual_seed(self.seed)

    @property
    def sigma2(self) -> Tensor:
        """Noise spectra to start from: the images' own power; or the held one of ``beta``.

        A training that weighs the divergence by ``beta`` against squared errors in units of the
        images' variance is that of an ELBO whose noise variance is ``beta / 2`` in these units.
        """
        power = self.put(starting_noise(self.power))
        return power if not self.given.beta else torch.full_like(power, self._held_noise)

    @property
    def spectrum(self) -> Tensor:
        """The images' power per shell, whatever their noise is taken to be, [S].

        The scale of volumes and of what encoders look at.
        """
        return self.put(starting_noise(self.power)).mean(0)

    @property
    def _held_noise(self) -> float:
        numbers = full_band(self.stack.box).numbers_per_shell()
        mean = (self.power * numbers).sum(1) / numbers.sum()
        return float(mean.mean()) * self.given.beta / 2

    def put(self, values: Tensor) -> Tensor:
        """Numbers in the fit's type and place."""
        return values.to(**self.kind)

    @property
    def steps(self) -> int:
        """Gradient steps in as many passes as the plan has."""
        return max(1, round(self.plan.epochs * len(self.stack) / self.plan.batch))

    def model(
        self,
        volume: Volume,
        conformation: Conformation | None = None,
        terms: Iterable[Term] = (),
    ) -> ParticleModel:
        """A model of a volume, noise at its start."""
        return assemble(self.stack, self.given, self.sigma2, volume, conformation, terms)

    def train(
        self, model: ParticleModel, guide: Guide, objective: Objective, **options: Any
    ) -> "Built":
        """Volume and q raised together by gradient steps (:class:`Joint`), in all shells.

        Of its ``options`` the user's ``kl_start`` goes before a preset's own. Contrast and
        defocus, where they are latent, are summed out.

        Raises
        ------
        InputError
            If they are latent and the objective does not sum them out.
        """
        self.latent.put(model)
        seen = _summed_by(objective, exact_imaging(model))
        guide = guide.replaced(**seen)
        if sites.CONTRAST in seen:
            options["held"] = {**options.get("held", {}), sites.CONTRAST: _CONTRAST_HELD}
        radius = self.plan.max_radius or self.stack.box // 2 - 1
        plan, half = self.plan, Half(model, guide, self.everything)
        own: dict[str, Any] = {"rate": plan.learn_rate, "batch": plan.batch, "radius": radius}
        options = own | {"first_radius": radius} | options | self._weights(objective)
        joint = Joint(objective, self.seed, self.steps, **options)
        state, left = JointState(half), (self.stack, objective, self.seed)
        settle = partial(settle_contrasts, half, *left)
        finish = partial(finish_joint, state, *left)
        return Built(half, joint, state, joint.records, finish, settle, objective=objective)

    def _weights(self, objective: Objective) -> dict[str, Any]:
        """Of noise and divergence, where the objective is a density of images and has them."""
        if not objective.sums_imaging:
            return {}
        plan = self.plan
        found: dict[str, Any] = {"noise": not plan.beta, "anneal": plan.anneal}
        if plan.kl_start or plan.beta:  # a held noise takes nothing's place
            found["kl_start"] = plan.kl_start or 1.0
        return found


def _summed_by(objective: Objective, seen: dict[str, Treatment]) -> dict[str, Treatment]:
    """Treatments that sum contrast and defocus out, if the objective can."""
    where = " and ".join(seen)
    require(
        objective.sums_imaging or not seen,
        where,
        expected="an objective that is a density of images (elbo, iwae, profile_log_joint)",
        got=f"{objective.kind}, which compares shapes alone at one defocus",
        remedy="Leave --contrast and --defocus out, or take another preset: cryodrgn, cryofold.",
    )
    return seen


@dataclass(frozen=True, eq=False)
class Built:
    """An algorithm at its start, and how its end becomes a result.

    Attributes
    ----------
    half
        Model, guide and images.
    algorithm, state
        For the loop, at most ``steps`` of it.
    finish
        Makes the result of the state at the end.
    settle
        Brings model and guide of a checkpoint to where ``finish`` leaves them.
    begin
        What is done once, before the first step.
    objective
        Of gradient training.
    """

    half: Half
    algorithm: Algorithm
    state: State
    steps: int
    finish: Callable[[], FitResult]
    settle: Callable[[], object] = lambda: None
    begin: Callable[[], None] = lambda: None
    objective: Objective | None = None


@dataclass(frozen=True)
class Preset:
    """One published system.

    Attributes
    ----------
    name
        On the command line.
    paper
        Citation.
    row
        Of the review's tables.
    words
        What is faithful to the paper, and what is not.
    config, plan
        Settings of its own (:class:`FitConfig`, :class:`Schedule`); the user's go before them.
    build
        Builds the system; None where families and settings say it all.
    """

    name: str
    paper: str
    row: Row
    words: str
    config: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    build: Callable[[Scene], Built] | None = None

    def __post_init__(self) -> None:
        unknown = set(self.plan) - set(Schedule.__dataclass_fields__)
        require(not unknown, "preset", expected="known settings", got=", ".join(sorted(unknown)))
