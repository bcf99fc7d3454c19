"""Particle tables of RELION 1.4 to 5, read with every oddity told in words."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryoprob.checks import InputError, require, warn
from cryoprob.geometry.rotations import euler_to_matrix, matrix_to_euler
from cryoprob.io.export import as_array, write_particles
from cryoprob.io.files import resolve
from cryoprob.io.relion import ANGLES, CTF, CTF_DEFAULTS, CTF_ESSENTIAL, ORIGINS, Columns, Floats
from cryoprob.io.star import Loop, read_star
from cryoprob.optics import Optics, check_optics
from cryoprob.types import PathType, Rotations, Shifts

__all__ = ["HasTable", "ParticleTable", "new_table", "read_particles", "write_particles"]

Integers = NDArray[np.int64]

_NEEDS = {
    "ctf": [CTF[name] for name in CTF_ESSENTIAL],
    "rotation": list(ANGLES),
    "shift": list(ORIGINS),
}


@dataclass(frozen=True, eq=False)
class ParticleTable:
    """One row a particle; what the file does not have is NaN, never zero.

    Attributes
    ----------
    path
        The file.
    folder
        Where the search for the stacks begins: the folder of the file, if not told otherwise.
    slice
        Image in its stack, counted from 0, [N].
    stack, stacks
        Index [N] into the names of the stacks, as they are written.
    group, group_names
        Index [N] into the optics groups. Before RELION 3.1: rows of one voltage and pixel size.
    pixel_size
        A, [N].
    ctf
        Fields of :class:`~cryoprob.optics.Optics`, [N] each.
    angles
        (rot, tilt, psi), degrees, as written, [N, 3].
    shift
        Displacement of the particle (x, y), A, minus RELION's origin, [N, 2].
    columns
        Every column of the file.
    notes
        What was warned about.
    box
        Pixels along a side, where known.
    """

    path: Path
    folder: Path
    slice: Integers
    stack: Integers
    stacks: tuple[str, ...]
    group: Integers
    group_names: tuple[str, ...]
    pixel_size: Floats
    ctf: Mapping[str, Floats]
    angles: Floats
    shift: Floats
    columns: Columns | None = None
    notes: tuple[str, ...] = ()
    box: int | None = None

    def __len__(self) -> int:
        return len(self.slice)

    def __getitem__(self, rows: Integers) -> "ParticleTable":
        """The rows of an index or mask, in its order."""
        names = ("slice", "stack", "group", "pixel_size", "angles", "shift")
        arrays: dict[str, Any] = {name: getattr(self, name)[rows] for name in names}
        arrays["ctf"] = {name: values[rows] for name, values in self.ctf.items()}
        if self.columns is not None:
            particles, group = self.columns.particles[rows], self.columns.group[rows]
            arrays["columns"] = Columns(particles, self.columns.optics, group)
        return replace(self, **arrays)

    def image_names(self, rows: Sequence[int] | Integers | None = None) -> list[str]:
        """RELION's names ``000001@stack.mrcs`` of some rows, or of all."""
        chosen = range(len(self)) if rows is None else rows
        return [f"{self.slice[i] + 1:06d}@{self.stacks[self.stack[i]]}" for i in chosen]

    def where(self, row: int) -> str:
        """Words that lead a user to a row."""
        line = f", line {self.columns.particles.line[row]}" if self.columns else ""
        return f"{self.path}{line} ({self.image_names([row])[0]})"

    def files(self) -> list[Path | None]:
        """Where each of ``stacks`` lies, or None; RELION's ``:mrcs`` ending is understood."""
        names = (s.removesuffix(":mrcs").removesuffix(":mrc") for s in self.stacks)
        return [resolve(name, self.folder) for name in names]

    def optics(self) -> Optics | None:
        """The particles' optics in float64 with defaults filled in, or None without a defocus."""
        if bool(np.isnan(self.ctf["defocus_u"]).all()):
            return None
        filled = {
            name: np.where(np.isnan(values), CTF_DEFAULTS.get(name, np.nan), values)
            for name, values in self.ctf.items()
        }
        return Optics(**{name: torch.from_numpy(v) for name, v in filled.items()})

    def rotation(self) -> Rotations | None:
        """Rotations [N, 3, 3] in float64, or None if an angle of some row is absent or unset."""
        if bool((np.isnan(self.angles) | (self.angles == -999)).any()):
            return None
        return euler_to_matrix(torch.from_numpy(self.angles))

    def displacement(self) -> Shifts | None:
        """The shifts [N, 2], A, in float64, or None if one is absent."""
        return None if bool(np.isnan(self.shift).any()) else torch.from_numpy(self.shift)

    def with_pixel_size(self, pixel_size: float) -> "ParticleTable":
        """The same table with another pixel size, A; origins in pixels follow it."""
        require(
            pixel_size > 0, "pixel size", expected="a positive number of A", got=f"{pixel_size}"
        )
        size = np.full(len(self), float(pixel_size))
        shift = self.shift if self.columns is None else self.columns.shift(size)
        return replace(self, pixel_size=size, shift=shift)


class HasTable(Protocol):
    """What carries a table, as a particle stack does."""

    @property
    def table(self) -> ParticleTable | None:
        """The table of the particles."""


def read_particles(
    path: PathType, *, need: Collection[str] = (), folder: PathType | None = None
) -> ParticleTable:
    """Read the particles of a STAR file of RELION 1.4 or later (``.star``, ``.star.gz``).

    Parameters
    ----------
    need
        Any of ``"ctf"``, ``"rotation"``, ``"shift"``, ``"pixel_size"``: an error if absent.
    folder
        Where to look for the stacks first, instead of the folder of the file.

    Raises
    ------
    InputError
        If the file is no table of particles, a needed column is absent, a defocus lacks its
        voltage or Cs, a value is no number, an image is counted from 0, or the optics cannot be.
    """
    columns = Columns.join(read_star(path), str(path))
    _check_needs(columns, need)
    table = _table(Path(path), columns, None if folder is None else Path(folder))
    optics = table.optics()
    if optics is not None:
        check_optics(optics, str(path))
    for note in table.notes:
        warn(note)
    return table


def new_table(
    stack: PathType,
    n: int,
    pixel_size: float,
    *,
    box: int | None = None,
    optics: Optics | None = None,
    rotation: Rotations | None = None,
    shift: Shifts | None = None,
    group: Tensor | None = None,
    group_names: Sequence[str] = ("opticsGroup1",),
) -> ParticleTable:
    """The table of the ``n`` images of one stack that was just written.

    Parameters
    ----------
    stack
        The file of the images.
    pixel_size
        A.
    optics, rotation, shift, group
        [n], [n, 3, 3], [n, 2] (A) and [n] (index into ``group_names``); absent if left out.
    """
    path, absent = Path(stack), np.full(n, np.nan)
    ctf = {name: absent for name in CTF}
    if optics is not None:
        ctf = {f.name: as_array(getattr(optics, f.name), (n,), f.name) for f in fields(optics)}
    angles, moved = np.full((n, 3), np.nan), np.full((n, 2), np.nan)
    if rotation is not None:
        angles = as_array(matrix_to_euler(rotation.double()), (n, 3), "rotation")
    if shift is not None:
        moved = as_array(shift, (n, 2), "shift")
    return ParticleTable(
        path=path,
        folder=path.parent,
        slice=np.arange(n),
        stack=np.zeros(n, np.int64),
        stacks=(path.name,),
        group=np.zeros(n, np.int64) if group is None else group.cpu().numpy(),
        group_names=tuple(group_names),
        pixel_size=np.full(n, float(pixel_size)),
        ctf=ctf,
        angles=angles,
        shift=moved,
        box=box,
    )


def _check_needs(columns: Columns, need: Collection[str]) -> None:
    unknown = ", ".join(sorted(set(need) - {*_NEEDS, "pixel_size"}))
    known = f"any of {', '.join(_NEEDS)}, pixel_size"
    require(not unknown, "need", expected=known, got=unknown)
    for name, labels in _NEEDS.items():
        if name in need:
            short = [label.removesuffix("Angst") for label in labels]
            columns.require(short if columns.has(short[0]) else labels, f"needed for the {name}")
    loop = columns.particles
    if "pixel_size" in need and np.isnan(columns.pixel_size()).any():
        where = f"{loop.path}, pixel size"
        remedy = "Give the pixel size yourself."
        raise InputError(where, expected="_rlnImagePixelSize", got="no such column", remedy=remedy)
    sides = columns.numbers("rlnImageDimensionality")
    flat = sides is None or bool((sides == 2).all())
    where = f"{loop.path}, _rlnImageDimensionality"
    require(flat, where, expected="2 (images)", got="3 (subtomograms)")


def _table(path: Path, columns: Columns, folder: Path | None) -> ParticleTable:
    slices, stack, stacks = _images(columns.particles)
    size, ctf = columns.pixel_size(), columns.ctf()
    group, names = _groups(columns, ctf["voltage"], size)
    box = columns.numbers("rlnImageSize")
    table = ParticleTable(
        path=path,
        folder=path.parent if folder is None else folder,
        slice=slices,
        stack=stack,
        stacks=stacks,
        group=group,
        group_names=names,
        pixel_size=size,
        ctf=ctf,
        angles=columns.angles(),
        shift=columns.shift(size),
        columns=columns,
        box=int(box[0]) if box is not None and len(set(box)) == 1 else None,
    )
    return replace(table, notes=tuple(_notes(table, columns)))


def _images(loop: Loop) -> tuple[Integers, Integers, tuple[str, ...]]:
    """Image (from 0) and stack of each row; a bare name is the first image of its file."""
    parts = [name.partition("@") for name in loop.texts("rlnImageName")]
    seen: dict[str, int] = {}
    stack = [seen.setdefault(s if at else n, len(seen)) for n, at, s in parts]
    try:
        number = np.array([int(n) if at else 1 for n, at, _ in parts], np.int64)
    except ValueError:
        row = next(i for i, (n, at, _) in enumerate(parts) if at and not n.isdecimal())
        where, got = loop.where("rlnImageName", row), repr("".join(parts[row]))
        raise InputError(where, expected="a name such as 000001@stack.mrcs", got=got) from None
    for row in np.flatnonzero(number < 1)[:1].tolist():
        where, got = loop.where("rlnImageName", row), repr("".join(parts[row]))
        raise InputError(where, expected="an image counted from 1", got=got)
    return number - 1, np.array(stack, np.int64), tuple(seen)


def _groups(columns: Columns, voltage: Floats, size: Floats) -> tuple[Integers, tuple[str, ...]]:
    optics = columns.optics
    if optics is not None:
        if "rlnOpticsGroupName" in optics.labels:
            return columns.group, tuple(optics.texts("rlnOpticsGroupName"))
        return columns.group, tuple(f"opticsGroup{n + 1}" for n in range(len(optics)))
    kinds = np.nan_to_num(np.stack([voltage, size], -1).round(4), nan=-1.0)
    kinds, group = np.unique(kinds, axis=0, return_inverse=True)
    return group.reshape(-1), tuple(f"opticsGroup{n + 1}" for n in range(len(kinds)))


def _notes(table: ParticleTable, columns: Columns) -> list[str]:
    """What is odd about a table, in words."""
    notes, path = [], table.path
    if columns.has(CTF["defocus_u"]) and not columns.has(CTF["amplitude_contrast"]):
        notes.append(f"{path}: no column _rlnAmplitudeContrast; 0.1 is taken.")
    if bool((table.ctf["b_factor"] < 0).any()):
        text = "B factors below 0 (of a dose?) are taken as written: they amplify."
        notes.append(f"{path}: {text}")
    if bool((table.angles == -999).any()) and not bool(np.isnan(table.angles).any()):
        notes.append(f"{path}: angles of -999 (unset), so the poses are taken as not known.")
    order = np.lexsort((table.slice, table.stack))
    same = (np.diff(table.slice[order]) == 0) & (np.diff(table.stack[order]) == 0)
    if same.any():
        first = table.where(int(order[1:][same].min()))
        text = f"rows that name an image again: {int(same.sum())}, the first being {first}"
        notes.append(f"{path}: {text}; each counts as an image of its own.")
    unused = columns.unused()
    if unused:
        notes.append(f"{path}: the model has no {'; no '.join(unused)}: these are not used.")
    return notes
