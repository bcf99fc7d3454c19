"""A finished fit of a preset, taken up from its folder: model and guide as they were left."""

from pathlib import Path

from cryoprob.checks import InputError, require
from cryoprob.inference.build import image_power
from cryoprob.inference.config import FitConfig
from cryoprob.inference.learn import seeded
from cryoprob.inference.loop import load_checkpoint
from cryoprob.inference.presets.base import Built, Scene
from cryoprob.inference.presets.menu import load
from cryoprob.inference.starts import kind_of, stack_of
from cryoprob.particles import ParticleStack

__all__ = ["reload", "scene_of", "system_of"]


def scene_of(config: FitConfig, stack: ParticleStack) -> Scene:
    """What a configuration's preset builds from."""
    more = config.references, config.low_pass_A, config.seed, config.symmetry, kind_of(config)
    return Scene(stack, config.schedule, image_power(stack), *more, config.latent)


def system_of(config: FitConfig, stack: ParticleStack) -> Built:
    """The configuration's preset, put together at its start.

    Raises
    ------
    InputError
        If the configuration has no preset that is a system of its own.
    """
    preset = load(config.preset) if config.preset else None
    if preset is None or preset.build is None:
        wanted = "a fit of a preset that is no EM of maps (cryodrgn, cryofire, ...)"
        got = config.preset or f"--family {config.family}"
        raise InputError("preset", expected=wanted, got=got)
    ignored = {"half sets": config.half_sets, f"--family {config.family}": _other(config.family)}
    got = ", ".join(name for name, given in ignored.items() if given)
    wanted = f"settings that {preset.name} has"
    require(not got, "preset", expected=wanted, got=got, remedy="Leave them out.")
    with seeded(config.seed):  # the weights of encoders
        built = preset.build(scene_of(config, stack))
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
    try:
        built.state.unpack(load_checkpoint(checkpoint)["system"])
    except (KeyError, RuntimeError) as error:  # torch: sizes that do not fit
        wanted, got = "what the settings beside it give", str(error).splitlines()[0]
        remedy = "It may be of another version of cryoprob: fit again."
        raise InputError(str(checkpoint), expected=wanted, got=got, remedy=remedy) from error
    built.settle()
    return built, stack


def _other(family: str) -> bool:
    """It is not the default, which stands for none here."""
    return family != FitConfig.family
