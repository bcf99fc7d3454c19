"""The numbers that come of laying a fit on the truth, and how they are printed."""

from dataclasses import dataclass

from cryoprob.app.words import angstrom, say, table

__all__ = ["Evaluation", "print_maps", "print_poses"]


@dataclass(frozen=True)
class Evaluation:
    """The numbers of a comparison; None where there is none.

    Attributes
    ----------
    resolution_05_A, resolution_0143_A
        Where the FSC with the truth falls below 0.5 and 0.143, A, over the whole box.
    masked_05_A, masked_0143_A
        The same within a soft mask around the true molecule.
    band_A
        The last shell that the fit used, A; resolutions are at best this.
    pixel_size
        A.
    mirrored, turn, shift_A
        The motion that lays the fit on the truth.
    fsc, fsc_masked
        The curves, by shell.
    images
        Images whose poses were compared.
    median_rotation_deg, mean_rotation_deg, median_shift_A, mean_shift_A
        Errors of the poses.
    poses_given
        These are of the particles' file, and the fit has not touched them.
    wrong_class_share, class_weight_error, class_recall
        Of classes, 0 to 1 (:class:`~cryoprob.metrics.conformation_error.ClassError`).
    leading_rank_correlation, curve_rank_correlation
        Of coordinates, 0 to 1 (:class:`~cryoprob.metrics.conformation_error.PathError`).
    """

    resolution_05_A: float | None
    resolution_0143_A: float | None
    masked_05_A: float | None
    masked_0143_A: float | None
    band_A: float | None
    pixel_size: float
    mirrored: bool
    turn: list[list[float]]
    shift_A: list[float]
    fsc: list[float]
    fsc_masked: list[float]
    images: int | None
    median_rotation_deg: float | None
    mean_rotation_deg: float | None
    median_shift_A: float | None
    mean_shift_A: float | None
    poses_given: bool
    wrong_class_share: float | None
    class_weight_error: float | None
    class_recall: list[float] | None
    leading_rank_correlation: float | None
    curve_rank_correlation: float | None


def print_maps(numbers: Evaluation) -> None:
    """Print the resolutions, and whether the band has cut them."""
    rows = [
        ("whole box", numbers.resolution_05_A, numbers.resolution_0143_A),
        ("within the molecule", numbers.masked_05_A, numbers.masked_0143_A),
    ]
    text = [(name, angstrom(half), angstrom(seventh)) for name, half, seventh in rows]
    table(["FSC with the truth", "0.5", "0.143"], text)
    if any(value == numbers.band_A for row in rows for value in row[1:] if value is not None):
        say(
            f"\nThe fit used shells to {angstrom(numbers.band_A)}: no finer resolution is told,"
            " for beyond there the map has nothing of the images."
        )


def print_poses(numbers: Evaluation) -> None:
    """Print the errors of the poses, and whose poses they are."""
    size, shift = numbers.pixel_size, (numbers.median_shift_A, numbers.mean_shift_A)
    turn = (numbers.median_rotation_deg, numbers.mean_rotation_deg)
    rows = [("rotation, degrees", *(f"{v:.1f}" for v in turn if v is not None))]
    if shift[0] is not None:
        rows.append(("shift, A", *(f"{v:.2f}" for v in shift if v is not None)))
        rows.append(("shift, pixels", *(f"{v / size:.2f}" for v in shift if v is not None)))
    what = "given poses" if numbers.poses_given else "poses"
    say("")
    table([f"error of {numbers.images} {what}", "median", "mean"], rows, "")
    if numbers.poses_given:
        say(
            "The poses were given (--poses known), not inferred: this is the error of the file's,"
            " and of laying one map on the other."
        )
