"""The ``demo`` command: simulate, fit from nothing by every family, compare, look."""

import json
import secrets
from itertools import count
from pathlib import Path

import torch

from cryoprob.app.compare import Setting, run_compare
from cryoprob.app.evaluate import Comparison, write_evaluation
from cryoprob.app.plots import plot_directions, plot_evidence, plot_fsc, plot_maps
from cryoprob.app.posteriors import Directions, Fitted
from cryoprob.app.simulate import Source, make
from cryoprob.app.words import angstrom, facts, say
from cryoprob.checks import require
from cryoprob.inference.config import FAMILIES, FitConfig
from cryoprob.inference.result import FitResult
from cryoprob.inference.schedule import Schedule
from cryoprob.io.tables import read_particles
from cryoprob.models.simulate import Microscope
from cryoprob.particles import ParticleStack

__all__ = ["SCHEDULE", "run_demo"]

PIXEL_SIZE, BOX, SNR, IMAGES = 3.0, 32, 0.15, 500

SCHEDULE = Schedule(
    starts=2,
    start_steps=60,
    start_images=100,
    max_iterations=6,
    max_order=3,
    warm_steps=200,
    learn_steps=20,
)
"""Short, for a small molecule that is easily found; encoders train for half a minute."""

COUNTED, ORDER = 24, 2
"""Images and grid of the gap table."""

_SHOWN, _LOOKED_AT = 6, 24


def run_demo(out: Path | None, seed: int | None, threads: int | None) -> None:
    """Run the demo into a new folder.

    Raises
    ------
    InputError
        If the folder has a demo already.
    """
    folder = _new_folder() if out is None else out
    there = (folder / "particles.star").exists()
    remedy = "Give another --out, or remove it first."
    require(not there, str(folder), expected="a new folder", got="a demo", remedy=remedy)
    seed = secrets.randbelow(2**31) if seed is None else seed
    say("1. Simulate: adenylate kinase, open, from a model that is run forward.\n")
    source = Source(phantom="adk-open", box=BOX, pixel_size=PIXEL_SIZE)
    make(source, folder, IMAGES, SNR, seed, None, Microscope())
    say("\n2. Fit: a start from nothing but the images, refined by each family of inference.\n")
    config = FitConfig(
        str((folder / "particles.star").absolute()),
        seed=seed,
        threads=threads or 0,
        schedule=SCHEDULE,
    )
    rows = run_compare(Setting(config, FAMILIES, COUNTED, ORDER, folder), folder)
    result, comparison = rows[0].result, rows[0].comparison
    assert comparison is not None
    write_evaluation(comparison, folder / rows[0].family.name)
    draw_figures(folder, result, comparison)
    _what_to_look_at(folder, result, comparison)


def draw_figures(folder: Path, result: FitResult, comparison: Comparison) -> None:
    """Write the four figures of exact EM."""
    size = comparison.pixel_size
    plot_maps(folder / "maps.png", comparison.truth, comparison.aligned, size)
    curves = {"whole box": comparison.whole, "within the molecule": comparison.masked}
    plot_fsc(folder / "fsc.png", curves, size)
    lines = (folder / "start" / "metrics.jsonl").read_text().splitlines()
    starts = [record for record in map(json.loads, lines) if "start" in record]
    plot_evidence(folder / "evidence.png", [*starts, *result.history])
    stack = ParticleStack.read(folder / "particles.star")
    fitted = Fitted.load(folder / FAMILIES[0], stack)
    views = fitted.directions(torch.arange(_LOOKED_AT)).moved(comparison.alignment)
    index = _from_surest(views)
    posterior = result.posterior.take(index)
    clean = fitted.predict(index, posterior.rotation, posterior.shift)
    truth = read_particles(folder / "truth.star").rotation()
    assert truth is not None
    figure = folder / "posteriors.png"
    plot_directions(figure, stack.images(index), clean, views.take(index), truth[index, 2])


def _from_surest(views: Directions) -> torch.Tensor:
    """Six images, evenly from the fewest to the most open directions."""
    order = views.effective.argsort()
    return order[torch.linspace(0, len(order) - 1, _SHOWN).long()]


def _new_folder() -> Path:
    """``cryoprob-demo``, or with the first number that is free."""
    names = (f"cryoprob-demo{'' if n == 1 else f'-{n}'}" for n in count(1))
    return next(path for path in map(Path, names) if not path.exists())


def _what_to_look_at(folder: Path, result: FitResult, comparison: Comparison) -> None:
    numbers = comparison.numbers()
    reach = angstrom(numbers.resolution_05_A)
    words = [
        ("maps.png", "the map that was found, next to the true one"),
        ("fsc.png", f"how well they agree by resolution: FSC 0.5 at {reach}"),
        ("evidence.png", "the log evidence at each step, in nats per image"),
        ("posteriors.png", "for six images, where they are seen from, as probabilities"),
        ("families.png", "the five families: their bounds, and their q of three poses"),
        ("families.csv", "the table of families and gaps, a line each"),
        ("exact-em/volume.mrc", "the map of exact EM; open it in ChimeraX beside truth.mrc"),
        ("exact-em/particles.star", "its poses, with the probability of each"),
    ]
    facts([(str(folder / name), text) for name, text in words], "What to look at")
    sure, unsure = _errors_of_thirds(result, comparison)
    say(
        "\nThe posterior knows how sure it is: of the third of the images with the sharpest"
        f" posteriors the pose is {sure:.1f} degrees off (median), of the third with the widest"
        f" {unsure:.1f} degrees."
    )
    say(
        "\nThe same with your own images: cryoprob info particles.star, then"
        " cryoprob fit particles.star --out run1"
    )


def _errors_of_thirds(result: FitResult, comparison: Comparison) -> tuple[float, float]:
    """Median pose errors (degrees) of the surest and of the least sure third of the images."""
    assert comparison.poses is not None
    third = len(result.posterior.entropy) // 3
    order = result.posterior.entropy.cpu().argsort()
    error = comparison.poses.rotation_deg
    return float(error[order[:third]].median()), float(error[order[-third:]].median())
