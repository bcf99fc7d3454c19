"""What commands print: facts, tables and sentences, on any terminal and in files."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = [
    "angstrom",
    "bullet",
    "console",
    "duration",
    "facts",
    "grid_spacing",
    "say",
    "size",
    "table",
    "texts",
]


def console() -> Console:
    """Standard output, at most 100 columns wide; plain where it is not a terminal."""
    found = Console(highlight=False, soft_wrap=False)
    return found if found.width <= 100 else Console(highlight=False, width=100)


def say(text: str) -> None:
    """Print a paragraph."""
    console().print(text, markup=False)


def bullet(text: str) -> None:
    """Print an item of a list."""
    grid = Table.grid(padding=(0, 1))
    grid.add_row("-", Text(text))
    console().print(grid)


def facts(rows: Iterable[tuple[str, str]], title: str = "") -> None:
    """Print names and values in two columns."""
    grid = Table.grid(padding=(0, 3))
    grid.add_column(no_wrap=True)
    grid.add_column()
    for name, value in rows:
        grid.add_row(Text(name), Text(value))
    _titled(grid, title)


def table(head: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print a table; its first column is words, the others are numbers."""
    grid = Table(box=None, padding=(0, 3, 0, 0), header_style="bold")
    for place, name in enumerate(head):
        grid.add_column(name, justify="right" if place else "left")
    for row in rows:
        grid.add_row(*map(Text, row))
    _titled(grid, title)


def texts(head: Sequence[str], rows: Iterable[Sequence[str]], title: str = "") -> None:
    """Print a table of words, wrapped between words in every column but the first."""
    grid = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    rows = list(rows)
    for place, name in enumerate(head):
        longest = max(
            (len(word) for row in [head, *rows] for word in row[place].split()), default=1
        )
        grid.add_column(name, no_wrap=not place, min_width=longest, overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    _titled(grid, title)


def _titled(grid: Table, title: str) -> None:
    out = console()
    if title:
        out.print(Text(f"\n{title}", style="bold"))
    out.print(grid)


def angstrom(value: float | None) -> str:
    """A resolution in words."""
    if value is None or value == float("inf"):
        return "none"
    return f"{value:.1f} A" if value < 100 else f"{value:.0f} A"


def duration(seconds: float | None) -> str:
    """Seconds as ``5 s``, ``3 min 20 s`` or ``2 h 10 min``; a dash where not known."""
    if seconds is None or seconds != seconds or seconds == float("inf"):
        return "-"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: float) -> str:
    """Bytes as ``12.3 MB``."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"


def grid_spacing(order: int) -> str:
    """Spacing of the rotation grid of an order."""
    return f"{60 / 2**order:.3g} deg"
