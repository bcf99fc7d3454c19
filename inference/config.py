"""Everything needed to run a fit again, as written to ``config.toml``."""

import tomllib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from cryoprob.checks import InputError, require
from cryoprob.inference.schedule import Schedule

__all__ = ["FAMILIES", "HYBRIDS", "POSES", "FitConfig"]

FAMILIES = ("exact-em", "modal-em", "amortized-modal", "svi", "amortized-vi")
"""Families of inference, in the order of the review's table."""

HYBRIDS = ("amortized-local",)
"""Families that join two of these."""

POSES = ("ignore", "known", "local")
"""What is done with the poses of the STAR file."""


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

    def __post_init__(self) -> None:
        for name, known in (("family", FAMILIES + HYBRIDS), ("poses", POSES)):
            value = getattr(self, name)
            require(value in known, f"--{name}", expected=" or ".join(known), got=repr(value))
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

    @property
    def references(self) -> list[str]:
        """Paths of the start maps."""
        return [] if self.reference is None else self.reference.split(",")

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
            If it cannot be read or holds an unknown name.
        """
        try:
            values = tomllib.loads(Path(path).read_text())
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise InputError(str(path), expected="a TOML file", got=str(error)) from None
        schedule = values.pop("schedule", {})
        for kind, found in ((cls, values), (Schedule, schedule)):
            unknown = sorted(set(found) - {item.name for item in fields(kind)})
            require(not unknown, str(path), expected="known settings", got=", ".join(unknown))
        return cls(**values, schedule=Schedule(**schedule))


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return str(value)
