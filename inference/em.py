"""Exact EM with frequency marching, grids that grow finer, and half sets: init and step."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from cryoprob.fourier.normal import NormalEquations
from cryoprob.fourier.shells import shell_mean
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.e_step import e_step
from cryoprob.inference.guide import Guide
from cryoprob.inference.m_step import (
    Solution,
    solve_volume,
    tau2_from_fsc,
    update_contrast,
    update_noise,
    update_shift_sigma,
    update_tau2,
)
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.solvent import Solvent
from cryoprob.inference.statistics import PosteriorSummary, Statistics
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.known import Known
from cryoprob.metrics.fsc import fsc, last_shell
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.particles import ParticleStack

__all__ = ["EMState", "ExactEM", "Half", "pack_half", "unpack_half"]

_SHARP, _ONE_CELL = 0.3, 0.7
_PLAIN = ("iteration", "order", "shell", "best", "stalled", "done", "history")


@dataclass(eq=False)
class Half:
    """One independent reconstruction: its model, guide and images."""

    model: ParticleModel
    guide: Guide
    index: Tensor
    solution: Solution | None = None

    @property
    def solved(self) -> Solution:
        """The last solution; there is one after the first M-step."""
        assert self.solution is not None
        return self.solution


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


def pack_half(half: Half) -> dict[str, Tensor]:
    """The numbers of a model and its volume."""
    model = half.model
    return {
        "volume": half.guide.volume.coefficients.data,
        "tau2": model.linear_volume.tau2,
        "sigma2": model.noise.sigma2,
        "shift_sigma": model.shift.sigma,
        "scale": model.contrast.scale,
        "spread": model.contrast.spread,
        "radius": torch.tensor(model.band.radius),
    }


def unpack_half(half: Half, packed: dict[str, Tensor]) -> None:
    """Put the numbers of a checkpoint back."""
    model = half.model
    model.linear_volume.set_band(int(packed["radius"]))
    half.guide.volume.coefficients.data = packed["volume"].to(model.linear_volume.tau2)
    for name, target in (
        ("tau2", model.linear_volume.tau2),
        ("sigma2", model.noise.sigma2),
        ("shift_sigma", model.shift.sigma),
        ("scale", model.contrast.scale),
        ("spread", model.contrast.spread),
    ):
        target.copy_(packed[name])


@dataclass(frozen=True)
class ExactEM:
    """EM over discretized poses (or known ones): E-step, closed-form M-step, schedule.

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
    """

    schedule: Schedule
    seed: int
    solvent: Solvent
    symmetry: str = "C1"

    def step(self, state: EMState, stack: ParticleStack) -> dict[str, Any]:
        """One E-step and M-step of every half; returns (and appends) the step's record."""
        began = perf_counter()
        grew = self._plan(state)
        parts = [self._e_step(half, stack) for half in state.halves]
        for half, statistics in zip(state.halves, parts, strict=True):
            self._m_step(state, half, statistics, rounds=2 if grew else 1)
        self._resolve(state, stack.box)
        record = self._record(state, parts, grew)
        state.history.append(record)
        return {**record, "seconds": perf_counter() - began}

    def posterior(
        self, state: EMState, stack: ParticleStack
    ) -> tuple[PosteriorSummary, NormalEquations]:
        """Posterior of every image at the final volume(s), and the normal equations of all."""
        first, *others = state.halves
        summary, equations = self._look(first, stack)
        for half in others:
            more, part = self._look(half, stack)
            summary.put(half.index, more.take(half.index))
            equations = equations + part
        return summary, equations

    def solve(self, half: Half, equations: NormalEquations) -> Solution:
        """The map of some normal equations under a half's prior."""
        start, tau2 = half.guide.volume.coefficients.data, half.model.linear_volume.tau2
        return solve_volume(equations, tau2, start, exact=self.schedule.exact, tolerance=1e-3)

    def _plan(self, state: EMState) -> bool:
        """Set band and grids of the step; whether they grew."""
        first = state.halves[0]
        known = isinstance(first.guide.rotation, Known)
        shell = state.shell if not known else first.model.band.box
        radius = self.schedule.radius(first.model.band.box, shell)
        order = max(state.order, self._finer(state))
        grew = radius > first.model.band.radius or order > state.order or state.iteration == 0
        state.order = order
        for number, half in enumerate(state.halves):
            half.model.linear_volume.set_band(radius)
            if not known:
                self._grids(half, order, 2 * state.iteration + number)
        return grew

    def _finer(self, state: EMState) -> int:
        """The order that resolution and posteriors ask for, at most one more than before.

        While an image leaves many cells open a finer grid costs much and tells little; where most
        of it lies in one cell the grid is what limits it.
        """
        plan = self.schedule
        sharpness = state.history[-1]["probability"] if state.history else 0.0
        wanted = state.order < plan.order(state.shell) and sharpness > _SHARP
        if (wanted or sharpness > _ONE_CELL) and state.order < plan.max_order:
            return state.order + 1
        return max(state.order, plan.coarse_order)

    def _grids(self, half: Half, order: int, draw: int) -> None:
        model, plan = half.model, self.schedule
        tau2 = model.linear_volume.tau2
        generator = torch.Generator().manual_seed(self.seed * 100003 + draw)
        turn = random_rotations(1, generator, dtype=torch.float64)[0] if plan.turn else None
        uniform = UniformRotation(tau2.dtype, tau2.device)
        model.rotation = uniform.discretize(order, symmetry=self.symmetry, turn=turn)
        prior = GaussianShift(float(model.shift.sigma), tau2.dtype, tau2.device)
        lengths = (plan.shift_extent * model.pixel_size, plan.shift_step * model.pixel_size)
        pruned = isinstance(half.guide.rotation, Exact)
        refine = order - plan.coarse_order if pruned else max(order - plan.coarse_order, 1)
        model.shift = prior.discretize(*lengths, refine=refine)

    def _e_step(self, half: Half, stack: ParticleStack) -> Statistics:
        return e_step(half.model, half.guide, stack, half.index, symmetry=self.symmetry)

    def _look(self, half: Half, stack: ParticleStack) -> tuple[PosteriorSummary, NormalEquations]:
        statistics = self._e_step(half, stack)
        return statistics.summary, statistics.insertion.equations(release=True)

    def _m_step(self, state: EMState, half: Half, statistics: Statistics, rounds: int) -> None:
        model, point = half.model, half.guide.volume
        equations = statistics.insertion.equations(release=True)
        for _ in range(rounds):
            half.solution = self.solve(half, equations)
            point.coefficients.data = half.solved.volume
            if self.schedule.tau2 and len(state.halves) == 1:
                update_tau2(model, half.solved)
        point.coefficients.data = self.solvent(half.solved.volume, model.pixel_size)
        if self.schedule.noise:
            update_noise(model, statistics)
        if self.schedule.shift_sigma:
            update_shift_sigma(model, statistics)
        if self.schedule.contrast:
            update_contrast(model, statistics)

    def _resolve(self, state: EMState, box: int) -> None:
        """Resolution, and the prior power from the half maps where there are two."""
        first = state.halves[0]
        if len(state.halves) == 1:
            signal = first.model.linear_volume.tau2 * shell_mean(first.solved.weight)
            state.shell = last_shell(signal[: box // 2 + 1].clamp(max=1e6), 1 / 3)
            return
        maps = [half.guide.volume.coefficients.data for half in state.halves]
        state.curve = fsc(*maps)
        state.shell = last_shell(state.curve, 0.143)
        for half in state.halves:
            tau2_from_fsc(half.model, half.solved, state.curve)

    def _record(self, state: EMState, parts: list[Statistics], grew: bool) -> dict[str, Any]:
        images = sum(len(half.index) for half in state.halves)
        evidence = torch.cat(
            [p.summary.log_evidence[h.index] for p, h in zip(parts, state.halves, strict=True)]
        )
        mean = float(evidence.mean())
        sharp = torch.cat(
            [p.summary.probability[h.index] for p, h in zip(parts, state.halves, strict=True)]
        )
        order, state.iteration = state.order, state.iteration + 1
        self._judge(state, mean, float(sharp.mean()), grew)
        model = state.halves[0].model
        width = model.band.box * model.pixel_size
        return {
            "iteration": state.iteration,
            "log_evidence": mean,
            "kind": "log_evidence, nats per image, full band",
            "resolution_A": width / max(state.shell, 1),
            "radius": model.band.radius,
            "order": order,
            "probability": float(sharp.mean()),
            "images": images,
        }

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
