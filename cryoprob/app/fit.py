"""The ``fit`` command: settings gathered, what is about to happen told, the run watched."""

import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from shlex import join
from typing import TYPE_CHECKING, Any

from cryoprob.app.guard import Interrupted
from cryoprob.app.words import angstrom, facts, say
from cryoprob.checks import InputError, OutputError, require
from cryoprob.inference.config import FitConfig
from cryoprob.inference.folder import check_folder
from cryoprob.inference.presets.menu import load
from cryoprob.inference.schedule import Schedule
from cryoprob.io.mrc import read_header
from cryoprob.io.structures import is_structure

if TYPE_CHECKING:
    from cryoprob.inference.guide import Guide
    from cryoprob.inference.imaging import Imaging
    from cryoprob.inference.presets.base import Built, Preset
    from cryoprob.inference.result import FitResult
    from cryoprob.inference.states import States

__all__ = ["configure", "conformations", "refuse_overwriting", "run", "watched"]

_RESULTS = ("checkpoint.pt", "config.toml", "volume.mrc")

_KINDS = {
    "log_evidence": "Log evidence",
    "elbo": "ELBO",
    "iwae": "IWAE bound",
    "profile_log_joint": "Profile log joint (no bound)",
    "ring_correlation": "Ring score (no likelihood of images)",
}

_POSES = {
    "ignore": "Poses: those of the file are ignored; all are inferred (--poses ignore).",
    "known": "Poses: those of the file are taken as exact, reconstruction only (--poses known).",
    "local": "Poses: searched in the neighborhood of those of the file (--poses local).",
}


def configure(
    given: Mapping[str, Any],
    settings: Sequence[str],
    file: Path | None,
    out: Path,
    resume: bool,
) -> FitConfig:
    """Settings from the defaults, a file, the options that were ``given``, and ``--set``.

    Without a file a resumed run takes the settings of its first part; what is given beside must
    be the same (:meth:`FitConfig.changes`), so that the first command with --resume goes on.

    Raises
    ------
    InputError
        If there are no particles, nothing to resume, or a setting is unknown or impossible.
    """
    require(
        not resume or (out / "config.toml").exists(),
        "--resume",
        expected=f"a fit to go on with in {out}",
        got="a folder without config.toml" if out.exists() else "no such folder",
        remedy="There is nothing to resume: start without --resume.",
    )
    plain = {name: _plain(name, value) for name, value in given.items() if value is not None}
    chosen = {name: value for name, value in plain.items() if value is not None}
    if file is None and not resume:
        return _new(chosen, settings)
    fits, got = resume or not chosen.get("preset"), str(file)
    require(fits, "--preset", expected="no --config beside it", got=got)
    begun = FitConfig.from_toml(out / "config.toml" if file is None else file)
    config = begun if file is None else begun.whole()
    return replace(config, **chosen, schedule=_schedule(config.schedule, settings))


def _new(chosen: dict[str, Any], settings: Sequence[str]) -> FitConfig:
    """Settings from the defaults, or those of a preset, and what was ``chosen``."""
    base = Schedule()
    if chosen.get("preset"):
        system = load(chosen["preset"])
        chosen, base = {**system.config, **chosen}, Schedule(**system.plan)
    if "particles" not in chosen:
        remedy = "For instance: cryoprob fit particles.star --out run1"
        raise InputError("PARTICLES", expected="a STAR file", got="nothing", remedy=remedy)
    chosen.setdefault("seed", secrets.randbelow(2**31))
    schedule = _schedule(base, settings)
    return FitConfig(**chosen, schedule=schedule)


def run(config: FitConfig, out: Path, *, resume: bool = False) -> "FitResult":
    """Fit, say what is done and what came out.

    Raises
    ------
    InputError
        If the folder has results and ``resume`` is false, or a fit of other settings, or the
        input is bad.
    Interrupted
        On Ctrl-C, with the words how to go on.
    """
    refuse_overwriting(out, resume)
    check_folder(out, config, resume)
    built = _check_input(config)
    _announce(config, built, out, resume)
    result = watched(config, out, resume=resume)
    _conclude(result, out)
    return result


def refuse_overwriting(out: Path, resume: bool) -> None:
    """Raise InputError if a folder has results that a run would overwrite."""
    fits = out.is_dir() or not out.exists()
    require(fits, f"--out {out}", expected="a folder", got="a file; nothing was changed")
    there = [name for name in _RESULTS if (out / name).exists()]
    require(
        resume or not there,
        f"--out {out}",
        expected="a folder without a fit",
        got=f"one with {', '.join(there)}; nothing was changed",
        remedy="Go on with it by --resume, or give another folder.",
    )


def watched(config: FitConfig, out: Path, *, resume: bool = False) -> "FitResult":
    """Fit under a progress display.

    Raises
    ------
    InputError
        If the input is bad.
    OutputError, Interrupted
        If a file cannot be written, and on Ctrl-C; both say how to go on.

    Notes
    -----
    Whatever stops it before the first checkpoint, a folder that was new is then as if nothing
    had been.
    """
    try:
        return _observed(config, out, resume)
    except KeyboardInterrupt:
        raise Interrupted(_how_to_resume(out)) from None
    except OutputError as error:
        remedy = f"{error.remedy} {_how_to_resume(out)}"
        told = {"expected": error.expected, "got": error.got, "remedy": remedy}
        raise OutputError(error.where, **told) from error


def _observed(config: FitConfig, out: Path, resume: bool) -> "FitResult":
    """Fit under a display; what fails early leaves no settings in a folder that was new."""
    from cryoprob.app.progress import display
    from cryoprob.inference.run import run_fit

    fresh = not (out / "config.toml").exists()
    try:
        with display() as observer:
            return run_fit(config, out, resume=resume, observer=observer)
    except BaseException:
        if fresh:
            _forget(out)
        raise


def _how_to_resume(out: Path) -> str:
    if not (out / "config.toml").exists():
        return "Stopped before the first checkpoint: start again."
    command = join(["cryoprob", "fit", "--resume", "--out", str(out)])
    return f"Stopped. All finished steps are kept. Go on with: {command}"


def _forget(out: Path) -> None:
    """Remove the settings of a fit that came to nothing, so that the folder can be used."""
    if out.is_dir() and not (out / "checkpoint.pt").exists():
        (out / "config.toml").unlink(missing_ok=True)
        (out / "log.txt").unlink(missing_ok=True)
        if not any(out.iterdir()):
            out.rmdir()


def _plain(name: str, value: Any) -> Any:
    """Files by their whole path: a run can be gone on with from any folder."""
    if isinstance(value, list | tuple):
        return ",".join(str(Path(one).absolute()) for one in value) or None
    is_file = isinstance(value, Path) or (name == "mask" and Path(value).is_file())
    return str(Path(value).absolute()) if is_file else value


def _schedule(base: Schedule, settings: Sequence[str]) -> Schedule:
    pairs = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        remedy = "`cryoprob settings` lists the keys."
        require(bool(equals), "--set", expected="key=value", got=repr(setting), remedy=remedy)
        pairs[name.strip()] = text.strip()
    return replace(base, **Schedule.values(pairs))


def _check_input(config: FitConfig) -> "Built | None":
    """Find at once, before anything is said, what is wrong with files, settings and the device.

    Returns a sketch of a preset's own system, None where families fit.
    """
    from cryoprob.inference.reload import check_settings
    from cryoprob.inference.solvent import Solvent
    from cryoprob.inference.starts import kind_of, stack_of

    kind_of(config)
    stack = stack_of(config)
    config.latent.check(stack)
    Solvent.of(config.mask, stack.box)
    for path in config.references:
        got = "no such file"
        require(Path(path).is_file(), "--reference", expected=f"a file {path}", got=got)
    built = check_settings(config, stack)
    if built is None:
        for path in config.references:
            read_header(path)
    return built


def _announce(config: FitConfig, built: "Built | None", out: Path, resume: bool) -> None:
    say(f"Particles: {config.particles}")
    if config.preset:
        system = load(config.preset)
        say(f"Preset: {system.name} ({system.paper}).")
    say(_POSES[config.poses] if built is None else _poses(built.half.guide))
    for line in config.latent.words():
        say(line)
    if config.reference is not None:
        low = f", low-passed to {config.low_pass_A:g} A"
        say(f"Start: {config.reference}{'' if is_structure(config.reference) else low}.")
    elif built is not None:
        say(_chance(built, load(config.preset)))
    elif config.poses == "ignore":
        starts = config.schedule.starts
        say(f"Start: from nothing; the best of {starts} random starts is refined.")
    how = "goes on from the checkpoint in" if resume else "written to"
    say(f"Seed: {config.seed}. Results: {how} {out}.")
    sys.stdout.flush()


def _poses(guide: "Guide") -> str:
    """What a preset's own system does about poses."""
    from cryoprob.inference.treatments.known import Known

    turns, moves = (isinstance(part, Known) for part in (guide.rotation, guide.shift))
    if turns and moves:
        return "Poses: those of the file are taken as exact (--poses known)."
    what = "rotations are inferred, images taken as centered" if moves else "all are inferred"
    return f"Poses: those of the file are ignored; {what} (--poses ignore)."


def _chance(built: "Built", preset: "Preset") -> str:
    """How a preset's own system starts from nothing."""
    if bool(built.half.guide.volume.coefficients.any()):
        return f"Start: from nothing, once: the volume ({preset.row.volume}) is drawn by chance."
    return "Start: from nothing; the first mean is the reconstruction at the poses."


def _conclude(result: "FitResult", out: Path) -> None:
    last, found = result.history[-1], float(result.posterior.bound.mean())
    divergence = f"{last.get('volume_kl', 0):.0f} nats, KL(q || prior), in total"
    facts(
        [
            ("Resolution", f"{angstrom(result.resolution_A)} ({result.criterion})"),
            (_KINDS[last["kind"].split(",")[0]], f"{found:.2f} nats per image"),
            *([("Map's q", divergence)] if "volume_kl" in last else []),
            ("Steps", str(len(result.history))),
            ("Map", str(out / "volume.mrc")),
            *conformations(result.states, out),
            *_imaging(result.imaging),
            ("Poses", str(out / "particles.star")),
        ],
        "Done",
    )


def _imaging(found: "Imaging | None") -> list[tuple[str, str]]:
    """What there is to say of latent contrasts and defoci."""
    if found is None:
        return []
    rows = []
    if len(found.contrast):
        spread, width = float(found.contrast.std()), float(found.contrast_std.median())
        rows.append(("Contrast", f"spread {spread:.2f}, each known to {width:.2f} (median)"))
    if len(found.defocus):
        spread, width = float(found.defocus.std()), float(found.defocus_std.median())
        rows.append(("Defocus", f"off by {spread:.0f} A, each known to {width:.0f} A (median)"))
    return rows


def conformations(states: "States | None", out: Path) -> list[tuple[str, str]]:
    """What there is to say of classes, or of coordinates."""
    if states is None:
        return []
    if states.shares.numel():
        shares = ", ".join(f"{share:.1%}" for share in states.shares.mean(0).tolist())
        return [("Classes", f"{shares} of the images (class_1.mrc ...)")]
    count = states.mean.shape[1]
    return [("Coordinates", f"{count}; read them with: cryoprob latent {out}")]
