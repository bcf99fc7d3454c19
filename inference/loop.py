"""The one loop: step, look, save, until done; a killed run goes on from its last checkpoint."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import torch

from cryoprob.checks import InputError, OutputError, counted, require
from cryoprob.io.files import replacing

__all__ = [
    "Algorithm",
    "Logged",
    "Observer",
    "Quiet",
    "State",
    "load_checkpoint",
    "run_loop",
    "save_checkpoint",
    "taking_up",
]


class Observer(Protocol):
    """Who watches a run: a progress display, a log file, a test."""

    def stage(self, name: str, steps: int) -> None:
        """A stage of at most ``steps`` steps begins."""

    def step(self, record: dict[str, Any]) -> None:
        """One step is done."""

    def note(self, text: str) -> None:
        """Something to tell in words."""


class Quiet:
    """An observer that watches nothing."""

    def stage(self, name: str, steps: int) -> None:
        """Ignored."""

    def step(self, record: dict[str, Any]) -> None:
        """Ignored."""

    def note(self, text: str) -> None:
        """Ignored."""


class Logged:
    """An observer that hands on what it sees and writes it to a file, a line each."""

    def __init__(self, inner: Observer, path: Path) -> None:
        self.inner, self.path = inner, path

    def stage(self, name: str, steps: int) -> None:
        """Log and hand on."""
        self._write(f"{name}, at most {counted(steps, 'step')}")
        self.inner.stage(name, steps)

    def step(self, record: dict[str, Any]) -> None:
        """Log and hand on."""
        numbers = (f"{key} {value:.6g}" for key, value in record.items() if _is_number(value))
        self._write(", ".join(numbers))
        self.inner.step(record)

    def note(self, text: str) -> None:
        """Log and hand on."""
        self._write(text)
        self.inner.note(text)

    def _write(self, text: str) -> None:
        try:
            with self.path.open("a") as stream:
                stream.write(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {text}\n")
        except OSError as error:
            got = error.strerror or str(error)
            raise OutputError(str(self.path), expected="a place to write", got=got) from error


class State(Protocol):
    """What an algorithm changes and a checkpoint keeps."""

    done: bool
    history: list[dict[str, Any]]

    def pack(self) -> dict[str, Any]:
        """Tensors and plain values only."""

    def unpack(self, content: dict[str, Any]) -> None:
        """Take up what :meth:`pack` gave."""


class Algorithm(Protocol):
    """What the loop runs: ``step`` changes the state and returns a record of what it did."""

    def step(self, state: Any, stack: Any) -> dict[str, Any]:
        """One step."""


def run_loop(
    algorithm: Algorithm,
    state: Any,
    stack: Any,
    *,
    stage: str,
    steps: int,
    observer: Observer,
    save: Callable[[], None],
    every: int = 1,
) -> None:
    """Step until ``state.done``, calling ``save`` after every ``every``-th step.

    Raises
    ------
    InputError
        If the log evidence stops being finite: the last good checkpoint stays as it is.
    """
    observer.stage(stage, steps)
    count, spent = len(state.history), 0.0
    first = count
    while not state.done:
        record = algorithm.step(state, stack)
        _guard(record, stage)
        count += 1
        spent += record["seconds"]
        left = max(steps - count, 0) * spent / (count - first)
        rate = record["images"] / max(record["seconds"], 1e-9)
        observer.step({**record, "stage": stage, "images_per_s": rate, "seconds_left": left})
        if count % every == 0 or state.done:
            save()


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint atomically: the old one stays until the new one is complete."""
    buffer = BytesIO()
    torch.save(content, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint (tensors and plain values only) into the CPU's memory.

    Raises
    ------
    InputError
        If it is missing or damaged.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds on damaged files
        remedy = "Start again in a new folder."
        got = f"{type(error).__name__}"
        raise InputError(str(path), expected="a checkpoint", got=got, remedy=remedy) from error
    fits, got = isinstance(content, dict), type(content).__name__
    require(fits, str(path), expected="a checkpoint", got=got, remedy="Fit again.")
    return content


@contextmanager
def taking_up(path: Path) -> Iterator[None]:
    """Say of a checkpoint that does not fit its settings what is wrong.

    Raises
    ------
    InputError
        In the place of what Python and torch raise where names or sizes are other ones.
    """
    wanted = "what the settings beside it give"
    remedy = "It may be of another fit, or another version of cryoprob: fit again."
    try:
        yield
    except InputError:
        raise
    except KeyError as error:
        got = f"nothing named {error}"
        raise InputError(str(path), expected=wanted, got=got, remedy=remedy) from error
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        got = str(error).splitlines()[0]
        raise InputError(str(path), expected=wanted, got=got, remedy=remedy) from error


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _guard(record: dict[str, Any], stage: str) -> None:
    value = record["bound"]
    if value == value and abs(value) != float("inf"):
        return
    raise InputError(
        f"{stage}, iteration {record['iteration']}",
        expected="a finite log evidence",
        got=str(value),
        remedy="The last good state is in the checkpoint. Look for extreme images with"
        " `cryoprob info`.",
    )
