"""Every family from the same start on the 70S ribosome set, and poses of images it never saw.

    python tests/benchmarks/same_start.py [--data FOLDER] [--families a,b,...] [--order N] [--seed N]
                                          [--set name=value ...]

1600 images train from the truth low-passed to 40 A, noise at the images' power; 400 others judge.
Prints one row per family: steps, minutes of the whole fit, nats per image, the last shell at which
the map's FSC with the truth stays above 0.5 (after alignment over rotation, shift and hand), and
rotation errors in degrees (median, 90 % quantile): of the 1600, of the 400 by the family's own q
at the fitted map, and of the 400 after Gauss-Newton steps from there; images per second of q on
the 400.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from cryoprob.fourier.shells import low_pass
from cryoprob.inference.amplitude import match_amplitude
from cryoprob.inference.build import build_guide, build_model, image_power
from cryoprob.inference.e_step import e_step
from cryoprob.inference.families import Recipe, family
from cryoprob.inference.filtered import filter_images
from cryoprob.inference.fit import fit
from cryoprob.inference.grids import off_grid, on_grid, pose_grids
from cryoprob.inference.half import Half
from cryoprob.inference.learn import TableLearner, seeded
from cryoprob.inference.local_search import climb
from cryoprob.inference.natural_learner import NaturalLearner
from cryoprob.inference.result import FitResult
from cryoprob.inference.schedule import Schedule
from cryoprob.io.mrc import read_map
from cryoprob.io.tables import read_particles
from cryoprob.metrics.alignment import Alignment, align_maps
from cryoprob.metrics.fsc import fsc, last_shell
from cryoprob.metrics.pose_error import pose_error
from cryoprob.particles import ParticleStack

HELD, LOW_PASS_A = 400, 40.0


class Shown:
    """Prints the steps."""

    def stage(self, name: str, steps: int) -> None:
        """Nothing."""

    def step(self, record: dict) -> None:
        """One line."""
        print(
            f"   {record['iteration']:3} {record['bound']:10.2f} {record['resolution_A']:6.2f} A"
            f" order {record['order']} {record['seconds']:6.1f} s",
            flush=True,
        )

    def note(self, text: str) -> None:
        """A line."""
        print(f"   {text}", flush=True)


class Task:
    """The images in two parts, their true poses and map."""

    def __init__(self, data: Path, seed: int, plan: Schedule, verbose: bool) -> None:
        self.seed, self.plan, self.verbose = seed, plan, verbose
        whole = ParticleStack.read(data / "particles.star")
        order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
        self.parts = order[HELD:].sort().values, order[:HELD].sort().values
        self.seen, self.held = (whole.subset(part) for part in self.parts)
        self.truth, _ = read_map(data / "truth.mrc")
        self.truth = self.truth.float()
        table = read_particles(data / "truth.star", need=("rotation", "shift"))
        self.rotation, self.shift = table.rotation(), table.displacement()

    def fit(self, name: str) -> tuple[FitResult, float]:
        """A family's fit to the 1600, and its minutes."""
        began, row, stack = time.time(), family(name), self.seen
        plan = row.settle(self.plan)
        model = build_model(stack, plan, image_power(stack), radius=2)
        start = low_pass(self.truth, stack.pixel_size, LOW_PASS_A)
        recipe = Recipe(model, start, plan, len(stack), self.seed)
        guide = build_guide(recipe, row, stack, "ignore")
        half = Half(model, guide, torch.arange(len(stack)))
        note = match_amplitude(half, stack, plan, "C1")
        watch = Shown() if self.verbose else None
        if watch:
            watch.note(note)
        learner = row.learner(recipe) if row.learner else None
        result = fit(
            model,
            guide,
            stack,
            seed=self.seed,
            schedule=plan,
            resolution_A=LOW_PASS_A,
            learner=learner,
            observer=watch,
        )
        return result, (time.time() - began) / 60

    def unseen(self, name: str, half: Half, order: int) -> tuple[Tensor, Tensor, float]:
        """Poses of the 400 by the family's q at the fitted map, and images a second."""
        row, stack, plan = family(name), self.held, family(name).settle(self.plan)
        model, guide = off_grid(half.model), half.guide
        if guide.rotation.searches:
            model = on_grid(model, *pose_grids(model, plan, order, seed=self.seed))
        began = time.time()
        with seeded(self.seed):
            if row.learner is not None:
                volume = guide.volume.coefficients.data
                recipe = Recipe(model, volume, plan, len(stack), self.seed)
                learner = row.learner(recipe)
                if isinstance(
                    learner, NaturalLearner | TableLearner
                ):  # free numbers of other images
                    guide = row.guide(recipe)
                    learner.learn(Half(model, guide, torch.arange(len(stack))), stack, 0, order)
            found = e_step(model, guide, stack, draws=max(1, plan.draws)).summary
        return found.rotation, found.shift, len(stack) / (time.time() - began)

    def error(self, rotation: Tensor, shift: Tensor, part: int, found: Alignment) -> str:
        """Median and 90 % quantile in degrees."""
        index = self.parts[part]
        told = pose_error(
            rotation.double(), shift.double(), self.rotation[index], self.shift[index], found
        )
        return f"{told.median_rotation_deg:6.2f} ({float(told.rotation_deg.quantile(0.9)):6.2f})"

    def row(self, name: str) -> str:
        """One family, fitted and judged."""
        result, minutes = self.fit(name)
        half, pixel = result.fitted, self.seen.pixel_size
        found = align_maps(result.volume, self.truth, pixel_size=pixel)
        curve = fsc(found.move_map(result.volume, pixel), self.truth)
        seen = self.error(result.posterior.rotation, result.posterior.shift, 0, found)
        rotation, shift, rate = self.unseen(name, half, result.history[-1].get("order", 0))
        images = filter_images(off_grid(half.model), self.held, torch.arange(HELD))
        volume = half.guide.volume.coefficients.data
        best = climb(half.model, volume, images, rotation.contiguous(), shift, 10)
        held = self.error(rotation, shift, 1, found)
        after = self.error(best.rotation, best.shift, 1, found)
        bound = float(result.posterior.bound.mean())
        return (
            f"{name:16} {len(result.history):5} {minutes:7.1f} {bound:10.2f}"
            f" {last_shell(curve, 0.5):5}  {seen}  {held}  {after} {rate:7.0f}"
        )


def main() -> None:
    """Run the table."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=beside / "relion-70s")
    parser.add_argument("--families", default="exact-em,modal-em,amortized-modal,svi,amortized-vi")
    parser.add_argument("--order", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    settings = dict(item.split("=") for item in given.set)
    plan = replace(Schedule.parse(settings), max_order=given.order)
    task = Task(given.data, given.seed, plan, given.verbose)
    print(
        "family           steps minutes      nats shell  1600 images      400 unseen       after the search  images/s"
    )
    for name in given.families.split(","):
        print(task.row(name), flush=True)


if __name__ == "__main__":
    main()
