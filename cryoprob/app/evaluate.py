"""The ``evaluate`` command: how far a fit is from the truth."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryoprob.app.conformations import (
    ConformationError,
    compare_conformations,
    fitted_columns,
    show_conformations,
)
from cryoprob.app.evaluation import Evaluation, print_maps, print_poses
from cryoprob.app.words import say
from cryoprob.checks import InputError, require
from cryoprob.fourier.transforms import crop_map
from cryoprob.geometry.symmetry import point_group
from cryoprob.inference.config import FitConfig
from cryoprob.io.files import replacing
from cryoprob.io.mrc import read_map
from cryoprob.io.tables import ParticleTable, read_particles
from cryoprob.masks import automatic
from cryoprob.metrics.alignment import Alignment, align_maps
from cryoprob.metrics.fsc import fsc, resolution
from cryoprob.metrics.pose_error import PoseError, pose_error
from cryoprob.types import Maps

__all__ = [
    "Comparison",
    "Evaluation",
    "compare",
    "evaluate",
    "show_evaluation",
    "write_evaluation",
]

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Comparison:
    """A fit laid on the truth.

    Attributes
    ----------
    aligned, truth
        Maps [D, D, D] of one box.
    pixel_size
        A.
    alignment
        The motion that was found.
    whole, masked
        FSC of the boxes and within the molecule, [D // 2 + 1].
    poses
        Errors of the poses, or None where the true ones are not known.
    conformations
        Errors of the conformations, or None where the fit has none.
    radius
        Largest shell that the fit used; None takes all. Beyond it a map has nothing of the images,
        only what a mask leaks, and no resolution is finer.
    given
        The poses were not inferred, but those of the particles' file.
    """

    aligned: Maps
    truth: Maps
    pixel_size: float
    alignment: Alignment
    whole: Tensor
    masked: Tensor
    poses: PoseError | None
    conformations: ConformationError | None = None
    radius: int | None = None
    given: bool = False

    def numbers(self) -> Evaluation:
        """What goes into ``evaluation.json``."""
        poses, states = self.poses, self.conformations
        classes = None if states is None else states.classes
        path = None if states is None else states.path
        return Evaluation(
            resolution_05_A=self._reach(self.whole, 0.5),
            resolution_0143_A=self._reach(self.whole, 0.143),
            masked_05_A=self._reach(self.masked, 0.5),
            masked_0143_A=self._reach(self.masked, 0.143),
            band_A=self._band_A,
            pixel_size=self.pixel_size,
            mirrored=self.alignment.mirrored,
            turn=self.alignment.rotation.tolist(),
            shift_A=self.alignment.shift_A.tolist(),
            fsc=[round(v, 6) for v in self.whole.tolist()],
            fsc_masked=[round(v, 6) for v in self.masked.tolist()],
            images=None if poses is None else len(poses.rotation_deg),
            median_rotation_deg=None if poses is None else poses.median_rotation_deg,
            mean_rotation_deg=None if poses is None else poses.mean_rotation_deg,
            median_shift_A=None if poses is None else poses.median_shift_A,
            mean_shift_A=None if poses is None else poses.mean_shift_A,
            poses_given=self.given,
            wrong_class_share=None if classes is None else classes.wrong,
            class_weight_error=None if classes is None else classes.weight,
            class_recall=None if classes is None else classes.recall.tolist(),
            leading_rank_correlation=None if path is None else path.leading,
            curve_rank_correlation=None if path is None else path.curve,
        )

    def _reach(self, curve: Tensor, threshold: float) -> float | None:
        """Resolution of a curve, at best the fit's last shell; None if it has none."""
        found = resolution(curve, threshold, self.pixel_size, self.truth.shape[-1])
        return None if found == float("inf") else max(found, self._band_A or 0.0)

    @property
    def _band_A(self) -> float | None:
        """Resolution of the fit's last shell."""
        if self.radius is None:
            return None
        return self.truth.shape[-1] * self.pixel_size / self.radius


def compare(
    volume: Maps,
    truth: Maps,
    pixel_size: float,
    *,
    symmetry: str = "C1",
    tables: tuple[ParticleTable, ParticleTable] | None = None,
    conformations: ConformationError | None = None,
    radius: int | None = None,
    given: bool = False,
) -> Comparison:
    """Lay a map on the true one [D, D, D]; with tables (found, true) compare the poses, too.

    ``radius`` and ``given`` are as in :class:`Comparison`.
    """
    group = point_group(symmetry)
    alignment = align_maps(volume, truth, pixel_size=pixel_size, group=group)
    assert alignment.aligned is not None
    aligned, mask = alignment.aligned, automatic(truth, pixel_size)
    poses = None if tables is None else _pose_errors(*tables, alignment, group)
    whole, masked = fsc(aligned, truth), fsc(aligned, truth, mask)
    parts = (alignment, whole, masked, poses, conformations, radius, given)
    return Comparison(aligned, truth, pixel_size, *parts)


def evaluate(run: Path, truth: Path) -> Comparison:
    """Compare the fit in the folder ``run`` with a folder of truth or with a map.

    Raises
    ------
    InputError
        If the fit or the truth is missing, or they are of different size or different images.
    """
    remedy = "Give a folder that `cryoprob fit` has finished."
    there = (run / "volume.mrc").exists()
    require(there, str(run), expected="a finished fit", got="no volume.mrc", remedy=remedy)
    volume, pixel_size = read_map(run / "volume.mrc")
    target = _read_truth(_true_map(truth), volume, pixel_size)
    tables, poses = None, truth / "truth.star"
    if truth.is_dir() and poses.exists() and (run / "particles.star").exists():
        tables = read_particles(run / "particles.star"), read_particles(poses, need=["rotation"])
    config = FitConfig.from_toml(run / "config.toml")
    return compare(
        volume,
        target,
        pixel_size,
        symmetry=config.symmetry,
        tables=tables,
        conformations=_conformations(run, tables),
        radius=_last_radius(run),
        given=config.poses == "known",
    )


def write_evaluation(comparison: Comparison, run: Path) -> Evaluation:
    """Print a comparison and write ``evaluation.json`` into the folder of the fit."""
    numbers = comparison.numbers()
    with replacing(run / "evaluation.json") as temporary:
        temporary.write_text(json.dumps(asdict(numbers), indent=1) + "\n")
    print_maps(numbers)
    if numbers.images is not None:
        print_poses(numbers)
    if comparison.conformations is not None:
        show_conformations(comparison.conformations)
    hand = "the mirror image of the truth" if numbers.mirrored else "the hand of the truth"
    say(f"\nThe map has {hand}; rotation, shift and hand were taken out before comparing.")
    return numbers


def show_evaluation(run: Path, truth: Path) -> Evaluation:
    """The command: evaluate, print, write."""
    numbers = write_evaluation(evaluate(run, truth), run)
    say(f"Written: {run / 'evaluation.json'}")
    return numbers


def _last_radius(run: Path) -> int | None:
    """Largest shell of the last step of a fit, or None where its metrics do not say."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return json.loads(lines[-1]).get("radius") if lines else None


def _true_map(truth: Path) -> Path:
    """The map itself, or that of a folder: the mean one where the molecule moves."""
    if not truth.is_dir():
        return truth
    mean, own = truth / "map_mean.mrc", truth / "truth.mrc"
    return mean if mean.exists() and not own.exists() else own


def _conformations(
    run: Path, tables: tuple[ParticleTable, ParticleTable] | None
) -> ConformationError | None:
    """Errors of the conformations of the images that both tables have."""
    columns = fitted_columns(run)
    if tables is None or not columns:
        return compare_conformations(None, columns)
    rows, others = _matched(*tables)
    return compare_conformations((tables[0][rows], tables[1][others]), columns)


def _read_truth(path: Path, volume: Maps, pixel_size: float) -> Maps:
    """The true map, cropped in Fourier space to the box of the fit."""
    truth, own = read_map(path)
    box, whole = volume.shape[-1], truth.shape[-1]
    side = box * pixel_size
    got = f"{whole} voxels of {own:g} A"
    alike = whole >= box and (own == 0 or abs(own * whole - side) < 0.01 * side)
    expected = f"a map of {side:g} A along a side, of {box} voxels or more"
    require(alike, str(path), expected=expected, got=got)
    return crop_map(truth, box)


def _pose_errors(
    found: ParticleTable, true: ParticleTable, alignment: Alignment, group: Tensor
) -> PoseError:
    """Errors of the poses of the images that both tables have."""
    rows, others = _matched(found, true)
    mine, theirs = found[rows], true[others]
    rotation = [_rotations(t) for t in (mine, theirs)]
    shifts = mine.displacement(), theirs.displacement()
    known = None not in shifts
    shift = shifts if known else (None, None)
    return pose_error(rotation[0], shift[0], rotation[1], shift[1], alignment, group)


def _rotations(part: ParticleTable) -> Tensor:
    rotation = part.rotation()
    got = "some rows without"
    require(rotation is not None, str(part.path), expected="angles in every row", got=got)
    assert rotation is not None
    return rotation


def _matched(found: ParticleTable, true: ParticleTable) -> tuple[Rows, Rows]:
    """Rows of two tables that name the same images."""
    place = {key: row for row, key in enumerate(_keys(true))}
    pairs = [(row, place[key]) for row, key in enumerate(_keys(found)) if key in place]
    if not pairs:
        raise InputError(
            str(true.path),
            expected=f"images of {found.path}",
            got=f"others, such as {true.image_names([0])[0]}",
        )
    rows = torch.tensor(pairs).numpy()
    return rows[:, 0], rows[:, 1]


def _keys(part: ParticleTable) -> list[tuple[int, str]]:
    """Image number and file of each row; the written name where the file is not found."""
    files = [
        name if file is None else str(file.resolve())
        for name, file in zip(part.stacks, part.files(), strict=True)
    ]
    return [(n, files[s]) for n, s in zip(part.slice.tolist(), part.stack.tolist(), strict=True)]
