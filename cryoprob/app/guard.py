"""How a command ends: exit codes, errors in one paragraph, notes said once."""

import shutil
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TextIO

import typer

from cryoprob.checks import DataWarning, InputError

__all__ = ["BAD_INPUT", "INTERRUPTED", "Interrupted", "guarded", "notes", "paragraph"]

BAD_INPUT = 2
"""Exit code of input that is wrong and of output that cannot be written."""

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

P = ParamSpec("P")


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with the words that tell how to go on."""


def paragraph(text: str, stream: TextIO | None = None) -> None:
    """Print one paragraph, wrapped to the terminal, on standard error."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 100)
    words = " ".join(text.split())  # and paths stay in one piece
    wrapped = textwrap.fill(words, width, break_long_words=False, break_on_hyphens=False)
    print(wrapped, file=stream or sys.stderr, flush=True)


@contextmanager
def notes(say: Callable[[str], None] = paragraph) -> Iterator[None]:
    """Warnings about the data come out as words, ``Note: ...``, each of them once."""
    said: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *rest: object) -> None:
            if not issubclass(category, DataWarning):
                others(message, category, *rest)  # type: ignore[arg-type]
            elif str(message) not in said:
                said.add(str(message))
                say(f"Note: {message}")

        warnings.showwarning = show  # type: ignore[assignment]
        yield


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """A command whose bad input ends in one paragraph and code 2, and Ctrl-C in code 130."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with notes():
                command(*args, **kwargs)
        except InputError as error:
            paragraph(f"Error: {error}")
            raise typer.Exit(BAD_INPUT) from None
        except KeyboardInterrupt as stop:
            paragraph(str(stop) or "Stopped. Files that were not finished were not written.")
            raise typer.Exit(INTERRUPTED) from None

    return run
