"""The ``demo`` command: simulate, fit from nothing, compare with the truth, look."""

import secrets
from itertools import count
from pathlib import Path

import torch

from cryoprob.app.evaluate import Comparison, evaluate, write_evaluation
from cryoprob.app.fit import watched
from cryoprob.app.plots import plot_directions, plot_evidence, plot_fsc, plot_maps
from cryoprob.app.posteriors import Directions, Fitted
from cryoprob.app.simulate import Source, make
from cryoprob.app.words import angstrom, facts, say
from cryoprob.checks import require
from cryoprob.inference.config import FitConfig
from cryoprob.inference.result import FitResult
from cryoprob.inference.schedule import Schedule
from cryoprob.io.tables import read_particles
from cryoprob.models.simulate import Microscope
from cryoprob.particles import ParticleStack

__all__ = ["SCHEDULE", "run_demo"]

PIXEL_SIZE, BOX, SNR, IMAGES = 3.0, 32, 0.15, 600

SCHEDULE = Schedule(starts=2, start_steps=60, start_images=100, max_iterations=10, max_order=3)
"""Short, for a small molecule that is easily found."""

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
    say("\n2. Fit: the map, from nothing but the images, with every pose summed out.\n")
    config = FitConfig(
        str((folder / "particles.star").absolute()),
        seed=seed,
        threads=threads or 0,
        schedule=SCHEDULE,
    )
    result = watched(config, folder / "fit")
    say("\n3. Compare with the truth.\n")
    comparison = evaluate(folder / "fit", folder)
    write_evaluation(comparison, folder / "fit")
    draw_figures(folder, result, comparison)
    _what_to_look_at(folder, result, comparison)


def draw_figures(folder: Path, result: FitResult, comparison: Comparison) -> None:
    """Write the four figures of the demo."""
    size = comparison.pixel_size
    plot_maps(folder / "maps.png", comparison.truth, comparison.aligned, size)
    curves = {"whole box": comparison.whole, "within the molecule": comparison.masked}
    plot_fsc(folder / "fsc.png", curves, size)
    plot_evidence(folder / "evidence.png", result.history)
    stack = ParticleStack.read(folder / "particles.star")
    fitted = Fitted.load(folder / "fit", stack)
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
        ("fit/volume.mrc", "the map; open it in ChimeraX beside truth.mrc"),
        ("fit/particles.star", "the poses, with the probability of each"),
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
