"""MRC maps and stacks: checked headers, memory-mapped stacks, cubic maps.

Header and modes are `mrcfile`'s; opening is not: it takes any number in the place of the length of
an extended header for true (and its memory), and holds two file descriptors a map.
"""

import bz2
import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from mrcfile.dtypes import HEADER_DTYPE
from mrcfile.utils import dtype_from_mode
from numpy.typing import NDArray

from cryoprob.checks import InputError, require
from cryoprob.io.files import require_file
from cryoprob.io.mrc_writer import StackWriter, write_map, write_stack
from cryoprob.types import Maps, PathType

__all__ = [
    "MrcHeader",
    "StackWriter",
    "map_stack",
    "open_stack",
    "read_header",
    "read_map",
    "read_mrc",
    "stack_header",
    "write_map",
    "write_stack",
]

_HEADER_BYTES = 1024
_LARGEST = 1 << 24
_STRUCTURE = "an atomic structure"
_OTHERS = {**dict.fromkeys((".pdb", ".ent", ".cif", ".mmcif"), _STRUCTURE), ".star": "a STAR file"}
"""What files of other names are, where they hold no MRC header."""
_OPENERS: dict[bytes, Any] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open}

T = TypeVar("T", int, float)
Floats = tuple[float, float, float]
Values = NDArray[Any]
Mapped = np.memmap[Any, np.dtype[Any]]


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
    raw = _content(found, _HEADER_BYTES)
    if len(raw) < _HEADER_BYTES:
        raise _no_mrc(path, f"{len(raw)} bytes")
    for order in ("<", ">"):  # the other order makes sizes of 2^24 and more of any true ones
        fields = np.frombuffer(raw, HEADER_DTYPE.newbyteorder(order))[0]
        sizes = [int(fields[name]) for name in ("nz", "ny", "nx")]
        if all(0 < n < _LARGEST for n in sizes) and fields["nsymbt"] >= 0:
            header = _header(found, fields, order)
            _check_size(header, found.stat().st_size)
            return header
    raise _no_mrc(path, "no sizes at its start")


def _opener(path: Path) -> Any:
    """What opens a file: plain, gzip or bzip2 by its first bytes."""
    with path.open("rb") as stream:
        return _OPENERS.get(stream.read(2), open)


def _content(path: Path, count: int = -1) -> bytes:
    """The first bytes of a file, or all, decompressed if need be."""
    try:
        with _opener(path)(path, "rb") as stream:
            return cast(bytes, stream.read(count))
    except (OSError, EOFError, zlib.error) as error:
        raise _no_mrc(path, str(error)) from error


def _no_mrc(path: PathType, got: str) -> InputError:
    named = Path(str(path).lower().removesuffix(".gz")).suffix
    got = _OTHERS.get(named, got)
    return InputError(str(path), expected="an MRC file (.mrc, .mrcs, .map)", got=got)


def _header(path: Path, raw: Any, order: str) -> MrcHeader:
    try:
        dtype = dtype_from_mode(raw["mode"]).newbyteorder(order)
    except ValueError as error:
        raise _no_mrc(path, f"values of an unknown kind (mode {raw['mode']})") from error
    if dtype.kind == "c":
        raise _no_mrc(path, f"complex values (mode {raw['mode']})")
    axes = _three(int, raw, "maps", "mapr", "mapc")
    return MrcHeader(
        path=path,
        shape=_three(int, raw, "nz", "ny", "nx"),
        dtype=dtype,
        voxel_size=cast(Floats, tuple(_ratio(raw["cella"][a], raw[f"m{a}"]) for a in "xyz")),
        offset=_HEADER_BYTES + int(raw["nsymbt"]),
        axes=axes if sorted(axes) == [1, 2, 3] else (3, 2, 1),
        angles=_three(float, raw["cellb"], "alpha", "beta", "gamma"),
        compressed=_opener(path) is not open,
    )


def _three(kind: type[T], raw: Any, *names: str) -> tuple[T, T, T]:
    one, two, three = (kind(raw[name]) for name in names)  # type: ignore[call-arg]
    return one, two, three


def _ratio(side: Any, n: Any) -> float:
    """Cell by sampling to the seven digits of a float32; 0 where unknown."""
    known = n > 0 and np.isfinite(side)
    return float(f"{float(side) / int(n):.7g}") if known else 0.0


def _check_size(header: MrcHeader, size: int) -> None:
    plane = header.shape[1] * header.shape[2] * header.dtype.itemsize
    need = header.offset + header.shape[0] * plane
    if size < need and not header.compressed:
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
    values = _decompress(header) if header.compressed else np.array(map_stack(header))
    return (values[0] if len(header) == 1 else values), header


def _decompress(header: MrcHeader) -> Values:
    data = _content(header.path)
    count = int(np.prod(header.shape))
    got = f"{len(data)} bytes after decompression"
    whole = len(data) >= header.offset + count * header.dtype.itemsize
    require(whole, str(header.path), expected="as much as its header promises", got=got)
    return np.frombuffer(data, header.dtype, count, header.offset).reshape(header.shape)


def open_stack(path: PathType) -> tuple[Mapped, MrcHeader]:
    """A stack of images as a read-only memory map [n, D, D] in the type of the file.

    A file asked for as a stack is one, whatever its header calls it (EMAN writes mz = nz).

    Raises
    ------
    InputError
        As :func:`read_header`; or if images are not square and even, or the file is compressed.
    """
    header = stack_header(path)
    return map_stack(header), header


def stack_header(path: PathType) -> MrcHeader:
    """The header of a stack, with the checks of :func:`open_stack`."""
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
    return header


def map_stack(header: MrcHeader) -> Mapped:
    """The memory map [n, D, D] of a header that was read."""
    return np.memmap(header.path, header.dtype, "r", header.offset, header.shape)


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
