"""The ``presets`` command: every published system, and which of them run here."""

from collections.abc import Sequence

from cryoprob.app.words import facts, say, texts
from cryoprob.inference.presets.menu import load
from cryoprob.inference.presets.systems import SYSTEMS, System

__all__ = ["show_preset", "show_presets"]

_HEAD = ("volume", "conformation", "hidden", "inference")


def show_presets() -> None:
    """Print the table of all systems: those that run here by their presets, then the others."""
    ready = [row for row in SYSTEMS if row.ready]
    title = f"{len(ready)} of {len(SYSTEMS)} run here"
    texts(["--preset", *_HEAD], [[row.preset, *_cells(row)] for row in ready], title)
    say("\nWhat one of them keeps of its paper and what not: cryoprob presets NAME.")
    others = [row for row in SYSTEMS if not row.ready]
    texts(["system", *_HEAD], [[row.title, *_cells(row)] for row in others], "Not written yet")


def _cells(row: System) -> Sequence[str]:
    return row.volume, row.conformation, row.hidden, row.inference


def show_preset(name: str) -> None:
    """Print what a preset is.

    Raises
    ------
    InputError
        If there is none of the name.
    """
    preset = load(name)
    row = preset.row
    told = {**preset.config, **preset.plan}
    settings = ", ".join(f"{key}={value}" for key, value in told.items())
    rows = [
        ("Paper", preset.paper),
        ("Volume", row.volume),
        ("Conformation", row.conformation),
        ("Hidden", row.hidden),
        ("Inference", row.inference),
        ("Settings", settings or "the package's own"),
    ]
    facts(rows, preset.name)
    say(f"\n{preset.words}")
