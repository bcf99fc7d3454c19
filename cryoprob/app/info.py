"""The ``info`` command: what is in a stack, what is wrong with it, what a fit would take."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from cryoprob.app.estimate import estimate, product_rate
from cryoprob.app.guard import notes
from cryoprob.app.words import bullet, duration, facts, say, size
from cryoprob.checks import require
from cryoprob.inference.schedule import Schedule
from cryoprob.masks import circle
from cryoprob.particles import ParticleStack, StackReport

__all__ = ["contrast_score", "problems", "show_info"]

_SAMPLE = 500
_SURE = 5.0
"""Standard errors beyond which the contrast of the mean image is taken as seen."""

_DARK = (
    "The particles look darker than their surroundings; the model takes them as white on dark."
    " {} --invert, if that is so."
)
_NAMED, _FEW = 5, 100


def show_info(
    path: Path, *, pixel_size: float | None = None, box: int | None = None, invert: bool = False
) -> None:
    """Print what is known of the particles of a STAR file.

    Raises
    ------
    InputError
        If they cannot be read at all.
    """
    heard: list[str] = []
    with notes(heard.append):
        stack = ParticleStack.read(path, need=(), pixel_size=pixel_size, box=box, invert=invert)
        require(len(stack) > 0, str(path), expected="particles", got="none")
        report = stack.check_all()
        found = [*(text.removeprefix("Note: ") for text in heard), *problems(stack, report)]
    if not (report.not_finite or report.constant) and contrast_score(stack) < -_SURE:
        found.append(_DARK.format("Leave out" if invert else "Give"))
    facts(_contents(stack, report), str(path))
    facts(_optics(stack, report), "Optics")
    say("\nWhat is odd or wrong" if found else "\nNothing odd or wrong was found.")
    for text in found:
        bullet(text)
    _show_estimate(stack)


def problems(stack: ParticleStack, report: StackReport) -> Iterator[str]:
    """What keeps a fit from running or from being any good, in words."""
    kinds = {"NaN or infinite pixels": report.not_finite, "all pixels equal": report.constant}
    for kind, names in kinds.items():
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            yield f"Images with {kind}: {', '.join(names[:_NAMED])}{more}. Drop these rows."
    if "CTF" in report.absent:
        yield "No defocus: a fit needs the columns of the CTF."
    if len(stack) < _FEW:
        yield f"Only {len(stack)} images: few for a map from unknown poses."


def contrast_score(stack: ParticleStack) -> float:
    """How much brighter images are in the middle than at the rim, in standard errors."""
    step = max(1, len(stack) // _SAMPLE)
    images = stack.images(torch.arange(0, len(stack), step)[:_SAMPLE])
    middle = circle(stack.box, stack.box / 6).bool()
    rim = circle(stack.box, 0.45 * stack.box) == 0
    excess = images[:, middle].mean(1) - images[:, rim].mean(1)
    if len(excess) < 2:
        return 0.0
    return float(excess.mean() / (excess.std() / len(excess) ** 0.5))


def _contents(stack: ParticleStack, report: StackReport) -> list[tuple[str, str]]:
    side = stack.box * stack.pixel_size
    poses = [name for name in ("rotation", "shift") if name not in report.absent]
    return [
        ("Images", f"{report.n}, {size(report.disk_bytes)} on disk"),
        ("Box", f"{stack.box} pixels of {stack.pixel_size:.4g} A = {side:.4g} A"),
        ("Finest detail", f"{2 * stack.pixel_size:.4g} A (Nyquist)"),
        ("Poses", f"{' and '.join(poses)} known" if poses else "not known"),
        ("Pixels", f"mean {report.mean:.3g}, standard deviation {report.sd:.3g}"),
    ]


def _optics(stack: ParticleStack, report: StackReport) -> list[tuple[str, str]]:
    groups = ", ".join(f"{name} ({count})" for name, count in report.groups.items() if count)
    rows = [("Groups", groups)]
    optics = stack.optics
    if optics is not None:
        defocus = (optics.defocus_u + optics.defocus_v) / 2
        rows += [
            ("Defocus", f"{_reach(defocus / 1e4, 2)} um"),
            ("Astigmatism", f"{_reach((optics.defocus_u - optics.defocus_v).abs(), 0)} A"),
            ("Voltage", f"{_reach(optics.voltage, 0)} kV"),
            ("Cs", f"{_reach(optics.spherical_aberration, 2)} mm"),
            ("Amplitude contrast", _reach(optics.amplitude_contrast, 2)),
        ]
    return rows


def _reach(values: Tensor, digits: int) -> str:
    low, high = (f"{float(v):.{digits}f}" for v in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def _show_estimate(stack: ParticleStack) -> None:
    cost = estimate(len(stack), stack.box, Schedule(), product_rate())
    rows = [
        ("Memory", f"about {size(cost.memory)}"),
        ("Start from nothing", f"about {duration(cost.start_s)}"),
        ("Refinement", f"about {duration(cost.refine_s)}"),
        ("CPU threads", f"{torch.get_num_threads()}"),
    ]
    facts(rows, "A fit with default settings (within a factor of 3)")
