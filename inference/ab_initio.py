"""A start from nothing: random maps, stochastic EM tempered by its own noise estimate, ranked.

Each start is a back-projection at random poses; stochastic EM steps on small random subsets
follow, with a growing band, a solvent mask, damped negative density and a noise spectrum that
starts at the images' power; then a few full EM steps. The starts are ranked by their exact log
evidence on the same images and band. cryoSPARC's ab initio (Punjani 2017) with exact
posteriors; success rates are in tests/benchmarks/RESULTS.md.
"""

from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.build import build_model
from cryoprob.inference.e_step import e_step
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half, pack_half, unpack_half
from cryoprob.inference.levels import Level
from cryoprob.inference.m_step import solve_volume, update_noise
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.solvent import Solvent
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.point import Point
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.particles import ParticleStack
from cryoprob.types import Maps

__all__ = ["AbInitio", "AbInitioState", "Start"]

_PLAIN = ("number", "iteration", "done", "history")
_FULL_STEPS = 8
_FULL_IMAGES = 800
_FIRST_RADIUS = 3


@dataclass(eq=False)
class Start:
    """A finished start: its map [D, D, D] and its log evidence per image in nats."""

    volume: Maps
    log_evidence: float


@dataclass(eq=False)
class AbInitioState:
    """Where a start from nothing stands.

    Attributes
    ----------
    current
        Model and guide of the current start; None between starts.
    number, iteration
        The current start, and steps taken in it.
    starts
        Finished ones.
    history
        One record per step.
    """

    current: Half | None = None
    number: int = 0
    iteration: int = 0
    starts: list[Start] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False

    @property
    def winner(self) -> Start:
        """The start of the largest log evidence."""
        return max(self.starts, key=lambda start: start.log_evidence)

    @property
    def running(self) -> Half:
        """The current start, within a step of it."""
        assert self.current is not None
        return self.current

    def pack(self) -> dict[str, Any]:
        """Everything a checkpoint needs, as tensors and plain values."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "current": None if self.current is None else pack_half(self.current),
            "starts": [(start.volume, start.log_evidence) for start in self.starts],
        }


@dataclass(frozen=True)
class AbInitio:
    """Random starts on a stack cropped to a small box.

    Parameters
    ----------
    schedule
        Numbers of starts, steps and images.
    seed
        Of every random choice.
    power
        Mean image power, [G, S] (:func:`cryoprob.inference.build.image_power`).
    symmetry
        Point group.
    """

    schedule: Schedule
    seed: int
    power: Tensor
    symmetry: str = "C1"
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"

    @property
    def steps(self) -> int:
        """Steps of all starts together."""
        return self.schedule.starts * (self.schedule.start_steps + _FULL_STEPS)

    def step(self, state: AbInitioState, stack: ParticleStack) -> dict[str, Any]:
        """One stochastic or full EM step of the current start."""
        began = perf_counter()
        if state.current is None:
            state.current = self._begin(state, stack)
        stochastic = state.iteration < self.schedule.start_steps
        record = self._stochastic(state, stack) if stochastic else self._full(state, stack)
        state.iteration += 1
        record |= {"start": state.number + 1, "iteration": state.iteration}
        state.history.append(record)
        if state.iteration == self.schedule.start_steps + _FULL_STEPS:
            self._finish(state, record["bound"])
        return {**record, "seconds": perf_counter() - began}

    def restore(self, content: dict[str, Any], stack: ParticleStack) -> AbInitioState:
        """The state of a checkpoint."""
        state = AbInitioState(**{name: content[name] for name in _PLAIN})
        state.starts = [Start(volume, evidence) for volume, evidence in content["starts"]]
        if content["current"] is not None:
            state.current = self._new(stack, content["current"]["guide"]["volume.coefficients"])
            unpack_half(state.current, content["current"])
        return state

    def _new(self, stack: ParticleStack, volume: Maps) -> Half:
        """Model and guide of a start at a map: one, whatever classes it is split into later."""
        model = build_model(
            stack,
            replace(self.schedule, classes=1),
            self.power,
            radius=_FIRST_RADIUS + 1,
            dtype=self.dtype,
            device=self.device,
        )
        exact, point = Exact(), Point(volume.to(self.device, self.dtype))
        guide = Guide(rotation=exact, shift=exact, volume=point)
        return Half(model, guide, torch.arange(len(stack)))

    def _begin(self, state: AbInitioState, stack: ParticleStack) -> Half:
        """Back-project a few images at random poses."""
        state.iteration = 0
        generator = self._generator(state)
        start = self._new(stack, torch.zeros(stack.box, stack.box, stack.box))
        zero = start.guide.volume.coefficients.data
        rotation = random_rotations(len(stack), generator, dtype=self.dtype).to(self.device)
        known = Known(rotation), Known(zero.new_zeros(len(stack), 2))
        guide = Guide(rotation=known[0], shift=known[1], volume=start.guide.volume)
        index = self._subset(stack, generator, self.schedule.start_images)
        equations = e_step(start.model, guide, stack, index).insertion.equations()
        found = solve_volume(equations, start.model.linear_volume.tau2, zero, tolerance=1e-3)
        start.guide.volume.coefficients.data = found.volume
        return start

    def _stochastic(self, state: AbInitioState, stack: ParticleStack) -> dict[str, Any]:
        model, guide = state.running.model, state.running.guide
        generator = self._generator(state)
        share = state.iteration / self.schedule.start_steps
        growth = self.schedule.start_radius - _FIRST_RADIUS
        self._grids(state, _FIRST_RADIUS + round(growth * min(1.0, 1.25 * share)), generator)
        index = self._subset(stack, generator, self.schedule.start_images)
        statistics = e_step(model, guide, stack, index, symmetry=self.symmetry)
        old, equations = guide.volume.coefficients.data, statistics.insertion.equations()
        new = solve_volume(equations, model.linear_volume.tau2, old, tolerance=1e-3).volume
        guide.volume.coefficients.data = self._constrain(0.7 * old + 0.3 * new, model)
        update_noise(model, statistics, rate=0.2)
        return self._record(state, statistics.summary.bound[index])

    def _full(self, state: AbInitioState, stack: ParticleStack) -> dict[str, Any]:
        model, guide = state.running.model, state.running.guide
        generator = self._generator(state)
        self._grids(state, self.schedule.start_radius, generator)
        index = torch.arange(min(len(stack), _FULL_IMAGES))
        statistics = e_step(model, guide, stack, index, symmetry=self.symmetry)
        equations, old = statistics.insertion.equations(), guide.volume.coefficients.data
        new = solve_volume(equations, model.linear_volume.tau2, old, tolerance=1e-3).volume
        guide.volume.coefficients.data = self._constrain(new, model)
        update_noise(model, statistics)
        return self._record(state, statistics.summary.bound[index])

    def _finish(self, state: AbInitioState, log_evidence: float) -> None:
        volume = state.running.guide.volume.coefficients.data.clone()
        state.starts.append(Start(volume, float(log_evidence)))
        state.current = None
        state.number += 1
        state.done = state.number == self.schedule.starts

    def _grids(self, state: AbInitioState, radius: int, generator: torch.Generator) -> None:
        """A randomly turned grid as fine as the band can tell (30 degrees up to shell 5)."""
        model = state.running.model
        turn = random_rotations(1, generator, dtype=torch.float64)[0]
        model.linear_volume.set_band(radius)
        model.rotation = UniformRotation(self.dtype, self.device).discretize(
            1 if radius <= 5 else 2, symmetry=self.symmetry, turn=turn
        )
        extent = self.schedule.shift_extent * model.pixel_size * 0.5
        step = model.pixel_size * model.band.box / (4 * radius)
        prior = GaussianShift(extent / 2, self.dtype, self.device)
        model.shift = prior.discretize(extent, step)

    def _constrain(self, volume: Maps, model: ParticleModel) -> Maps:
        """Solvent mask, and negative density damped."""
        masked = Solvent("sphere")(volume, model.pixel_size)
        return torch.where(masked < 0, 0.3 * masked, masked)

    def _record(self, state: AbInitioState, log_evidence: Tensor) -> dict[str, Any]:
        model = state.running.model
        band = model.band
        return {
            "bound": float(log_evidence.mean()),
            "kind": f"log_evidence, nats per image of {band.box} pixels",
            "resolution_A": band.box * model.pixel_size / band.radius,
            "radius": band.radius,
            "order": Level.of(model).rotation.order,
            "images": len(log_evidence),
        }

    def _generator(self, state: AbInitioState) -> torch.Generator:
        number = (self.seed * 1009 + state.number) * 100003 + state.iteration
        return torch.Generator().manual_seed(number + (state.current is None) * 50021)

    @staticmethod
    def _subset(stack: ParticleStack, generator: torch.Generator, count: int) -> Tensor:
        return torch.randperm(len(stack), generator=generator)[:count]
