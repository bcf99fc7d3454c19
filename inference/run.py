"""One fit from a configuration: read, start, refine, write; resumes from its checkpoint."""

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.transforms import crop_map
from cryoprob.inference.ab_initio import AbInitio, AbInitioState
from cryoprob.inference.amplitude import match_amplitude
from cryoprob.inference.build import build_guide, build_model, image_power
from cryoprob.inference.config import FitConfig
from cryoprob.inference.em import EM, EMState
from cryoprob.inference.families import Recipe, family
from cryoprob.inference.finish import finish
from cryoprob.inference.folder import check_folder, open_folder
from cryoprob.inference.half import Half
from cryoprob.inference.loop import (
    Logged,
    Observer,
    Quiet,
    load_checkpoint,
    run_loop,
    save_checkpoint,
    taking_up,
)
from cryoprob.inference.presets.base import Preset
from cryoprob.inference.presets.menu import load
from cryoprob.inference.reload import check_settings, system_of
from cryoprob.inference.result import FitResult, write_metrics
from cryoprob.inference.solvent import Solvent
from cryoprob.inference.split import split
from cryoprob.inference.starts import kind_of, reference_map, stack_of
from cryoprob.models.particle_model import ParticleModel
from cryoprob.types import Maps, PathType

__all__ = ["run_fit"]


def run_fit(
    config: FitConfig, out: PathType, *, resume: bool = False, observer: Observer | None = None
) -> FitResult:
    """Run one fit and write its outputs into ``out``.

    Raises
    ------
    InputError
        For bad input, for a folder that holds another fit, and for ``resume`` without a
        checkpoint.
    OutputError
        If the folder cannot be written.
    """
    folder = Path(out)
    threads = torch.get_num_threads()
    check_folder(folder, config, resume)
    try:
        if config.threads:
            torch.set_num_threads(config.threads)
        run = _Run(config, folder, observer or Quiet(), resume)
        open_folder(folder, config)
        run.observer = Logged(run.observer, folder / "log.txt")
        return run()
    finally:
        torch.set_num_threads(threads)


@dataclass(eq=False)
class _Run:
    """The stages of a fit, each taken up from the checkpoint where there is one."""

    config: FitConfig
    folder: Path
    observer: Observer
    resume: bool

    def __post_init__(self) -> None:
        config = self.config
        self.kind = kind_of(config)
        self.checkpoint = self.folder / "checkpoint.pt"
        self.saved: dict[str, Any] = {}
        if self.resume and self.checkpoint.exists():
            self.saved = load_checkpoint(self.checkpoint)
        self.stack = stack_of(config)
        config.latent.check(self.stack)
        check_settings(config, self.stack)
        self.family = family(config.family)
        self.plan = self.family.settle(config.schedule)

    def __call__(self) -> FitResult:
        preset = load(self.config.preset) if self.config.preset else None
        result = self._em() if preset is None or preset.build is None else self._built(preset)
        result.save(self.folder, self.stack)
        self.observer.note(result.trust)
        return result

    def _built(self, preset: Preset) -> FitResult:
        """A system that is not EM of maps by search, as its preset puts it together."""
        built = system_of(self.config, self.stack)
        if self.saved:
            with taking_up(self.checkpoint):
                built.state.unpack(self.saved["system"])
        else:
            built.begin()

        def save() -> None:
            self._save({"system": built.state.pack()}, built.state.history)

        run_loop(
            built.algorithm,
            built.state,
            self.stack,
            stage=preset.name,
            steps=built.steps,
            observer=self.observer,
            save=save,
        )
        return built.finish()

    def _em(self) -> FitResult:
        power = image_power(self.stack)
        starts = self._start()
        state = self._refine(starts, power)
        earlier = starts.history if isinstance(starts, AbInitioState) else []
        algorithm = self._algorithm(state.halves[0])
        algorithm.regrid(state)
        ranking = self._ranking(starts)
        return finish(algorithm, state, self.stack, earlier, ranking, self.config.seed)

    def _start(self) -> AbInitioState | Maps:
        """Start maps [R, D, D, D]: references, or the winner of several starts from nothing."""
        config = self.config
        if config.references:
            return self._references()
        if config.poses != "ignore":
            return torch.zeros(1, self.stack.box, self.stack.box, self.stack.box)
        small = self.stack
        if small.box > config.schedule.start_box:
            small = stack_of(config, config.schedule.start_box)
        limit = small.box // 2 - 1
        require(
            config.schedule.start_radius <= limit,
            "start_radius",
            expected=f"at most {limit} shells, as starts from nothing have a box of {small.box}",
            got=str(config.schedule.start_radius),
            remedy=f"Give --set start_radius={limit}, or a --reference.",
        )
        algorithm = AbInitio(
            config.schedule, config.seed, image_power(small), config.symmetry, **self.kind
        )
        state = AbInitioState()
        if self.saved:
            with taking_up(self.checkpoint):
                state = algorithm.restore(self.saved["starts"], small)

        def save() -> None:
            self._save({"starts": state.pack()}, state.history)

        run_loop(
            algorithm,
            state,
            small,
            stage=f"{config.schedule.starts} starts from nothing",
            steps=algorithm.steps,
            observer=self.observer,
            save=save,
            every=10,
        )
        return state

    def _references(self) -> Maps:
        """Start maps [R, D, D, D] of the configuration."""
        low = self.config.low_pass_A
        maps = [reference_map(path, self.stack, low) for path in self.config.references]
        alike = any(torch.equal(a, b) for a, b in combinations(maps, 2))
        wanted = "maps that differ: classes that begin alike stay alike"
        remedy = "Give one map alone; the images are then split by chance."
        require(not alike, "--reference", expected=wanted, got="the same twice", remedy=remedy)
        return torch.stack(maps)

    def _refine(self, starts: AbInitioState | Maps, power: Tensor) -> EMState:
        config, plan = self.config, self.config.schedule
        kept: dict[str, Any] = {}
        earlier: list[dict[str, Any]] = []
        if isinstance(starts, AbInitioState):
            kept, earlier = {"starts": starts.pack()}, starts.history
            first = crop_map(starts.winner.volume, self.stack.box)[None]
        else:
            first = starts
        state = EMState(self._halves(first.to(**self.kind), power))
        state.shell = self._first_shell(bool(kept))
        if "refine" in self.saved or (self.saved and not kept):
            with taking_up(self.checkpoint):
                state.unpack(self.saved["refine"])
        else:
            self._begin(state, len(first))

        def save() -> None:
            self._save({**kept, "refine": state.pack()}, [*earlier, *state.history])

        run_loop(
            self._algorithm(state.halves[0]),
            state,
            self.stack,
            stage="reconstruct" if config.poses == "known" else "refine",
            steps=plan.max_iterations,
            observer=self.observer,
            save=save,
        )
        return state

    def _begin(self, state: EMState, maps: int) -> None:
        """Bring references to the images' gray scale; split one map for several classes."""
        plan, symmetry = self.config.schedule, self.config.symmetry
        if self.config.reference is not None:
            said = [match_amplitude(half, self.stack, plan, symmetry) for half in state.halves]
            for text in dict.fromkeys(said):  # halves may agree
                self.observer.note(text)
        if maps < plan.classes:
            split(self._algorithm(state.halves[0]), state, self.stack)

    def _first_shell(self, found: bool) -> int:
        """Resolution of the start map, in shells."""
        plan, width = self.config.schedule, self.stack.box * self.stack.pixel_size
        if found:
            return plan.start_radius
        return max(2, round(width / self.config.low_pass_A))

    def _halves(self, start: Maps, power: Tensor) -> list[Half]:
        config, count = self.config, len(self.stack)
        generator = torch.Generator().manual_seed(config.seed)
        everything = torch.randperm(count, generator=generator)
        parts = everything.chunk(2) if config.half_sets else (torch.arange(count),)
        halves = []
        for part in parts:
            model = build_model(self.stack, config.schedule, power, radius=2, **self.kind)
            config.latent.put(model)
            classes = start.expand(config.schedule.classes, -1, -1, -1)
            recipe = self._recipe(model, classes if len(classes) > 1 else start[0])
            guide = build_guide(recipe, self.family, self.stack, config.poses)
            halves.append(Half(model, guide, part.sort().values))
        return halves

    def _recipe(self, model: ParticleModel, start: Maps) -> Recipe:
        seed, symmetry = self.config.seed, self.config.symmetry
        return Recipe(model, start, self.plan, len(self.stack), seed, symmetry)

    def _algorithm(self, half: Half) -> EM:
        config, learner = self.config, self.family.learner
        solvent = Solvent.of(config.mask, self.stack.box)
        recipe = self._recipe(half.model, half.guide.volume.coefficients.data)
        trained = learner(recipe) if learner and config.poses == "ignore" else None
        return EM(self.plan, config.seed, solvent, config.symmetry, trained)

    def _save(self, content: dict[str, Any], history: list[dict[str, Any]]) -> None:
        save_checkpoint(self.checkpoint, content)
        write_metrics(self.folder / "metrics.jsonl", history)

    @staticmethod
    def _ranking(starts: AbInitioState | Maps) -> list[float]:
        """Log evidences of the starts, best first."""
        if not isinstance(starts, AbInitioState):
            return []
        return sorted((start.log_evidence for start in starts.starts), reverse=True)
