"""Particle tables written as RELION 3.1 writes them."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from cryoprob.checks import InputError, require
from cryoprob.geometry.rotations import matrix_to_euler
from cryoprob.io.relion import ANGLES, CTF, ORIGINS
from cryoprob.io.star import Values, write_star
from cryoprob.types import PathType, Rotations, Shifts

if TYPE_CHECKING:
    from cryoprob.io.tables import HasTable, ParticleTable

__all__ = ["as_array", "write_particles"]

_REPLACED = {
    "rlnMagnification",
    "rlnDetectorPixelSize",
    "rlnPixelSize",
    "rlnOriginX",
    "rlnOriginY",
}
_OPTICS = ("voltage", "spherical_aberration", "amplitude_contrast")
_RESERVED = ("rlnImageName", "rlnOpticsGroup")

Texts = dict[str, Values]


def write_particles(
    path: PathType,
    particles: "ParticleTable | HasTable",
    rotation: Rotations | None = None,
    shift: Shifts | None = None,
    extra: Mapping[str, ArrayLike | Tensor | Sequence[str]] | None = None,
    without: Collection[str] = (),
) -> None:
    """Write a table as RELION 3.1 does: the columns it had, with new poses and extra columns.

    The names of images under the folder of ``path`` are relative to it, others absolute: ours and
    RELION (run there) both find them; a folder with table and stacks can be moved. Names of images
    that are not there stay as they are. Origins are minus the shifts; pixel sizes and voltages of
    tables before RELION 3.1 move to an optics block.

    Parameters
    ----------
    rotation, shift
        New poses [n, 3, 3] and [n, 2] (A); those of the table stay where left out.
    extra
        Columns [n] of numbers or words by label; one that is there is replaced.
    without
        Labels of columns of the table that are left out.

    Raises
    ------
    InputError
        If there is no table (the images were never in a file), or a shape does not fit.
    OutputError
        If the file cannot be written.
    """
    table: ParticleTable | None = getattr(particles, "table", particles)  # type: ignore[arg-type]
    if table is None:
        remedy = "Write them with write_stack, and make their table with new_table."
        got = "images that were never in one"
        raise InputError(str(path), expected="images of a file", got=got, remedy=remedy)
    used, first, number = np.unique(table.group, return_index=True, return_inverse=True)
    columns: Texts = {
        "rlnImageName": _names(table, Path(path).parent),
        "rlnOpticsGroup": [str(n + 1) for n in number.tolist()],
    }
    kept = {label: values for label, values in _kept(table).items() if label not in without}
    columns |= kept | _poses(table, rotation, shift)
    optics = _optics(table, used, first)
    for name in _OPTICS:
        _share(table.ctf[name], CTF[name], first, number, columns, optics)
    for label, values in (extra or {}).items():
        name = label.removeprefix("_")
        require(name not in _RESERVED, f"extra column {name}", expected="a new label", got=name)
        columns[name] = _texts(values, len(table), name)
    write_star(path, {"optics": optics, "particles": columns})


def _names(table: "ParticleTable", folder: Path) -> list[str]:
    here, stacks = folder.resolve(), []
    for name, file in zip(table.stacks, table.files(), strict=True):
        found = None if file is None else file.absolute()
        if found is not None and not found.is_relative_to(here):
            found = found.resolve()
        inside = found is not None and found.is_relative_to(here)
        stacks.append(name if found is None else str(found.relative_to(here) if inside else found))
    pairs = zip((table.slice + 1).tolist(), table.stack.tolist(), strict=True)
    return [f"{image:06d}@{stacks[stack]}" for image, stack in pairs]


def _kept(table: "ParticleTable") -> Texts:
    """Columns as the file has them, or the CTF's if there is no file."""
    if table.columns is not None:
        loop = table.columns.particles
        skipped = {*_REPLACED, *_RESERVED}
        return {label: loop.words(label) for label in loop.labels if label not in skipped}
    known = {CTF[name]: values for name, values in table.ctf.items() if name not in _OPTICS}
    return {label: _fixed(v) for label, v in known.items() if not np.isnan(v).any()}


def _poses(table: "ParticleTable", rotation: Rotations | None, shift: Shifts | None) -> Texts:
    """Angles and origins that are not in the columns kept from the file."""
    n, out, has = len(table), Texts(), table.columns.has if table.columns else lambda label: False
    angles = table.angles
    if rotation is not None:
        angles = as_array(matrix_to_euler(rotation.double()), (n, 3), "rotation")
    if rotation is not None or not (has(ANGLES[0]) or np.isnan(angles).any()):
        out |= {label: _fixed(angles[:, i]) for i, label in enumerate(ANGLES)}
    moved = table.shift if shift is None else as_array(shift, (n, 2), "shift")
    if shift is not None or not (has(ORIGINS[0]) or np.isnan(moved).any()):
        out |= {label: _fixed(0.0 - moved[:, i]) for i, label in enumerate(ORIGINS)}
    return out


def _optics(table: "ParticleTable", used: NDArray[np.int64], first: NDArray[np.int64]) -> Texts:
    """The optics groups that have particles, numbered from 1."""
    loop = table.columns.optics if table.columns else None
    out: Texts = {
        "rlnOpticsGroup": [str(n + 1) for n in range(len(used))],
        "rlnOpticsGroupName": [table.group_names[g] for g in used],
    }
    if loop is not None:
        rows = loop[used]
        out |= {label: rows.texts(label) for label in rows.labels if label not in out}
    size = table.pixel_size[first]
    if not np.isnan(size).any():
        out["rlnImagePixelSize"] = _fixed(size)
    if table.box is not None:
        out["rlnImageSize"] = [str(table.box)] * len(used)
        out["rlnImageDimensionality"] = ["2"] * len(used)
    return out


def _share(
    values: NDArray[np.float64],
    label: str,
    first: NDArray[np.int64],
    number: NDArray[np.int64],
    columns: Texts,
    optics: Texts,
) -> None:
    """Put a quantity in the optics block, and in the particles' only if it varies in a group."""
    if np.isnan(values).any():
        return
    optics[label] = _fixed(values[first])
    columns.pop(label, None)
    if (values != values[first][number]).any():
        columns[label] = _fixed(values)


def as_array(values: ArrayLike | Tensor, shape: tuple[int, ...], name: str) -> NDArray[np.float64]:
    """Numbers as a float64 array of a shape; an InputError that says ``name`` if it is another."""
    found = values.detach().cpu() if isinstance(values, Tensor) else values
    array = np.asarray(found, np.float64)
    require(array.shape == shape, name, expected=f"shape {shape}", got=f"{array.shape}")
    return array


def _fixed(values: NDArray[np.float64]) -> list[str]:
    return [f"{v:.6f}" for v in values.tolist()]


def _texts(values: ArrayLike | Tensor | Sequence[str], n: int, name: str) -> list[str]:
    found = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    where = f"extra column {name}"
    require(found.shape == (n,), where, expected=f"{n} values", got=f"shape {found.shape}")
    if found.dtype.kind == "f":
        return [f"{v:.9g}" for v in found.tolist()]
    return [str(int(v)) if found.dtype.kind == "b" else str(v) for v in found.tolist()]
