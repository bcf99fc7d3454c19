"""Settings that were given and would not be used: they are refused, not ignored."""

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from cryoprob.checks import InputError
from cryoprob.inference.config import FitConfig, option_of
from cryoprob.inference.presets.base import Built, Preset, Scene
from cryoprob.inference.schedule import OF_PRESETS, Schedule

__all__ = ["check_family", "check_used", "taken"]

_ALWAYS = frozenset(
    {
        "particles",
        "box",
        "pixel_size",
        "invert",
        "seed",
        "threads",
        "device",
        "double",
        "schedule",
        "preset",
        "contrast_sd",
        "defocus_sd_A",
        "defocus_nodes",
    }
)
"""Options of reading, computing and checking, which are not a preset's."""

_READ = {"references": "reference"}
"""Names of a scene's parts that a configuration has by others."""

_OF_REFINEMENTS = {"--mask", "--symmetry", "--half-sets"}


def taken(scene: Scene) -> tuple[list[str], list[str]]:
    """Options, and settings of the schedule, that a preset has read of its scene."""
    plan: Any = scene.plan
    options = sorted(option_of(_READ.get(name, name)) for name in scene.read)
    return options, [item.name for item in fields(Schedule) if item.name in plan.read]


def check_used(config: FitConfig, preset: Preset, scene: Scene, built: Built) -> None:
    """Raise InputError if anything was given that the preset did not read of its scene."""
    options, settings = taken(scene)
    usual = {item.name: item.default for item in fields(FitConfig)} | dict(preset.config)
    given = {}
    for name in usual.keys() - _ALWAYS:
        value, option = getattr(config, name), option_of(name)
        if value != usual[name] and option not in options:
            given[option] = option if value is True else f"{option} {_word(value)}"
    plain = Schedule(**preset.plan)
    wrong = _changed(config.schedule, plain, [n for n in _names() if n not in settings])
    if not (given or wrong):
        return
    raise InputError(
        "preset",
        expected=f"settings that {preset.name} has",
        got=", ".join([*(given[option] for option in sorted(given)), *wrong.values()]),
        remedy=" ".join(_remedy(preset, built, given.keys(), wrong.keys(), settings)),
    )


def _remedy(
    preset: Preset, built: Built, options: Iterable[str], wrong: Iterable[str], has: list[str]
) -> list[str]:
    """What to do about options and settings that a preset does not have, in sentences."""
    options, wrong = set(options), set(wrong)
    found = []
    if "--poses" in options:
        found.append(f"It works with --poses {preset.config.get('poses', 'ignore')} only.")
    if options & _OF_REFINEMENTS:
        found.append("Masks, symmetry and half sets are of refinements (relion-refine3d, ...).")
    if "--low-pass" in options:
        found.append("A low-pass filter is that of a --reference map.")
    if wrong:
        found.append(f"By --set it takes {', '.join(sorted(has))}.")
    if "contrast" in wrong and built.objective is not None and built.objective.sums_imaging:
        found.append("Contrasts that differ are summed out by --contrast SD.")
    return ["Leave it out." if len(options | wrong) == 1 else "Leave them out.", *found]


def check_family(config: FitConfig) -> None:
    """Raise InputError if settings were given that no family has, but presets of networks."""
    wrong = _changed(config.schedule, Schedule(), OF_PRESETS)
    if not wrong:
        return
    who = config.preset or f"--family {config.family}"
    remedy = (
        "Leave them out, or give a preset that has them: cryodrgn, cryofire, ppca, ..."
        " (`cryoprob presets`)."
    )
    got = ", ".join(wrong.values())
    raise InputError(who, expected="settings that it has", got=got, remedy=remedy)


def _names() -> list[str]:
    return [item.name for item in fields(Schedule)]


def _changed(plan: Schedule, usual: Schedule, names: Iterable[str]) -> dict[str, str]:
    """Settings of these names that are not the usual ones, as ``--set`` has them."""
    pairs = {name: (getattr(plan, name), getattr(usual, name)) for name in names}
    return {name: f"--set {name}={_word(a)}" for name, (a, b) in pairs.items() if a != b}


def _word(value: object) -> str:
    """A value as the command line takes it."""
    if isinstance(value, float):
        return f"{value:g}"
    return str(value).lower() if isinstance(value, bool) else str(value)
