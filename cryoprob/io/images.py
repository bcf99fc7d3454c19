"""Where the pixels of particles come from: stacks on disk, mapped into memory, or a tensor."""

from collections import OrderedDict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryoprob.checks import InputError, require
from cryoprob.io.mrc import MrcHeader, map_stack, stack_header
from cryoprob.io.tables import ParticleTable
from cryoprob.types import Images

__all__ = ["ArrayPixels", "Pixels", "StackPixels"]

_MAPS_OPEN = 64
"""Memory maps held open at once; each costs a file descriptor."""

Integers = NDArray[np.int64]


class Pixels(Protocol):
    """Images by row; all of one even box."""

    @property
    def box(self) -> int:
        """Pixels along a side."""

    def __len__(self) -> int:
        """Number of images."""

    def read(self, rows: Tensor) -> Images:
        """The images [n, D, D] of some rows, as floating numbers on the CPU."""

    def name(self, row: int) -> str:
        """What a user calls an image."""

    def disk_bytes(self) -> int:
        """Size of the files."""


class ArrayPixels:
    """Images [N, D, D] that are in memory already.

    Raises
    ------
    InputError
        If they are not square with an even side.
    """

    def __init__(self, images: Images) -> None:
        got = f"shape {list(images.shape)}"
        good = images.ndim == 3 and images.shape[1] == images.shape[2] and images.shape[2] % 2 == 0
        require(good, "images", expected="[N, D, D] with even D", got=got)
        self._images = images.detach().cpu()
        if not images.is_floating_point():
            self._images = self._images.float()

    @property
    def box(self) -> int:
        """Pixels along a side."""
        return int(self._images.shape[-1])

    def __len__(self) -> int:
        return len(self._images)

    def read(self, rows: Tensor) -> Images:
        """A copy of the images [n, D, D] of some rows."""
        return self._images.index_select(0, rows)

    def name(self, row: int) -> str:
        """What a user calls an image."""
        return f"images[{row}]"

    def disk_bytes(self) -> int:
        """Nothing on disk."""
        return 0


class StackPixels:
    """The images of a table, read from memory maps of their stacks, one map a stack.

    Parameters
    ----------
    table
        The particles.

    Raises
    ------
    InputError
        If a stack is missing, cut short, not square and even, has fewer images than a row
        names, or another box than the first one.
    """

    def __init__(self, table: ParticleTable) -> None:
        self._table = table
        self.headers = _headers(table)
        self._maps: OrderedDict[int, Any] = OrderedDict()

    @property
    def box(self) -> int:
        """Pixels along a side."""
        return next(iter(self.headers.values())).shape[-1]

    def __len__(self) -> int:
        return len(self._table)

    def read(self, rows: Tensor) -> Images:
        """The images [n, D, D] of some rows in float32, each stack read in its own order."""
        index = rows.numpy()
        stack, place = self._table.stack[index], self._table.slice[index]
        out = np.empty((len(index), self.box, self.box), np.float32)
        order = np.lexsort((place, stack))
        cuts = np.flatnonzero(np.diff(stack[order])) + 1
        for part in np.split(order, cuts) if len(order) else []:
            out[part] = self._map(int(stack[part[0]]))[_span(place[part])]
        return torch.from_numpy(out)

    def _map(self, stack: int) -> Any:
        if stack not in self._maps:
            self._maps[stack] = map_stack(self.headers[stack])
            while len(self._maps) > _MAPS_OPEN:
                self._maps.popitem(last=False)
        self._maps.move_to_end(stack)
        return self._maps[stack]

    def name(self, row: int) -> str:
        """What a user calls an image."""
        return self._table.image_names([row])[0]

    def disk_bytes(self) -> int:
        """Size of the stacks."""
        return sum(header.path.stat().st_size for header in self.headers.values())


def _span(places: Integers) -> Integers | slice:
    """Sorted places as a slice if they follow each other: no index, one block."""
    low, high = int(places[0]), int(places[-1]) + 1
    return slice(low, high) if (np.diff(places) == 1).all() else places


def _headers(table: ParticleTable) -> dict[int, MrcHeader]:
    """The checked header of each stack that has particles."""
    headers: dict[int, MrcHeader] = {}
    files = table.files()
    used, first = np.unique(table.stack, return_index=True)
    highest = np.zeros(len(table.stacks), np.int64)
    np.maximum.at(highest, table.stack, table.slice + 1)
    for stack, row in zip(used.tolist(), first.tolist(), strict=True):
        header = stack_header(_found(table, files[stack], row))
        if highest[stack] > len(header):
            _too_few(table, header, stack)
        box = next(iter(headers.values()), header).shape[-1]
        got, expected = f"{header.shape[-1]} in {header.path}", f"one box for all, {box} pixels"
        remedy = "Rescale the stacks to one box and pixel size, or fit them apart."
        same = header.shape[-1] == box
        require(same, f"{table.path}, box", expected=expected, got=got, remedy=remedy)
        headers[stack] = header
    return headers


def _found(table: ParticleTable, file: Path | None, row: int) -> Path:
    if file is None:
        raise InputError(
            table.where(row),
            expected=f"the stack {table.stacks[table.stack[row]]}",
            got=f"no such file seen from {table.folder}, its parents or the working folder",
            remedy="Run in the folder that the names start from, or put the stacks there.",
        )
    return file


def _too_few(table: ParticleTable, header: MrcHeader, stack: int) -> None:
    row = int(np.flatnonzero((table.stack == stack) & (table.slice >= len(header)))[0])
    where, expected = table.where(row), f"an image from 1 to {len(header)} in {header.path}"
    remedy = "The stack is not the one that the table was written for, or is cut short."
    raise InputError(where, expected=expected, got=f"{table.slice[row] + 1}", remedy=remedy)
