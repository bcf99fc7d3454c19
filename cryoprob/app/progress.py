"""How a fit is watched: a live bar on a terminal, plain lines elsewhere."""

from collections.abc import Iterator
from time import monotonic
from types import TracebackType
from typing import Any, Self

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from cryoprob.app.words import console, duration, grid_spacing
from cryoprob.checks import counted

__all__ = ["HEAD", "Display", "Live", "Plain", "display", "line"]

HEAD = "  step     nats/image   resolution   band   grid       images/s   time left"
"""Names of the numbers of :func:`line`."""

_EVERY_S = 10.0
"""Seconds between plain lines of a stage of many short steps."""

_MANY = 60
"""A stage of so many steps is told in part."""


def line(record: dict[str, Any]) -> str:
    """A step in one line: evidence in nats per image, resolution in A, band in shells.

    Of a step that searched a grid, its spacing.
    """
    grid = grid_spacing(int(record["order"])) if "order" in record else "-"
    return (
        f"{_label(record):>6s}   {record['bound']:12.2f}"
        f"   {record['resolution_A']:8.1f} A   {record['radius']:4d}   {grid:9s}"
        f"  {record.get('images_per_s', float('nan')):8.0f}"
        f"   {duration(record.get('seconds_left')):>9s}"
    )


def _label(record: dict[str, Any]) -> str:
    """The number of a step; ``2:31`` is step 31 of the second start."""
    start = f"{record['start']}:" if "start" in record else ""
    return f"{start}{record['iteration']}"


class Display:
    """An observer of a fit that prints; use it as a context manager."""

    def __init__(self, out: Console | None = None) -> None:
        self.console = out or console()
        self.last: dict[str, Any] | None = None
        self.name, self.steps = "", 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self.last = None
        self.finish()

    def stage(self, name: str, steps: int) -> None:
        """A stage of at most ``steps`` steps begins."""
        self.finish()
        self.name, self.steps, self.last = name, steps, None
        self.begin()

    def step(self, record: dict[str, Any]) -> None:
        """One step is done."""
        if self.last is not None and self.last.get("start") != record.get("start"):
            self.sum_up()
        self.last = record
        self.show(record)

    def note(self, text: str) -> None:
        """Something to tell in words, wrapped as paragraphs are."""
        self.console.print(text, markup=False)

    def print(self, text: str) -> None:
        """Print a line above whatever moves."""
        self.console.print(text, markup=False, soft_wrap=True)

    @property
    def brief(self) -> bool:
        """Whether the stage is told in part."""
        return self.steps > _MANY

    def begin(self) -> None:
        """Called when a stage begins."""

    def show(self, record: dict[str, Any]) -> None:
        """Called at each step."""

    def finish(self) -> None:
        """Called when a stage has ended."""
        self.sum_up()
        self.last = None

    def sum_up(self) -> None:
        """What came of a start, or of a stage that was told in part."""
        if self.last is not None and self.brief:
            name = f"start {self.last['start']}" if "start" in self.last else self.name
            evidence = f"{self.last['bound']:.2f} nats per image"
            steps = counted(self.last["iteration"], "step")
            self.print(f"  {name}: {steps}, {evidence}")


class Plain(Display):
    """Lines, for files and pipes."""

    def begin(self) -> None:
        """Say the stage, and what the columns are."""
        self.print(f"{self.name}: at most {counted(self.steps, 'step')}")
        self.print(HEAD)
        self._told = monotonic()

    def show(self, record: dict[str, Any]) -> None:
        """A line a step, or one in a while."""
        if not self.brief or monotonic() - self._told >= _EVERY_S:
            self._told = monotonic()
            self.print(line(record))


class _Bar(Progress):
    """A bar, below a line of text that moves with it."""

    moving = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        """The line, if there is one, and the bar."""
        if self.moving:
            yield Text(self.moving)
        yield self.make_tasks_table(self.tasks)


class Live(Display):
    """A bar that moves, with the finished steps above it."""

    _bar: _Bar | None = None

    def begin(self) -> None:
        """A new bar."""
        self.print(HEAD)
        columns = (TextColumn("{task.description}"), BarColumn(30), MofNCompleteColumn())
        left = TextColumn("{task.fields[left]}")
        self._bar = _Bar(*columns, left, console=self.console, transient=True)
        self._task = self._bar.add_task(self.name, total=self.steps, left="")
        self._bar.start()

    def show(self, record: dict[str, Any]) -> None:
        """Move the bar; each step of a short stage stays, of a long one the last is seen."""
        assert self._bar is not None
        if self.brief:
            self._bar.moving = line(record)
        else:
            self.print(line(record))
        left = f"{duration(record.get('seconds_left'))} left"
        done = record.get("count", self._bar.tasks[0].completed + 1)
        self._bar.update(self._task, completed=done, left=left)

    def finish(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        super().finish()


def display(out: Console | None = None) -> Display:
    """The display that fits the output: a live one on a terminal, a plain one elsewhere."""
    out = out or console()
    return Live(out) if out.is_terminal else Plain(out)
