"""The ``compare`` command: families of inference on one data set, and where their nats go."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cryoprob.app.evaluate import Comparison, evaluate
from cryoprob.app.family_plots import plot_families
from cryoprob.app.fit import configure, watched
from cryoprob.app.memory import peak_bytes, reset_peak
from cryoprob.app.views import family_views
from cryoprob.app.words import angstrom, grid_spacing, say, size, table
from cryoprob.checks import did_you_mean, require
from cryoprob.inference.compare import Accounts, Priced, gridded
from cryoprob.inference.config import FAMILIES, HYBRIDS, FitConfig
from cryoprob.inference.evidence import (
    discretization,
    prices,
    scores,
    tempering,
)
from cryoprob.inference.families import Family, family
from cryoprob.inference.fixed_width import FixedWidth, fixed_width
from cryoprob.inference.half import Half
from cryoprob.inference.result import FitResult
from cryoprob.inference.starts import stack_of
from cryoprob.io.files import replacing
from cryoprob.particles import ParticleStack

__all__ = ["Row", "Setting", "compare_families", "run_compare", "setting"]

_SHOWN, _FINER, _WIDTHS = 3, 8, 16
_PRUNED, _TRUSTED = 0.999, 4.0


@dataclass(frozen=True)
class Setting:
    """What is compared.

    Attributes
    ----------
    config
        Of every fit, the family excepted.
    families
        Names.
    images
        How many images the gaps are counted on.
    order
        Rotation grid on which they are counted.
    truth
        Folder with truth.mrc and truth.star, or None.
    """

    config: FitConfig
    families: tuple[str, ...]
    images: int = 60
    order: int = 3
    truth: Path | None = None

    def __post_init__(self) -> None:
        known = FAMILIES + HYBRIDS
        unknown = [name for name in self.families if name not in known]
        wanted = "some of " + ", ".join(known)
        got = ", ".join(unknown) or "none"
        fits, near = bool(self.families) and not unknown, did_you_mean(got, known)
        require(fits, "--families", expected=wanted, got=got, remedy=near)
        require(self.images > 0, "--images", expected="a positive number", got=str(self.images))
        require(0 <= self.order <= 4, "--order", expected="0 to 4", got=str(self.order))
        asked = " and ".join(self.config.asked)
        wanted = "contrasts and defoci as given, which all families can fit"
        require(not asked, "compare", expected=wanted, got=asked)


@dataclass(frozen=True, eq=False)
class Row:
    """One family: its fit, and its budgets at its own volume and at the common one."""

    family: Family
    result: FitResult
    own: Priced
    common: Priced
    peak_bytes: int | None
    comparison: Comparison | None

    @property
    def half(self) -> Half:
        """Model and guide as fitted."""
        assert self.result.fitted is not None
        return self.result.fitted


def setting(
    given: Mapping[str, Any],
    settings: Sequence[str],
    file: Path | None,
    out: Path,
    families: str | None,
    images: int,
    order: int,
    truth: Path | None,
) -> Setting:
    """Settings from the options; a folder that was begun keeps the seed of its fits.

    Raises
    ------
    InputError
        If a setting or a family is unknown.
    """
    names = tuple(families.split(",")) if families else FAMILIES
    begun = sorted(out.glob("*/config.toml"))
    if begun and given.get("seed") is None:
        given = {**given, "seed": FitConfig.from_toml(begun[0]).seed}
    config = configure(given, settings, file, out, False)
    return Setting(config, names, images, order, truth)


def run_compare(chosen: Setting, out: Path) -> list[Row]:
    """Fit, price, print and save; what is already fitted in ``out`` is taken up.

    Raises
    ------
    InputError
        If the input is bad, or ``out`` holds fits of other settings.
    """
    rows = compare_families(chosen, out)
    stack = stack_of(chosen.config)
    index = counted(stack, chosen.images)
    _tell(rows, chosen, out)
    reference = rows[0].half
    _tell_prices(reference, chosen, stack, index)
    config, shown = chosen.config, index[:: max(1, len(index) // _SHOWN)][:_SHOWN]
    views = {
        row.family.name: family_views(row.half, stack, shown, config.schedule, config.symmetry)
        for row in rows
    }
    histories = {row.family.name: row.result.history for row in rows}
    plot_families(out / "families.png", histories, views, stack.images(shown))
    say(f"\nWritten: {out / 'families.csv'}, {out / 'families.png'}, {out / 'gaps.json'}")
    return rows


def counted(stack: ParticleStack, images: int) -> Tensor:
    """Indices of the images whose gaps are counted, spread evenly over the stack."""
    count = min(images, len(stack))
    return torch.linspace(0, len(stack) - 1, count).long()


def compare_families(setting: Setting, out: Path) -> list[Row]:
    """Fit every family in a folder of its own, and price each."""
    config = _shared_start(setting.config, out)
    fits: list[tuple[Family, FitResult, int | None]] = []
    for name in setting.families:
        say(f"\n{name}: {family(name).poses}.\n")
        reset_peak()
        folder = out / name
        resume = (folder / "config.toml").exists()
        result = watched(replace(config, family=name), folder, resume=resume)
        fits.append((family(name), result, peak_bytes()))
    return [_row(setting, config, out, fits[0][1], *fit) for fit in fits]


def _row(
    setting: Setting,
    config: FitConfig,
    out: Path,
    first: FitResult,
    row: Family,
    result: FitResult,
    peak: int | None,
) -> Row:
    half, reference = result.fitted, first.fitted
    assert half is not None and reference is not None
    stack = stack_of(config)
    index = counted(stack, setting.images)
    parts = (stack, index, config.schedule, setting.order, config.seed, config.symmetry)
    accounts = Accounts(*parts)
    own, common = accounts.own(row, half), accounts.common(row, half, reference)
    told = evaluate(out / row.name, setting.truth) if setting.truth else None
    return Row(row, result, own, common, peak, told)


def _shared_start(config: FitConfig, out: Path) -> FitConfig:
    """The configuration with a reference; without one, of a start from nothing for all."""
    if config.reference is not None:
        return config
    say("A start for all families: exact EM from nothing, and one step of refinement.\n")
    plan = replace(config.schedule, max_iterations=1)
    folder = out / "start"
    resume = (folder / "config.toml").exists()
    watched(replace(config, schedule=plan), folder, resume=resume)
    shells = config.schedule.start_radius
    stack = stack_of(config)
    low_pass = stack.box * stack.pixel_size / shells
    return replace(config, reference=str(folder / "volume.mrc"), low_pass_A=low_pass)


def _tell(rows: Sequence[Row], setting: Setting, out: Path) -> None:
    images = len(rows[0].own.budget.index)
    say(
        f"\nNats per image over {images} images, on the grid of {grid_spacing(setting.order)}."
        " evidence = bound + approximation + remainder: what the best q of the family misses, and"
        " what this q misses of that (the amortization gap of an encoder; for searches what the"
        " beam missed, for tables what the steps left over). In brackets 5 to 95 % of the images."
    )
    words = f"At the common volume, that of {rows[0].family.name}"
    if rows[0].own.volume_kl is not None:
        say(
            "\nThe volumes have a q too: 'evidence' is expected under q(V), and only less KL V ="
            " KL(q(V) || p(V)), here per image of the fit, is it a bound on the evidence."
        )
    _gaps(rows, [row.common for row in rows], words)
    _gaps(rows, [row.own for row in rows], "At each family's own volume")
    head = ["family", "resolution", "FSC 0.5", "pose error", "E-step", "memory"]
    told = [_outcome(row) for row in rows]
    table(head, told, "What came out")
    _save(rows, out)


def _gaps(rows: Sequence[Row], priced: Sequence[Priced], title: str) -> None:
    head = ["family", "evidence", "bound", "approximation", "remainder"]
    head += ["KL V"] * (priced[0].volume_kl is not None)
    lines = [[row.family.name, *_cells(one)] for row, one in zip(rows, priced, strict=True)]
    table(head, lines, title)


def _cells(priced: Priced) -> list[str]:
    """A line of a table of gaps, the family's name left out."""
    budget, own = priced.budget, [] if priced.volume_kl is None else [f"{priced.volume_kl:.2f}"]
    means = [f"{float(values.mean()):.2f}" for values in (budget.evidence, budget.bound)]
    return [*means, _spread(budget.approximation), _spread(budget.remainder), *own]


def _spread(values: Tensor) -> str:
    low, high = torch.quantile(values, values.new_tensor([0.05, 0.95])).tolist()
    mean, low, high = (
        round(value, n) + 0.0 for value, n in ((float(values.mean()), 2), (low, 1), (high, 1))
    )
    return f"{mean:.2f} ({low:.1f}..{high:.1f})"


def _outcome(row: Row) -> list[str]:
    told = row.comparison
    poses = None if told is None else told.poses
    return [
        row.family.name,
        angstrom(row.result.resolution_A),
        "-" if told is None else angstrom(told.numbers().resolution_05_A),
        "-" if poses is None else f"{poses.median_rotation_deg:.1f} deg",
        f"{row.own.images_per_s:.0f}/s",
        "-" if row.peak_bytes is None else size(row.peak_bytes),
    ]


def _tell_prices(half: Half, setting: Setting, stack: ParticleStack, index: Tensor) -> None:
    """The grid's own error, and what common tricks cost at best."""
    config, volume = setting.config, half.guide.volume.maps
    model = gridded(half.model, config.schedule, setting.order, config.symmetry)
    found = [
        prices(part, mass=_PRUNED, factor=_TRUSTED) | {"timid": tempering(part, 1 / _TRUSTED)}
        for part in scores(model, volume, stack, index)
    ]
    total = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    few = index[:: -(-len(index) // _WIDTHS)]
    fixed = fixed_width(model, volume, stack, few)
    total["fixed width"] = fixed.price
    lines = [[words, _spread(total[name])] for name, words in _tricks(fixed).items()]
    some = index if setting.order < 3 else index[:_FINER]
    finer = discretization(model, volume, stack, some)
    step = f"the grid itself: half of {grid_spacing(setting.order)} minus it ({len(some)} images)"
    table(["trick", "nats per image"], [*lines, [step, _spread(finer)]], "Exact prices there")
    error = float(finer.abs().mean())
    if error > 1:
        say(
            f"\nThe grid of {grid_spacing(setting.order)} is too coarse for these posteriors: the"
            f" next finer one changes the evidence by {error:.1f} nats per image. Gaps of that"
            f" size are the grid's; count them with --order {setting.order + 1}."
        )


def _tricks(fixed: FixedWidth) -> dict[str, str]:
    """The rows of the table of prices, in words."""
    width, count = f"{fixed.rotation_deg:.2g} deg, {fixed.shift_A:.2g} A", len(fixed.index)
    less, more = f"{1 / _TRUSTED:g}", f"{_TRUSTED:g}"
    return {
        "pruning": f"keep {_PRUNED:.1%} of the posterior mass",
        "one cell": "keep the best cell alone (a Dirac)",
        "fixed width": f"one width of q for all: {width} ({count} images)",
        "tempering": f"beta-ELBO, beta {less}: the likelihood counts {more} times",
        "timid": f"beta-ELBO, beta {more}: the likelihood counts {less} times",
    }


def _save(rows: Sequence[Row], out: Path) -> None:
    """``families.csv``, a line per family, and ``gaps.json``, a number per image."""
    lines = [_numbers(row) for row in rows]
    text = [",".join(lines[0])] + [",".join(map(str, line.values())) for line in lines]
    with replacing(out / "families.csv") as temporary:
        temporary.write_text("\n".join(text) + "\n")
    names = ("evidence", "bound", "approximation", "remainder")
    gaps = {
        row.family.name: {
            where: {name: getattr(priced.budget, name).tolist() for name in names}
            | _volume_kl(priced, "volume_kl_per_image")
            for where, priced in (("common", row.common), ("own", row.own))
        }
        for row in rows
    }
    content = {"images": rows[0].own.budget.index.tolist(), "families": gaps}
    with replacing(out / "gaps.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def _volume_kl(priced: Priced, name: str) -> dict[str, float]:
    """Nats per image of the fit that q(volume) costs, under a name, where there are any."""
    return {} if priced.volume_kl is None else {name: priced.volume_kl}


def _numbers(row: Row) -> dict[str, Any]:
    """A line of ``families.csv``; gaps are means over the images counted."""
    told = row.comparison
    poses = None if told is None else told.poses
    found: dict[str, Any] = {"family": row.family.name, "kind": row.half.guide.kind}
    for where, priced in (("common", row.common), ("own", row.own)):
        for name in ("evidence", "bound", "approximation", "remainder"):
            found[f"{name}_{where}"] = float(getattr(priced.budget, name).mean())
        found |= _volume_kl(priced, f"volume_kl_per_image_{where}")
    return found | {
        "resolution_A": row.result.resolution_A,
        "fsc_05_A": "" if told is None else told.numbers().resolution_05_A,
        "median_rotation_deg": "" if poses is None else poses.median_rotation_deg,
        "images_per_s": row.own.images_per_s,
        "peak_bytes": "" if row.peak_bytes is None else row.peak_bytes,
    }
