"""Errors that say where, what was expected, what was found and what to try.

Exceptions are for users; ``assert`` is for the package's own invariants. The command line turns an
:class:`InputError` into one paragraph and exit code 2.
"""

import warnings
from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "DataWarning",
    "InputError",
    "OutputError",
    "counted",
    "did_you_mean",
    "require",
    "warn",
]


class InputError(ValueError):
    """Bad input, told in one paragraph: where, what was expected, what was found, what to do.

    Parameters
    ----------
    where
        File, row, column, image or argument that is at fault.
    expected
        What a right input looks like.
    got
        What was found instead.
    remedy
        What the user can do about it.

    Notes
    -----
    Given alone, ``where`` is the whole text: Pyro makes an error in a model anew from its text,
    with the shapes of the sites added.
    """

    def __init__(self, where: str, *, expected: str = "", got: str = "", remedy: str = "") -> None:
        self.where, self.expected, self.got, self.remedy = where, expected, got, remedy
        text = f"{where}: expected {expected}, got {got}." if expected else where
        super().__init__(f"{text} {remedy}".strip())

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.where, self.expected, self.got, self.remedy)


class OutputError(InputError):
    """An output that cannot be written (disk full, no permission); earlier results stay intact."""


class DataWarning(UserWarning):
    """Something odd in the data that does not stop the run."""


def _rebuild(
    kind: type[InputError], where: str, expected: str, got: str, remedy: str
) -> InputError:
    return kind(where, expected=expected, got=got, remedy=remedy)


def require(condition: bool, where: str, *, expected: str, got: str, remedy: str = "") -> None:
    """Raise :class:`InputError` unless ``condition`` holds."""
    if not condition:
        raise InputError(where, expected=expected, got=got, remedy=remedy)


def counted(number: int, noun: str) -> str:
    """A number of things in words: ``1 row``, ``2 rows``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question that names the known name nearest to one that is not; empty if none is near."""
    near = get_close_matches(name.lower(), list(known), 1)
    return f"Did you mean {near[0]}?" if near else ""


def warn(message: str, stacklevel: int = 3) -> None:
    """Warn about the data in words (a :class:`DataWarning` at the caller's caller); go on."""
    warnings.warn(message, DataWarning, stacklevel=stacklevel)
