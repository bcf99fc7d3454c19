"""STAR files as loops of bytes, whose columns are converted when asked for.

Own parser: the `starfile` package fills rows that are cut short with NaN, gives no line number of
the file, and takes 12 s for a million rows.
"""

import gzip
import itertools
import re
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cryoprob.checks import InputError, require
from cryoprob.io.files import replacing, require_file
from cryoprob.types import PathType

__all__ = ["Loop", "Values", "read_star", "write_star"]

_CHUNK, _ROWS = 1 << 25, 1 << 15
_QUOTED = re.compile(rb"""(?<!\S)(?:'[^'\n]*'|"[^"\n]*")(?!\S)""")
_BLANK, _HASH, _UNDERSCORE = 32, 35, 95

Bytes = NDArray[np.uint8]
Integers = NDArray[np.int64]
Words = NDArray[np.bytes_]
Values = Sequence[str] | Words


@dataclass(frozen=True, eq=False)
class Loop:
    """One table of a STAR file (a block of label-value pairs counts as one row).

    Attributes
    ----------
    path, name
        The file, and the name of the block after ``data_``.
    labels
        Column names without the leading underscore.
    text
        Bytes of the file.
    start, length
        Where each value lies in ``text``, [rows, columns].
    line
        Line number of each row in the file, counted from 1, [rows].
    """

    path: str
    name: str
    labels: tuple[str, ...]
    text: Bytes
    start: Integers
    length: Integers
    line: Integers

    def __len__(self) -> int:
        return len(self.line)

    def __getitem__(self, rows: Integers) -> "Loop":
        """The rows of an index or mask, in its order."""
        return replace(
            self, start=self.start[rows], length=self.length[rows], line=self.line[rows]
        )

    def words(self, label: str) -> Words:
        """A column as bytes, [rows]."""
        at = self.labels.index(label)
        start, length = self.start[:, at], self.length[:, at]
        width = max(1, int(length.max(initial=1)))
        reach, out = np.arange(width), np.empty((len(self), width), np.uint8)
        for low in range(0, len(self), 1 << 15):
            rows = slice(low, low + (1 << 15))
            place = np.minimum(start[rows, None] + reach, len(self.text) - 1)
            out[rows] = self.text[place] * (reach < length[rows, None])
        return out.view(f"S{width}")[:, 0]

    def texts(self, label: str) -> list[str]:
        """A column as strings."""
        return _texts(self.words(label))

    def numbers(self, label: str) -> NDArray[np.float64]:
        """A column as float64, [rows].

        Raises
        ------
        InputError
            If a value is not a number; names the line.
        """
        words = self.words(label)
        try:
            return words.astype(np.float64)
        except ValueError:
            row = next(i for i, word in enumerate(words.tolist()) if not _is_number(word))
            got = repr(words[row].decode("utf-8", "replace"))
            raise InputError(self.where(label, row), expected="a number", got=got) from None

    def where(self, label: str, row: int) -> str:
        """Words that lead a user to a value: file, line and column."""
        return f"{self.path}, line {self.line[row]}, column _{label}"


class _Lines(NamedTuple):
    """Where every word of a text lies, and which words every line holds."""

    start: Integers
    length: Integers
    first: Integers
    many: Integers


def read_star(path: PathType) -> list[Loop]:
    """All loops and blocks of pairs of a STAR file (``.gz`` allowed), in the order of the file.

    Raises
    ------
    InputError
        If the file is missing or no STAR file, or a row has more or fewer values than its loop has
        columns; names the line and both counts.
    """
    data = _read_text(require_file(path, "a STAR file")).removeprefix(b"\xef\xbb\xbf") + b"\n"
    text = np.frombuffer(data, np.uint8)
    return _loops(str(path), text, _drop_comments(text, _lines(data, text)))


def _read_text(path: Path) -> bytes:
    """The bytes of a text file, decompressed; a binary file is refused before it is read."""
    with path.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as stream:
            head: bytes = stream.read(4096)
            if b"\0" in head:
                remedy = "Give the STAR file of the particles, not their stack."
                raise InputError(str(path), expected="a STAR file", got="binary", remedy=remedy)
            return head + stream.read()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(str(path), expected="a whole file", got=str(error)) from error


def _lines(data: bytes, text: Bytes) -> _Lines:
    """Split a text that ends with a line end into words, from blank to blank or quote to quote."""
    ends = np.flatnonzero(text == 10)
    quotes = b"'" in data or b'"' in data
    solid = _QUOTED.sub(lambda m: b"_" * len(m[0]), data) if quotes else data
    start, stop = _words(np.frombuffer(solid, np.uint8), ends)
    edges = np.searchsorted(start, np.concatenate([[0], ends + 1]))
    if quotes:
        first, last = text[start], text[stop - 1]
        cut = ((first == 34) | (first == 39)) & (first == last) & (stop - start > 1)
        start, stop = start + cut, stop - cut
    return _Lines(start, stop - start, edges[:-1], np.diff(edges))


def _words(text: Bytes, ends: Integers) -> tuple[Integers, Integers]:
    """Where words start and stop; chunks of whole lines bound the memory of the masks."""
    pieces, low = [], 0
    while low < len(text):
        at = min(int(np.searchsorted(ends, low + _CHUNK)), len(ends) - 1)
        high = int(ends[at]) + 1
        ink = np.concatenate([[False], text[low:high] > _BLANK])
        pieces.append(np.flatnonzero(ink[1:] != ink[:-1]).reshape(-1, 2) + low)
        low = high
    start, stop = np.concatenate(pieces).T
    return np.ascontiguousarray(start), np.ascontiguousarray(stop)


def _drop_comments(text: Bytes, lines: _Lines) -> _Lines:
    """Drop each word that starts with ``#`` and what follows it on its line."""
    hashes = np.flatnonzero(text[np.minimum(lines.start, len(text) - 1)] == _HASH)
    if len(hashes) == 0:
        return lines
    at, pick = np.unique(np.searchsorted(lines.first, hashes, side="right") - 1, return_index=True)
    begin, end = hashes[pick], lines.first[at] + lines.many[at]
    change = np.zeros(len(lines.start) + 1, np.int64)
    np.add.at(change, begin, 1)
    np.add.at(change, end, -1)
    keep = np.cumsum(change[:-1]) == 0
    count = lines.many.copy()
    count[at] = begin - lines.first[at]
    first = np.concatenate([[0], np.cumsum(count)[:-1]])
    return _Lines(lines.start[keep], lines.length[keep], first, count)


def _loops(path: str, text: Bytes, lines: _Lines) -> list[Loop]:
    """Walk over the few lines that are not rows; the rows lie between them."""
    walk = _Walk(path, text, lines)
    marks = np.append(_structural(text, lines), len(lines.first)).tolist()
    for row in np.flatnonzero(lines.many[: marks[0]])[:1].tolist():
        raise walk.stray(row)
    for at, after in itertools.pairwise(marks):
        walk.step(at)
        walk.rows(np.flatnonzero(lines.many[at + 1 : after]) + at + 1)
    walk.flush()
    require(walk.name is not None, path, expected="a STAR file with data_ blocks", got="none")
    return walk.done


def _structural(text: Bytes, lines: _Lines) -> Integers:
    """Lines that begin with a label or consist of ``loop_`` or ``data_NAME``."""
    full = np.flatnonzero(lines.many)
    start = lines.start[lines.first[full]]
    letter = text[start]
    label, maybe = letter == _UNDERSCORE, (letter == ord("d")) | (letter == ord("l"))
    maybe &= lines.many[full] == 1
    for offset, pair in enumerate(zip(b"data_", b"loop_", strict=True)):
        maybe &= np.isin(text[np.minimum(start + offset, len(text) - 1)], pair)
    structural: Integers = full[label | maybe]
    return structural


class _Walk:
    """The loops found so far, and the one that is being read."""

    def __init__(self, path: str, text: Bytes, lines: _Lines) -> None:
        self.path, self.text, self.lines = path, text, lines
        self.name: str | None = None
        self.done: list[Loop] = []
        self._reset(looping=False)

    def _reset(self, looping: bool) -> None:
        self.looping, self.labels, self.pairs, self.found = looping, [""][:0], [0][:0], False

    def step(self, at: int) -> None:
        """Take in a line that is ``data_NAME``, ``loop_`` or starts with a label."""
        word = self.word(int(self.lines.first[at]))
        if not word.startswith("_"):
            self.flush()
            self.name = word[5:] if word.startswith("data_") else self.name
            self._reset(looping=word == "loop_")
        elif self.found:
            self.flush()
            self._reset(looping=False)
        if word.startswith("_"):
            self.labels.append(word[1:])
            self.pairs.append(at)

    def rows(self, rows: Integers) -> None:
        """Take in the rows up to the next such line; each must have a value for each label."""
        if len(rows) == 0:
            return
        if not (self.looping and self.labels):
            raise self.stray(int(rows[0]))
        wrong = np.flatnonzero(self.lines.many[rows] != len(self.labels))
        if len(wrong):
            raise self.ragged(int(rows[wrong[0]]))
        first, width = int(self.lines.first[rows[0]]), len(self.labels)
        span = slice(first, first + len(rows) * width)
        start, length = (v[span].reshape(-1, width) for v in self.lines[:2])
        self._keep(start, length, rows + 1)
        self.found = True

    def flush(self) -> None:
        """End the loop or the pairs that are being read."""
        if not self.labels or self.found:
            return
        if self.looping:
            none = np.zeros((0, len(self.labels)), np.int64)
            self._keep(none, none, np.zeros(0, np.int64))
            return
        first, count = (v[self.pairs] for v in self.lines[2:])
        begin, last = first + np.minimum(count - 1, 1), first + count - 1
        start = self.lines.start[begin]
        length = np.where(count > 1, self.lines.start[last] + self.lines.length[last] - start, 0)
        self._keep(start[None], length[None], np.array([self.pairs[0] + 1]))

    def _keep(self, start: Integers, length: Integers, line: Integers) -> None:
        twice = [label for label, n in Counter(self.labels).items() if n > 1]
        got = f"_{twice[0]} twice" if twice else ""
        require(not twice, f"{self.path}, data_{self.name}", expected="each label once", got=got)
        labels = tuple(self.labels)
        self.done.append(Loop(self.path, str(self.name), labels, self.text, start, length, line))

    def word(self, at: int) -> str:
        """A word of the text."""
        low = int(self.lines.start[at])
        raw = self.text[low : low + int(self.lines.length[at])]
        return raw.tobytes().decode("utf-8", "replace")

    def stray(self, at: int) -> InputError:
        """The error of a line that belongs to no loop."""
        got = repr(self.word(int(self.lines.first[at]))[:40])
        where = f"{self.path}, line {at + 1}"
        remedy = "Is this a STAR file (not a stack)?"
        return InputError(where, expected="data_, loop_ or a _label", got=got, remedy=remedy)

    def ragged(self, at: int) -> InputError:
        """The error of a row with too many or too few values."""
        return InputError(
            f"{self.path}, line {at + 1}",
            expected=f"{len(self.labels)} values, one for each column of data_{self.name}",
            got=f"{int(self.lines.many[at])}",
            remedy="The file may be cut short, or a value may hold a blank: repair that line.",
        )


def _is_number(word: bytes) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def write_star(path: PathType, blocks: Mapping[str, Mapping[str, Values]]) -> None:
    """Write loops ``{block: {label: values}}`` as RELION 3.1 does (version 30001), atomically.

    Values are strings, or a column of :meth:`Loop.words`; those that hold blanks are quoted
    (RELION reads quotes from version 4 on).

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as stream:
        for name, columns in blocks.items():
            heads = "".join(f"_{label} #{n}\n" for n, label in enumerate(columns, 1))
            stream.write(f"\n# version 30001\n\ndata_{name}\n\nloop_\n{heads}".encode())
            size = len(next(iter(columns.values())))
            assert all(len(values) == size for values in columns.values())
            for low in range(0, size, _ROWS):
                part = [_quoted(values[low : low + _ROWS]) for values in columns.values()]
                rows = "".join(f"{' '.join(row)}\n" for row in zip(*part, strict=True))
                stream.write(rows.encode("utf-8", "surrogateescape"))
            stream.write(b"\n")


def _quoted(values: Values) -> Sequence[str]:
    """Values as strings, with quotes around those that would not be read back as one word."""
    texts = _texts(values) if isinstance(values, np.ndarray) else values
    joined = " ".join(texts)
    if len(joined.split()) == len(texts) and "#" not in joined:
        return texts
    return [v if len(v.split()) == 1 and v[0] != "#" else f'"{v}"' for v in texts]


def _texts(words: Words) -> list[str]:
    return [word.decode("utf-8", "surrogateescape") for word in words.tolist()]
