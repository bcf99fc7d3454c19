"""Presets put together as a fit does it, on stacks in memory."""

from dataclasses import replace

import torch

from cryoprob.fourier.bands import full_band
from cryoprob.inference.build import build_guide, build_model, image_power
from cryoprob.inference.config import FitConfig
from cryoprob.inference.em import EM, EMState
from cryoprob.inference.families import Recipe, family
from cryoprob.inference.half import Half
from cryoprob.inference.learn import seeded
from cryoprob.inference.presets.base import Scene
from cryoprob.inference.presets.menu import load
from cryoprob.inference.reload import sketch_of
from cryoprob.inference.schedule import OF_PRESETS, Schedule
from cryoprob.inference.solvent import Solvent
from cryoprob.inference.starts import stack_of
from cryoprob.inference.unused import taken

F64 = torch.float64


def plan_of(name, **settings):
    """The preset's settings, and those given in their place."""
    return Schedule(**{**load(name).plan, **settings})


def trimmed(config):
    """A configuration without the settings and the filter that its preset does not use."""
    preset = load(config.preset)
    names = set(Schedule.__dataclass_fields__) - set(OF_PRESETS)
    if preset.build is not None:
        sketch = sketch_of(config, stack_of(config))
        preset.build(sketch)
        options, names = map(set, taken(sketch))
        if "--low-pass" not in options:
            config = replace(config, low_pass_A=FitConfig.low_pass_A)
    used = {name: getattr(config.schedule, name) for name in names}
    return replace(config, schedule=Schedule(**{**preset.plan, **used}))


def scene(stack, name, references=(), *, dtype=F64, low_pass_A=1.0, seed=1, **settings):
    """What a preset builds from."""
    kind = {"dtype": dtype, "device": torch.device("cpu")}
    parts = plan_of(name, **settings), image_power(stack), list(references), low_pass_A
    return Scene(stack, *parts, seed, "C1", kind)


def assembled(stack, name, references=(), *, seed=1, **options):
    """A preset that is a system of its own, at its start."""
    with seeded(seed):  # the weights of encoders
        return load(name).build(scene(stack, name, references, seed=seed, **options))


def refinement(stack, name, start, *, poses="ignore", radius=None, seed=1, **settings):
    """A preset that families and settings say: its algorithm, and the state of all images in one.

    From maps ``start`` [D, D, D], or one for each class.
    """
    preset = load(name)
    row = family(preset.config.get("family", "exact-em"))
    plan = row.settle(plan_of(name, **settings))
    model = build_model(stack, plan, image_power(stack), radius=radius, dtype=F64)
    recipe = Recipe(model, start, plan, len(stack), seed)
    guide = build_guide(recipe, row, stack, poses)
    learner = row.learner(recipe) if row.learner and poses == "ignore" else None
    state = EMState([Half(model, guide, torch.arange(len(stack)))])
    return EM(plan, seed, Solvent("none"), "C1", learner), state


def everything(stack, dtype=F64):
    """All images, with every number of each."""
    return stack.batch(torch.arange(len(stack)), full_band(stack.box), dtype)
