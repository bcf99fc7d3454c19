"""The ``presets`` command: every published system, and which of them run here."""

from rich.table import Table
from rich.text import Text

from cryoprob.app.words import console, facts, say
from cryoprob.inference.presets.menu import load
from cryoprob.inference.presets.systems import SYSTEMS

__all__ = ["show_preset", "show_presets"]

_HEAD = ("system", "--preset", "volume", "conformation", "hidden", "inference")


def show_presets() -> None:
    """Print the table of all systems."""
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for place, name in enumerate(_HEAD):
        grid.add_column(name, overflow="fold", no_wrap=place == 1)
    for row in SYSTEMS:
        preset = row.preset if row.ready else "-"
        cells = (row.title, preset, row.volume, row.conformation, row.hidden, row.inference)
        grid.add_row(*map(Text, cells))
    console().print(grid)
    ready = sum(row.ready for row in SYSTEMS)
    say(
        f"\n{ready} of {len(SYSTEMS)} run here; those of '-' are not written yet. What one of them"
        " keeps of its paper and what not: cryoprob presets NAME."
    )


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
