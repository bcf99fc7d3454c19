"""What ``evaluate`` says of conformations: the fit's columns beside those of the truth."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cryoprob.app.stats import read_stats
from cryoprob.app.words import say, table
from cryoprob.checks import counted, require
from cryoprob.io.tables import ParticleTable
from cryoprob.metrics.conformation_error import ClassError, PathError, confusion, path_error

__all__ = ["ConformationError", "compare_conformations", "fitted_columns", "show_conformations"]

CLASSES = "cryoprobClassShare"
COORDINATES = "cryoprobCoordinate"
_STORED = {CLASSES: "class_probability", COORDINATES: "conformation"}
_TRUTHS = {CLASSES: ("rlnClassNumber",), COORDINATES: ("frameProgress", "frameIndex")}
_KINDS = {CLASSES: "classes", COORDINATES: "coordinates"}


@dataclass(frozen=True, eq=False)
class ConformationError:
    """A fit's conformations against the truth.

    Attributes
    ----------
    images
        Images that were compared; 0 where the truth does not tell.
    against
        Column of the truth, or why there was no comparison.
    classes, path
        Errors of classes, or of coordinates.
    """

    images: int
    against: str
    classes: ClassError | None = None
    path: PathError | None = None


def fitted_columns(run: Path) -> dict[str, int]:
    """Columns of conformations that a fit itself wrote into particles.star, and how many.

    Others there may be of an earlier fit, whose particles.star was the input.
    """
    file = run / "posterior.nc"
    if not file.exists():
        return {}
    stats = read_stats(file)
    found = {name: stats[stored] for name, stored in _STORED.items() if stored in stats}
    return {name: int(values.shape[-1]) for name, values in found.items()}


def compare_conformations(
    tables: tuple[ParticleTable, ParticleTable] | None, columns: dict[str, int]
) -> ConformationError | None:
    """Compare row by row; None if the fit has no conformations.

    Parameters
    ----------
    tables
        The fit's and the true one, of the same images in one order; None without a true one.
    columns
        Of :func:`fitted_columns`.

    Raises
    ------
    InputError
        If a column that ought to be there is not, or has no number in a row.
    """
    if not columns:
        return None
    kind, count = next(iter(columns.items()))
    if tables is None:
        return ConformationError(0, _untold(kind, "the truth has no table of the images"))
    found, true = tables
    names = [n for n in _TRUTHS[kind] if true.columns is not None and true.columns.has(n)]
    if not names:
        wanted = " or ".join(f"_{name}" for name in _TRUTHS[kind])
        return ConformationError(0, _untold(kind, f"{true.path} has no column {wanted}"))
    values = torch.stack([_column(found, f"{kind}{k + 1}") for k in range(count)], 1)
    truth = _column(true, names[0])
    if kind == CLASSES:
        classes = confusion(values, truth.long())
        return ConformationError(len(truth), names[0], classes=classes)
    return ConformationError(len(truth), names[0], path=path_error(values, truth))


def show_conformations(error: ConformationError) -> None:
    """Print the rows, each with the value of a perfect fit beside it."""
    if not error.images:
        say(f"\n{error.against}")
        return
    rows = []
    if error.path is not None:
        which = ("first principal axis", error.path.leading), ("principal curve", error.path.curve)
        rows = [(f"rank correlation along the {name}", f"{v:.3f}", "1") for name, v in which]
    if error.classes is not None:
        part = error.classes
        rows.append(("images in the wrong class, %", f"{100 * part.wrong:.1f}", "0"))
        rows.append(("largest error of a class weight, %", f"{100 * part.weight:.1f}", "0"))
        pairs = zip(part.names.tolist(), part.recall.tolist(), strict=True)
        rows += [(f"true class {n} found, %", f"{100 * v:.1f}", "100") for n, v in pairs]
    say("")
    head = f"conformations of {error.images} images against {error.against}"
    table([head, "value", "perfect"], rows)


def _untold(kind: str, why: str) -> str:
    return f"The {_KINDS[kind]} of the fit are not compared: {why}."


def _column(part: ParticleTable, name: str) -> Tensor:
    """A column of finite numbers, [N]."""
    values = None if part.columns is None else part.columns.numbers(name)
    where = f"{part.path}, _{name}"
    require(values is not None, where, expected="a column of numbers", got="none")
    assert values is not None
    bad = np.flatnonzero(~np.isfinite(values))
    rows = counted(len(bad), "row")
    got = f"{rows} without, the first {part.where(int(bad[0]))}" if len(bad) else ""
    require(not len(bad), where, expected="a number in every row", got=got)
    return torch.from_numpy(values)
