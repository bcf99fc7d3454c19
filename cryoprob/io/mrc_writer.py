"""MRC maps and stacks written atomically, the same bytes for the same numbers.

Own code: `mrcfile` stamps the time into a label, and writes a stack only when all of it is there.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mrcfile.dtypes import HEADER_DTYPE
from torch import Tensor

from cryoprob.checks import require
from cryoprob.io.files import replacing
from cryoprob.types import Images, Maps, PathType

__all__ = ["StackWriter", "write_map", "write_stack"]

_HEADER_BYTES = 1024
_LABEL = b"cryoprob"


class StackWriter:
    """Write a stack image by image; the file appears, whole, when the ``with`` block ends.

    The header says space group 0 and mz = 1 (a stack of images); same images, same bytes.

    Parameters
    ----------
    path
        The file to write; an earlier one is replaced at the end.
    pixel_size
        A.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """

    def __init__(self, path: PathType, pixel_size: float) -> None:
        self.path, self.pixel_size = Path(path), pixel_size
        self._count, self._side = 0, 0
        self._statistics = _Statistics()
        self._exit = ExitStack()

    def __enter__(self) -> "StackWriter":
        with ExitStack() as stack:
            temporary = stack.enter_context(replacing(self.path))
            self._stream = stack.enter_context(temporary.open("wb"))
            self._stream.write(bytes(_HEADER_BYTES))
            self._exit = stack.pop_all()
        return self

    def write(self, images: Images) -> None:
        """Append images [n, D, D] or [D, D]; they are stored as float32."""
        block = images.detach().to("cpu", torch.float32).reshape(-1, *images.shape[-2:])
        side = block.shape[-1]
        expected = f"square images of {self._side or 'one even number of'} pixels along a side"
        good = block.shape[-2] == side and side % 2 == 0 and self._side in (0, side)
        require(good, str(self.path), expected=expected, got=f"{list(images.shape)}")
        self._side = side
        self._count += len(block)
        self._statistics.add(block)
        self._stream.write(block.numpy().astype("<f4", copy=False).tobytes())

    def __exit__(self, *error: Any) -> bool | None:
        if error[0] is None:
            shape = (self._count, self._side, self._side)
            self._stream.seek(0)
            self._stream.write(_new_header(shape, self.pixel_size, 1, 0, self._statistics))
        return self._exit.__exit__(*error)


class _Statistics:
    """Least, greatest, mean and deviation of all values seen, in float64."""

    def __init__(self) -> None:
        self.low, self.high, self.count, self.sum, self.square = np.inf, -np.inf, 0, 0.0, 0.0

    def add(self, values: Tensor) -> None:
        """Take in a block of values."""
        if values.numel():
            low, high = (float(v) for v in values.aminmax())
            self.low, self.high = min(self.low, low), max(self.high, high)
            self.count += values.numel()
            self.sum += float(values.sum(dtype=torch.float64))
            self.square += float(values.double().square().sum())

    def fields(self) -> tuple[float, float, float, float]:
        """(dmin, dmax, dmean, rms) of the header."""
        if not self.count:
            return 0.0, -1.0, -2.0, -1.0  # the format's way to say "not known"
        mean = self.sum / self.count
        return self.low, self.high, mean, max(0.0, self.square / self.count - mean**2) ** 0.5


def _new_header(
    shape: tuple[int, int, int], pixel_size: float, mz: int, space_group: int, values: _Statistics
) -> bytes:
    header = np.zeros((), HEADER_DTYPE)
    nz, ny, nx = shape
    header["nx"], header["ny"], header["nz"], header["mode"] = nx, ny, nz, 2
    header["mx"], header["my"], header["mz"] = nx, ny, mz
    header["cella"] = (nx * pixel_size, ny * pixel_size, mz * pixel_size)
    header["cellb"] = (90, 90, 90)
    header["mapc"], header["mapr"], header["maps"] = 1, 2, 3
    header["dmin"], header["dmax"], header["dmean"], header["rms"] = values.fields()
    header["ispg"], header["nversion"], header["map"] = space_group, 20140, b"MAP "
    header["machst"], header["nlabl"] = (0x44, 0x44, 0, 0), 1
    header["label"][0] = _LABEL
    return header.tobytes()


def write_map(path: PathType, density: Maps, pixel_size: float) -> None:
    """Write a map [D, D, D] as float32 (space group 1, mz = D), atomically, without a time stamp.

    Raises
    ------
    InputError
        If the map is not a cube.
    OutputError
        If the file cannot be written.
    """
    values = density.detach().to("cpu", torch.float32)
    sides = set(values.shape)
    got = f"{list(values.shape)}"
    require(values.ndim == 3 and len(sides) == 1, str(path), expected="a cube", got=got)
    side = values.shape[0]
    statistics = _Statistics()
    statistics.add(values)
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(_new_header((side, side, side), pixel_size, side, 1, statistics))
        stream.write(values.contiguous().numpy().astype("<f4", copy=False).tobytes())


def write_stack(path: PathType, images: Images, pixel_size: float) -> None:
    """Write images [n, D, D] as float32, atomically; see :class:`StackWriter`."""
    with StackWriter(path, pixel_size) as writer:
        writer.write(images)
