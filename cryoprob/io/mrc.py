"""MRC maps and stacks: checked headers, memory-mapped reading, atomic writing of the same bytes.

The format itself (header, modes, byte order, old and broken headers) is `mrcfile`'s business;
writing is done here because `mrcfile` stamps the time into a label and holds the whole stack.
"""

import warnings
import zlib
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mrcfile
import numpy as np
import torch
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import data_dtype_from_header
from numpy.typing import NDArray
from torch import Tensor

from cryoprob.checks import InputError, require
from cryoprob.io.files import replacing, require_file
from cryoprob.types import Images, Maps, PathType

__all__ = [
    "MrcHeader",
    "StackWriter",
    "open_stack",
    "read_header",
    "read_map",
    "read_mrc",
    "write_map",
    "write_stack",
]

_HEADER_BYTES = 1024
_LARGEST = 1 << 24
_LABEL = b"cryoprob"
_COMPRESSED = (b"\x1f\x8b", b"BZ")

Values = NDArray[Any]


@dataclass(frozen=True)
class MrcHeader:
    """What the header of an MRC file says, and was checked against the size of the file.

    Attributes
    ----------
    path
        The file.
    shape
        (nz, ny, nx): images or planes, rows, columns.
    dtype
        Type of the values, byte order included.
    voxel_size
        (x, y, z), A; 0 where the header does not say.
    offset
        Bytes before the values.
    axes
        Which of x, y, z (1, 2, 3) runs along (nz, ny, nx).
    angles
        Angles of the cell, degrees.
    compressed
        Whether the file is gzip or bzip2.
    """

    path: Path
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    voxel_size: tuple[float, float, float]
    offset: int
    axes: tuple[int, int, int]
    angles: tuple[float, float, float]
    compressed: bool

    def __len__(self) -> int:
        return self.shape[0]


def read_header(path: PathType) -> MrcHeader:
    """The header of an MRC file, checked against the size of the file.

    Headers without the MAP id, with a wrong machine stamp or overlong labels are accepted.

    Raises
    ------
    InputError
        If the file is missing, a git-lfs pointer, no MRC file, or shorter than its header says.
    """
    found = require_file(path, "an MRC file")
    with found.open("rb") as stream:
        compressed = stream.read(2) in _COMPRESSED
    try:
        with _lenient(), mrcfile.open(found, permissive=True, header_only=True) as file:
            header = _header(found, file.header, compressed)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise _no_mrc(path, str(error)) from error
    if not compressed:
        _check_size(header, found.stat().st_size)
    return header


def _lenient() -> AbstractContextManager[None]:
    """Silence what mrcfile says about old headers: the size of the file is checked here."""
    return warnings.catch_warnings(action="ignore", category=RuntimeWarning)


def _no_mrc(path: PathType, got: str) -> InputError:
    return InputError(str(path), expected="an MRC file (.mrc, .mrcs, .map)", got=got)


def _header(path: Path, raw: Any, compressed: bool) -> MrcHeader:
    shape = (int(raw.nz), int(raw.ny), int(raw.nx))
    extended = int(raw.nsymbt)
    if not (all(0 < n < _LARGEST for n in shape) and extended >= 0):
        raise _no_mrc(path, f"sizes {shape[::-1]} in the place of a header")
    dtype = data_dtype_from_header(raw)
    if dtype.kind == "c":
        raise _no_mrc(path, f"complex values (mode {int(raw.mode)})")
    cell, count = raw.cella, (raw.mx, raw.my, raw.mz)
    sides = (float(cell.x), float(cell.y), float(cell.z))
    voxel = tuple(_ratio(side, int(n)) for side, n in zip(sides, count, strict=True))
    axes = (int(raw.maps), int(raw.mapr), int(raw.mapc))
    angles = tuple(float(raw.cellb[name]) for name in ("alpha", "beta", "gamma"))
    return MrcHeader(
        path,
        shape,
        dtype,
        cast(tuple[float, float, float], voxel),
        _HEADER_BYTES + extended,
        axes if sorted(axes) == [1, 2, 3] else (3, 2, 1),
        cast(tuple[float, float, float], angles),
        compressed,
    )


def _ratio(side: float, n: int) -> float:
    """Cell by sampling to the seven digits of a float32; 0 where unknown."""
    known = n > 0 and np.isfinite(side)
    return float(f"{side / n:.7g}") if known else 0.0


def _check_size(header: MrcHeader, size: int) -> None:
    plane = header.shape[1] * header.shape[2] * header.dtype.itemsize
    need = header.offset + header.shape[0] * plane
    if size < need:
        whole = max(0, size - header.offset) // plane
        raise InputError(
            str(header.path),
            expected=f"{need} bytes, as its header promises ({len(header)} images or planes)",
            got=f"{size} bytes ({whole} whole images or planes)",
            remedy="The file is cut short or still being written: copy it again.",
        )


def read_mrc(path: PathType) -> tuple[Values, MrcHeader]:
    """All values of an MRC file in its own type, [nz, ny, nx], or [ny, nx] of a single image.

    Raises
    ------
    InputError
        As :func:`read_header`.
    """
    header = read_header(path)
    values = _decompress(header) if header.compressed else np.array(_mapped(header))
    return (values[0] if len(header) == 1 else values), header


def _decompress(header: MrcHeader) -> Values:
    try:
        with _lenient(), mrcfile.open(header.path, permissive=True) as file:
            data = file.data
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise _no_mrc(header.path, str(error)) from error
    if data is None:
        raise _no_mrc(header.path, "less data than its header promises")
    return cast(Values, data.reshape(header.shape))


def _mapped(header: MrcHeader) -> np.memmap[Any, np.dtype[Any]]:
    return np.memmap(header.path, header.dtype, "r", header.offset, header.shape)


def open_stack(path: PathType) -> tuple[np.memmap[Any, np.dtype[Any]], MrcHeader]:
    """A stack of images as a read-only memory map [n, D, D] in the type of the file.

    A file asked for as a stack is one, whatever its header calls it (EMAN writes mz = nz).

    Raises
    ------
    InputError
        As :func:`read_header`; or if images are not square and even, or the file is compressed.
    """
    header = read_header(path)
    n, height, width = header.shape
    where, even = str(path), min(height, width) // 2 * 2
    require(
        height == width and width % 2 == 0,
        where,
        expected="square images with an even number of pixels along a side",
        got=f"{n} images of {width} x {height}",
        remedy=f"Crop them, for instance with `relion_image_handler --new_box {even}`.",
    )
    remedy = "Decompress it first: a stack is read image by image."
    require(
        not header.compressed, where, expected="a plain file", got="gzip, bzip2", remedy=remedy
    )
    return _mapped(header), header


def read_map(path: PathType, *, pixel_size: float | None = None) -> tuple[Maps, float]:
    """A map [D, D, D] (z, y, x) in float32 and its voxel size in A.

    Parameters
    ----------
    pixel_size
        Stands in where the header does not tell the voxel size.

    Raises
    ------
    InputError
        As :func:`read_header`; or if the map is not a cube of an even number of equal, orthogonal
        voxels, holds NaN or infinite values, is constant, or its voxel size is not known.
    """
    header = read_header(path)
    _check_cube(header)
    size = _voxel_size(header, pixel_size)
    values = read_mrc(path)[0].transpose([header.axes.index(axis) for axis in (3, 2, 1)])
    density = torch.from_numpy(np.array(values, np.float32, order="C"))
    wrong = int((~torch.isfinite(density)).sum())
    got = f"{wrong} of {density.numel()} that are NaN or infinite"
    require(wrong == 0, str(path), expected="finite values", got=got)
    low, high = density.aminmax()
    got = f"the value {float(low):g} everywhere"
    require(bool(low < high), str(path), expected="a map", got=got)
    return density, size


def _check_cube(header: MrcHeader) -> None:
    nz, ny, nx = header.shape
    where, got = str(header.path), f"{nx} x {ny} x {nz}"
    remedy = "Put it in a cubic box, for instance with relion_image_handler --new_box."
    require(nx == ny == nz, where, expected="a cubic map", got=got, remedy=remedy)
    require(
        nx % 2 == 0,
        where,
        expected="a map with an even number of voxels along a side",
        got=got,
        remedy=f"Make it even with `relion_image_handler --i {header.path.name} --o even.mrc "
        f"--new_box {nx + 1}`, or drop the last plane of each axis if it is empty: "
        f"the origin stays at voxel {nx // 2}.",
    )
    right = all(abs(angle - 90) < 0.5 or angle == 0 for angle in header.angles)
    require(right, where, expected="a cell of right angles", got=f"{header.angles} degrees")


def _voxel_size(header: MrcHeader, given: float | None) -> float:
    low, high = min(header.voxel_size), max(header.voxel_size)
    where = f"{header.path}, voxel size"
    got = " x ".join(f"{v:g}" for v in header.voxel_size)
    if low <= 0 and given is not None:
        return given
    remedy = "Write it into the header, for instance with relion_image_handler --rescale_angpix."
    require(low > 0, where, expected="a positive number of Angstrom", got=got, remedy=remedy)
    require(high - low <= 1e-3 * high, where, expected="the same along x, y and z", got=got)
    return header.voxel_size[0]


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
