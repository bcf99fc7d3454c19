"""Everything needed to run a fit again, as written to ``config.toml``."""

import tomllib
from dataclasses import asdict, dataclass, field, fields, replace
from math import inf
from pathlib import Path
from typing import Any, get_args, get_type_hints

from cryoprob.checks import InputError, did_you_mean, require
from cryoprob.inference.imaging import NODES, Latent
from cryoprob.inference.schedule import Schedule

__all__ = ["FAMILIES", "HYBRIDS", "POSES", "FitConfig", "option_of"]

FAMILIES = ("exact-em", "modal-em", "amortized-modal", "svi", "amortized-vi")
"""Families of inference, in the order of the review's table."""

HYBRIDS = ("amortized-local",)
"""Families that join two of these."""

POSES = ("ignore", "known", "local")
"""What is done with the poses of the STAR file."""

_APART = ("schedule", "threads")
_OPTIONS = {
    "low_pass_A": "low-pass",
    "half_sets": "half-sets",
    "pixel_size": "pixel-size",
    "contrast_sd": "contrast",
    "defocus_sd_A": "defocus",
    "defocus_nodes": "defocus-nodes",
}
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes"}


@dataclass(frozen=True)
class FitConfig:
    """One fit.

    Attributes
    ----------
    particles
        STAR file.
    family
        One of :data:`FAMILIES` or :data:`HYBRIDS`.
    reference
        Start map (an atomic structure for some presets), or as many as classes with commas
        between; None starts from nothing (known poses need none).
    low_pass_A
        Low-pass filter of the reference, Angstrom.
    poses
        ``ignore``, ``known`` (reconstruction only) or ``local`` (search around them).
    mask
        ``auto``, ``none``, ``sphere`` or a map.
    symmetry
        Point group, as RELION names them.
    box
        Crop images to this box on reading; 0 keeps theirs.
    pixel_size
        Angstrom; 0 takes the STAR file's.
    invert
        Particles are dark on white.
    half_sets
        Two independent halves, tau2 from their FSC (gold standard).
    seed
        Of every random choice.
    threads
        CPU threads; 0 takes what torch offers.
    device
        ``cpu``, ``cuda`` or ``cuda:N``.
    double
        Compute in float64.
    schedule
        The rest.
    preset
        A published system (:mod:`cryoprob.inference.presets`), whose settings these are; or "".
    contrast_sd
        Standard deviation of the images' contrasts around 1, summed out; None takes them as 1.
    defocus_sd_A
        That of the errors of the file's defocus, Angstrom, summed out; None takes it as it is.
    defocus_nodes
        Errors of the defocus that are summed over, evenly spaced; None takes 13.
    """

    particles: str
    family: str = "exact-em"
    reference: str | None = None
    low_pass_A: float = 40.0
    poses: str = "ignore"
    mask: str = "auto"
    symmetry: str = "C1"
    box: int = 0
    pixel_size: float = 0.0
    invert: bool = False
    half_sets: bool = False
    seed: int = 0
    threads: int = 0
    device: str = "cpu"
    double: bool = False
    schedule: Schedule = field(default_factory=Schedule)
    preset: str = ""
    contrast_sd: float | None = None
    defocus_sd_A: float | None = None
    defocus_nodes: int | None = None

    def __post_init__(self) -> None:
        for name, known in (("family", FAMILIES + HYBRIDS), ("poses", POSES)):
            value = getattr(self, name)
            words, near = " or ".join(known), did_you_mean(value, known)
            require(value in known, f"--{name}", expected=words, got=repr(value), remedy=near)
        require(
            self.low_pass_A > 0, "--low-pass", expected="Angstrom > 0", got=f"{self.low_pass_A}"
        )
        require(
            self.poses == "ignore" or self.family == "exact-em",
            f"--family {self.family}",
            expected="poses that are to be inferred (--poses ignore)",
            got=f"--poses {self.poses}",
            remedy="Known poses leave nothing to infer, and the local search is exact-em's.",
        )
        require(
            self.schedule.classes == 1 or (self.family == "exact-em" and not self.half_sets),
            "--set classes",
            expected="1, or --family exact-em without --half-sets",
            got=str(self.schedule.classes),
            remedy="Classes are summed out together with the poses, which exact-em does.",
        )
        count = 1 if self.reference is None else len(self.references)
        require(
            count in (1, self.schedule.classes),
            "--reference",
            expected=f"one map, or {self.schedule.classes} for the classes",
            got=f"{count} maps",
            remedy="Set the number of classes by --set classes=K.",
        )
        require(
            self.poses != "local" or self.schedule.coarse_order > 0,
            "coarse_order",
            expected="1 or more with --poses local, which looks at the children of near cells",
            got=str(self.schedule.coarse_order),
        )
        self._check_latent()

    def _check_latent(self) -> None:
        """Raise InputError unless contrast and defocus can be summed out as asked."""
        plan, wanted = self.schedule, " and ".join(self.asked)
        for name, value in self.asked.items():
            require(0 < value < inf, name, expected="a positive number", got=f"{value:g}")
        alone = self.defocus_nodes is None or self.defocus_sd_A is not None
        remedy = "Say how far the defocus may be off: --defocus SD_A."
        require(alone, "--defocus-nodes", expected="--defocus too", got="none", remedy=remedy)
        nodes = self.defocus_nodes
        fits = nodes is None or 2 <= nodes <= 64
        require(fits, "--defocus-nodes", expected="2 to 64", got=str(nodes))
        if not self.asked:
            return
        remedy = (
            "Use exact-em, or a preset that trains by gradients (cryodrgn, cryoai, ...), or leave"
            f" {wanted} out: other families take contrast and defocus as given. (In Python the"
            " sites can have laws, for fits by gradients: Joint.)"
        )
        fits, got = self.family == "exact-em", f"--family {self.family}"
        require(fits, wanted, expected="--family exact-em", got=got, remedy=remedy)
        remedy = f"Fit one map, or leave {wanted} out."
        fits, got = plan.classes == 1, f"--set classes={plan.classes}"
        require(fits, wanted, expected="one class", got=got, remedy=remedy)
        how = "alone" if self.defocus_sd_A is None else "beside --defocus"
        remedy = (
            f"Use --contrast SD {how}, which says how sure it is, or --set contrast=true alone."
        )
        fits, got = not plan.contrast, "--set contrast=true, which estimates given ones"
        require(fits, wanted, expected="contrast=false", got=got, remedy=remedy)

    @property
    def asked(self) -> dict[str, float]:
        """Options that make contrast and defocus latent, and their standard deviations."""
        named = {"--contrast": self.contrast_sd, "--defocus": self.defocus_sd_A}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def latent(self) -> Latent:
        """Which of contrast and defocus are summed out."""
        nodes = NODES if self.defocus_nodes is None else self.defocus_nodes
        return Latent(self.contrast_sd, self.defocus_sd_A, nodes)

    @property
    def references(self) -> list[str]:
        """Paths of the start maps."""
        return [] if self.reference is None else self.reference.split(",")

    def changes(self, now: "FitConfig") -> list[str]:
        """Settings that are other ones ``now``, as the command line has them.

        ``threads`` are left out: they change what is fitted by rounding at most.
        """
        names = [item.name for item in fields(FitConfig)]
        pairs = [
            (f"{option_of(n)} ", getattr(self, n), getattr(now, n))
            for n in names
            if n not in _APART
        ]
        for item in fields(Schedule):
            both = getattr(self.schedule, item.name), getattr(now.schedule, item.name)
            pairs.append((f"--set {item.name}=", *both))
        return [f"{name}{_said(b)} (it was {_said(a)})" for name, a, b in pairs if a != b]

    def whole(self) -> "FitConfig":
        """The same with files by their whole paths: it can be gone on with from any folder."""
        found: dict[str, Any] = {"particles": _whole(self.particles)}
        if self.reference is not None:
            found["reference"] = ",".join(map(_whole, self.references))
        if Path(self.mask).is_file():
            found["mask"] = _whole(self.mask)
        return replace(self, **found)

    def to_toml(self) -> str:
        """The text of ``config.toml``."""
        top = {k: v for k, v in asdict(self).items() if k != "schedule" and v is not None}
        lines = [f"{name} = {_toml(value)}" for name, value in top.items()]
        lines += ["", "[schedule]"]
        lines += [f"{name} = {_toml(value)}" for name, value in asdict(self.schedule).items()]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, path: str | Path) -> "FitConfig":
        """Read a ``config.toml``.

        Raises
        ------
        InputError
            If it cannot be read, or holds an unknown name or a value of another kind.
        """
        try:
            values = tomllib.loads(Path(path).read_text())
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise InputError(str(path), expected="a TOML file", got=str(error)) from None
        schedule = values.pop("schedule", {})
        fits, got = isinstance(schedule, dict), f"schedule = {schedule!r}"
        require(fits, str(path), expected="a table [schedule]", got=got)
        got = "none"
        require("particles" in values, str(path), expected='particles = "a STAR file"', got=got)
        for kind, found in ((cls, values), (Schedule, schedule)):
            known = {item.name for item in fields(kind)}
            unknown = sorted(set(found) - known)
            near = did_you_mean(unknown[0], known) if unknown else ""
            got = ", ".join(unknown)
            require(not unknown, str(path), expected="known settings", got=got, remedy=near)
            _check_kinds(str(path), kind, found)
        return cls(**values, schedule=Schedule(**schedule))


def _check_kinds(where: str, of: type, values: dict[str, object]) -> None:
    """Raise InputError unless values are of the types that a dataclass has for their names."""
    types = get_type_hints(of)
    for name, value in values.items():
        kinds = get_args(types[name]) or (types[name],)
        same = isinstance(value, bool) == (bool in kinds)
        fits = same and isinstance(value, (*kinds, int) if float in kinds else kinds)
        words = " or ".join(_WORDS[kind] for kind in kinds if kind in _WORDS)
        require(fits, where, expected=f"{name} to be {words}", got=repr(value))


def _whole(path: str) -> str:
    return str(Path(path).absolute())


def option_of(name: str) -> str:
    """A setting's name on the command line, such as ``--low-pass`` of ``low_pass_A``."""
    return "PARTICLES" if name == "particles" else f"--{_OPTIONS.get(name, name)}"


def _said(value: object) -> str:
    """A value in words."""
    return "none" if value is None or value == "" else _toml(value)


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
