"""A finished fit of a preset, taken up from its folder: model and guide as they were left."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryoprob.checks import InputError, require
from cryoprob.fourier.bands import full_band
from cryoprob.inference.build import image_power
from cryoprob.inference.config import FitConfig
from cryoprob.inference.learn import seeded
from cryoprob.inference.loop import load_checkpoint, taking_up
from cryoprob.inference.presets.base import Built, Preset, Scene
from cryoprob.inference.presets.menu import load
from cryoprob.inference.starts import kind_of, stack_of
from cryoprob.inference.unused import check_family, check_used
from cryoprob.particles import ParticleStack

__all__ = ["check_settings", "reload", "scene_of", "sketch_of", "system_of"]


def scene_of(config: FitConfig, stack: ParticleStack) -> Scene:
    """What a configuration's preset builds from."""
    return _scene(config, stack, image_power(stack), kind_of(config))


def sketch_of(config: FitConfig, stack: ParticleStack) -> Scene:
    """The same without a look at the images, on the CPU: for what the preset reads of it."""
    groups, shells = int(stack.group.max()) + 1, full_band(stack.box).n_shells
    power = torch.ones(groups, shells, dtype=torch.float64)
    kind = {**kind_of(config), "device": torch.device("cpu")}
    return _scene(config, stack, power, kind, sketch=True)


def _scene(
    config: FitConfig,
    stack: ParticleStack,
    power: Tensor,
    kind: dict[str, Any],
    sketch: bool = False,
) -> Scene:
    more = config.references, config.low_pass_A, config.seed, config.symmetry, kind
    return Scene(stack, config.schedule, power, *more, config.latent, sketch)


def check_settings(config: FitConfig, stack: ParticleStack) -> Built | None:
    """Refuse settings that would not be used, before any work.

    Returns a sketch of the preset's system, put together without a look at the images; None where
    families do it.

    Raises
    ------
    InputError
        If there are such settings, naming them, or the preset cannot be put together.
    """
    preset = load(config.preset) if config.preset else None
    if preset is None or preset.build is None:
        check_family(config)
        return None
    built = _put_together(config, preset, sketch_of(config, stack))
    fits = len(stack) > 1 or not built.half.model.volume.conformation_size
    wanted = f"2 images or more, whose conformations {preset.name} can compare"
    require(fits, str(config.particles), expected=wanted, got="1")
    return built


def system_of(config: FitConfig, stack: ParticleStack) -> Built:
    """The configuration's preset, put together at its start.

    Raises
    ------
    InputError
        If the configuration has no preset that is a system of its own, or settings that this one
        does not use.
    """
    preset = load(config.preset) if config.preset else None
    if preset is None or preset.build is None:
        wanted = "a fit of a preset that is no EM of maps (cryodrgn, cryofire, ...)"
        got = config.preset or f"--family {config.family}"
        raise InputError("preset", expected=wanted, got=got)
    return _put_together(config, preset, scene_of(config, stack))


def _put_together(config: FitConfig, preset: Preset, scene: Scene) -> Built:
    """A preset's system, if all that was given is used."""
    assert preset.build is not None
    with seeded(config.seed):  # the weights of encoders
        built = preset.build(scene)
    check_used(config, preset, scene, built)
    wanted = f"settings that {preset.name} has"
    remedy = (
        "Leave them out. Contrast and defocus are summed out by --family exact-em and by presets"
        " that train by gradients (cryodrgn, cryoai, ...)."
    )
    fits, got = not config.asked or built.half.guide.sums_imaging, ", ".join(config.asked)
    require(fits, "preset", expected=wanted, got=got, remedy=remedy)
    return built


def reload(out: str | Path) -> tuple[Built, ParticleStack]:
    """A fit as its last checkpoint has it, and its particles.

    Raises
    ------
    InputError
        If the folder has no such fit, or its particles have moved.
    """
    folder = Path(out)
    settings = folder / "config.toml"
    got = "no config.toml"
    require(settings.exists(), str(folder), expected="a folder that fit wrote", got=got)
    config = FitConfig.from_toml(settings)
    stack = stack_of(config)
    built = system_of(config, stack)
    checkpoint = folder / "checkpoint.pt"
    with taking_up(checkpoint):
        built.state.unpack(load_checkpoint(checkpoint)["system"])
    built.settle()
    return built, stack
