"""Exact EM with frequency marching, grids that grow finer, and half sets: init and step."""

from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from cryoprob.fourier.normal import NormalEquations
from cryoprob.fourier.shells import shell_mean
from cryoprob.inference.common_factor import rescale
from cryoprob.inference.expectation import expectation
from cryoprob.inference.grids import pose_grids
from cryoprob.inference.half import Half, pack_half, unpack_half
from cryoprob.inference.learn import Learner, seeded
from cryoprob.inference.m_step import (
    Solution,
    lift_tau2,
    solve_volume,
    tau2_from_fsc,
    update_contrast,
    update_noise,
    update_shift_sigma,
    update_tau2,
)
from cryoprob.inference.members import Expectation, Member
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.solvent import Solvent
from cryoprob.inference.statistics import Statistics
from cryoprob.inference.treatments.base import Drawn, Near
from cryoprob.inference.treatments.known import Known
from cryoprob.metrics.fsc import fsc, last_shell
from cryoprob.models.conformations.classes import Classes
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack

__all__ = ["EM", "EMState"]

_SHARP, _ONE_CELL = 0.3, 0.7
_PLAIN = ("iteration", "order", "shell", "best", "stalled", "done", "history")


@dataclass(eq=False)
class EMState:
    """Where a refinement stands.

    Attributes
    ----------
    halves
        One, or two with half sets.
    iteration
        Steps taken.
    order
        Grid order of the last step.
    shell
        Resolution: the last shell with more signal than a third of the noise, or of FSC 0.143.
    best, stalled
        Largest log evidence per image so far, and steps without progress.
    done
        Nothing more to gain.
    history
        One record per step.
    curve
        FSC of the half maps, or empty.
    """

    halves: list[Half]
    iteration: int = 0
    order: int = 0
    shell: int = 0
    best: float = -torch.inf
    stalled: int = 0
    done: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    curve: Tensor = field(default_factory=lambda: torch.zeros(0))

    def pack(self) -> dict[str, Any]:
        """Everything a checkpoint needs, as tensors and plain values."""
        plain = {n: getattr(self, n) for n in _PLAIN}
        return {**plain, "curve": self.curve, "halves": [pack_half(half) for half in self.halves]}

    def unpack(self, content: dict[str, Any]) -> None:
        """Take up the state of a checkpoint; the halves' parts are there already."""
        for name in _PLAIN:
            setattr(self, name, content[name])
        self.curve = content["curve"]
        for half, packed in zip(self.halves, content["halves"], strict=True):
            unpack_half(half, packed)


@dataclass(frozen=True)
class EM:
    """EM of every family: the guide's E-step, a closed-form M-step, a schedule.

    Parameters
    ----------
    schedule
        Bands, grids and stopping.
    seed
        Of the random turns of the grid.
    solvent
        Mask applied to the maps.
    symmetry
        Point group.
    learner
        Trains what q learns by steps, before each E-step (none for searches and known poses).
    """

    schedule: Schedule
    seed: int
    solvent: Solvent
    symmetry: str = "C1"
    learner: Learner | None = None

    def step(self, state: EMState, stack: ParticleStack) -> dict[str, Any]:
        """One E-step and M-step of every half; returns (and appends) the step's record."""
        began = perf_counter()
        grew, divergence = self._plan(state), _divergence(state)
        parts = [self._expect(state, half, n, stack) for n, half in enumerate(state.halves)]
        for half, statistics in zip(state.halves, parts, strict=True):
            self._m_step(state, half, statistics, rounds=2 if grew else 1)
        self._resolve(state, stack.box)
        for half in state.halves:
            if half.guide.volume.has_density:
                half.guide.volume.settle(half.model.linear_volume.tau2)
        record = self._record(state, parts, grew) | divergence
        state.history.append(record)
        return {**record, "seconds": perf_counter() - began}

    def _expect(
        self, state: EMState, half: Half, number: int, stack: ParticleStack
    ) -> Expectation:
        """The E-step; what q learns by steps is learned first."""
        if self.learner is not None:
            with seeded(self.seed * 100003 + 2 * state.iteration + number):
                if state.iteration == 0:
                    self.learner.begin(half, stack)
                self.learner.learn(half, stack, state.iteration, state.order)
        return self.e_step(half, stack, 2 * state.iteration + number)

    def regrid(self, state: EMState) -> None:
        """Put the grids of the last step in place, for a state that comes from a checkpoint."""
        last = state.history[-1] if state.history else {}
        if "order" not in last:
            return
        for number, half in enumerate(state.halves):
            if not half.model.rotation.enumerable:
                self._grids(half, last["order"], 2 * (state.iteration - 1) + number)

    def solve(self, half: Half | Member, equations: NormalEquations) -> Solution:
        """The map of some normal equations under a half's (or a class's) prior."""
        start, tau2 = half.guide.volume.coefficients.data, half.model.linear_volume.tau2
        kind = self.schedule.m_step
        limit = 1 if kind == "gradient" else 100
        return solve_volume(
            equations,
            tau2,
            start,
            exact=kind != "diagonal",
            tolerance=1e-3,
            max_iterations=limit,
        )

    def _plan(self, state: EMState) -> bool:
        """Set band and grids of the step; whether they grew."""
        first = state.halves[0]
        known = isinstance(first.guide.rotation, Known)
        shell = state.shell if not known else first.model.band.box
        radius = self.schedule.radius(first.model.band.box, shell)
        radius = max(radius, first.model.band.radius)  # or it could swing for ever
        order = max(state.order, self._finer(state))
        grew = radius > first.model.band.radius or order > state.order or state.iteration == 0
        state.order = order
        for number, half in enumerate(state.halves):
            half.model.volume.set_band(radius)
            if not known:
                self._grids(half, order, 2 * state.iteration + number)
        return grew

    def _finer(self, state: EMState) -> int:
        """The order that resolution and posteriors ask for, at most one more than before.

        While an image leaves many cells open a finer grid costs much and tells little; where most
        of it lies in one cell the grid is what limits it.
        """
        plan, rotation = self.schedule, state.halves[0].guide.rotation
        if isinstance(rotation, Drawn):  # no posterior over cells to be sharp
            sharpness = 0.5
        else:
            sharpness = state.history[-1]["probability"] if state.history else 0.0
        wanted = state.order < plan.order(state.shell) and sharpness > _SHARP
        if (wanted or sharpness > _ONE_CELL) and state.order < plan.max_order:
            return state.order + 1
        return max(state.order, plan.coarse_order)

    def _grids(self, half: Half, order: int, draw: int) -> None:
        """Put the poses on grids where they are searched; laws live on the continuum."""
        if not half.guide.rotation.searches:
            return
        least = int(isinstance(half.guide.rotation, Near))
        half.model.rotation, half.model.shift = pose_grids(
            half.model,
            self.schedule,
            order,
            seed=self.seed * 100003 + draw,
            symmetry=self.symmetry,
            least=least,
        )

    def e_step(self, half: Half, stack: ParticleStack, number: int) -> Expectation:
        """The posteriors of a half's images; ``number`` seeds the draws of q, where it has any."""
        how: dict[str, Any] = {"symmetry": self.symmetry, "draws": max(self.schedule.draws, 1)}
        with seeded(number):
            return expectation(half.model, half.guide, stack, half.index, **how)

    def _m_step(self, state: EMState, half: Half, found: Expectation, rounds: int) -> None:
        """Every class's volume, then what the classes share."""
        model, shared = half.model, found.parts[0]
        parts, alone = half.members, len(state.halves) == 1
        pairs = zip(parts, found.parts, strict=True)
        half.solutions = [self._volume_step(one, sums, rounds, alone) for one, sums in pairs]
        if parts[0].guide is not half.guide:
            maps = [one.guide.volume.coefficients.data for one in parts]
            half.guide.volume.coefficients.data = torch.stack(maps)
        if isinstance(model.conformation, Classes):
            model.conformation.update(found.shares[half.index].sum(0))
        if found.imaging is not None:
            rescale(half, found.imaging, free=self.schedule.tau2 or not alone)
        if self.schedule.noise:
            update_noise(model, shared)
        if self.schedule.shift_sigma:
            update_shift_sigma(model, shared)
        if self.schedule.contrast:
            update_contrast(model, replace(shared, summary=found.summary))

    def _volume_step(self, part: Member, sums: Statistics, rounds: int, alone: bool) -> Solution:
        """The map of one class, and its prior power where there are no half maps to tell it."""
        model, point = part.model, part.guide.volume
        equations = sums.insertion.equations(release=True)
        for _ in range(rounds):
            solution = self.solve(part, equations)
            point.coefficients.data = solution.volume
            if self.schedule.tau2 and alone:
                update_tau2(model, solution)
        point.coefficients.data = self.solvent(solution.volume, model.pixel_size)
        point.observe(equations)
        return solution

    def _resolve(self, state: EMState, box: int) -> None:
        """Resolution, and the prior power from the half maps where there are two."""
        first = state.halves[0]
        if len(state.halves) == 1:
            pairs = list(zip(first.members, first.solutions, strict=True))
            state.shell = max(_resolved(one.model, solution, box) for one, solution in pairs)
            if self.schedule.tau2 and not isinstance(first.guide.rotation, Known):
                for one, solution in pairs:
                    lift_tau2(one.model, solution, state.shell)
            return
        maps = [half.guide.volume.coefficients.data for half in state.halves]
        state.curve = fsc(*maps)
        state.shell = last_shell(state.curve, 0.143)
        for half in state.halves:
            tau2_from_fsc(half.model, half.solved, state.curve)

    def _record(self, state: EMState, parts: list[Expectation], grew: bool) -> dict[str, Any]:
        images = sum(len(half.index) for half in state.halves)
        evidence = torch.cat(
            [p.summary.bound[h.index] for p, h in zip(parts, state.halves, strict=True)]
        )
        mean = float(evidence.mean())
        sharp = torch.cat(
            [p.summary.probability[h.index] for p, h in zip(parts, state.halves, strict=True)]
        )
        grid = {"order": state.order} if self._searches(state) else {}
        state.iteration += 1
        self._judge(state, mean, float(sharp.mean()), grew)
        model = state.halves[0].model
        width = model.band.box * model.pixel_size
        return {
            "iteration": state.iteration,
            "bound": mean,
            "kind": f"{state.halves[0].guide.kind}, nats per image, full band{_under(state)}",
            "resolution_A": width / max(state.shell, 1),
            "radius": model.band.radius,
            **grid,
            "probability": float(sharp.mean()),
            "images": images,
        }

    def _searches(self, state: EMState) -> bool:
        """Whether poses are looked for on a grid, by the guide or by the learner."""
        learner = self.learner is not None and self.learner.searches
        return state.halves[0].guide.rotation.searches or learner

    def _judge(self, state: EMState, mean: float, sharp: float, grew: bool) -> None:
        """Count steps without progress; then take a finer grid if that may help, or stop."""
        if grew or mean > state.best + self.schedule.gain:
            state.stalled = 0
        else:
            state.stalled += 1
        state.best = max(state.best, mean)
        known = isinstance(state.halves[0].guide.rotation, Known)
        plan = self.schedule
        wanted = sharp > 0.5 or state.order < plan.order(state.shell)
        if state.stalled >= 2 and wanted and not known and state.order < plan.max_order:
            state.order, state.stalled = state.order + 1, 0
        elif state.stalled >= 2:
            state.done = True
        state.done = state.done or state.iteration >= self.schedule.max_iterations


def _resolved(model: ParticleModel, solution: Solution, box: int) -> int:
    """The last shell of the band with more signal than a third of the noise."""
    signal = model.linear_volume.tau2 * shell_mean(solution.weight)
    found = last_shell(signal[: box // 2 + 1].clamp(max=1e6), 1 / 3)
    return min(found, model.band.radius)


def _divergence(state: EMState) -> dict[str, float]:
    """``volume_kl``, KL(q || prior) of the volumes in nats, all halves, where these have a q.

    ``images * bound - volume_kl`` is the evidence lower bound of all data.
    """
    volumes = [(half.guide.volume, half.model.volume.prior()) for half in state.halves]
    if not all(volume.has_density for volume, _ in volumes):
        return {}
    with torch.no_grad():
        return {"volume_kl": sum(float(volume.kl(prior)) for volume, prior in volumes)}


def _under(state: EMState) -> str:
    """What a bound's kind says more where the volume has a q."""
    known = not state.halves[0].guide.volume.has_density
    return "" if known else ", expected under q(volume); volume_kl in nats, total"
