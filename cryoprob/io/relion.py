"""RELION's labels: what each column means, in the units of :mod:`cryoprob.conventions`."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryoprob.checks import InputError, require
from cryoprob.io.star import Loop

__all__ = ["ANGLES", "CTF", "CTF_DEFAULTS", "CTF_ESSENTIAL", "ORIGINS", "Columns", "Floats"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
"""Euler angles, degrees; -999 is RELION's word for unset."""

ORIGINS = ("rlnOriginXAngst", "rlnOriginYAngst")
"""Minus the displacement of the particle, A (without ``Angst``: pixels)."""

CTF = {
    "defocus_u": "rlnDefocusU",
    "defocus_v": "rlnDefocusV",
    "defocus_angle": "rlnDefocusAngle",
    "voltage": "rlnVoltage",
    "spherical_aberration": "rlnSphericalAberration",
    "amplitude_contrast": "rlnAmplitudeContrast",
    "phase_shift": "rlnPhaseShift",
    "b_factor": "rlnCtfBfactor",
    "scale": "rlnCtfScalefactor",
}
"""Fields of :class:`cryoprob.optics.Optics` and their labels."""

CTF_ESSENTIAL = tuple(CTF)[:5]
"""Fields without which there is no CTF; the others have :data:`CTF_DEFAULTS`."""

CTF_DEFAULTS = {"amplitude_contrast": 0.1, "phase_shift": 0.0, "b_factor": 0.0, "scale": 1.0}
"""What stands in for an absent column."""

_UNUSED = {
    "beam tilt": (("rlnBeamTiltX", "rlnBeamTiltY"), 0.0),
    "higher aberrations": (("rlnOddZernike", "rlnEvenZernike"), 0.0),
    "anisotropic magnification (diagonal)": (("rlnMagMat00", "rlnMagMat11"), 1.0),
    "anisotropic magnification": (("rlnMagMat01", "rlnMagMat10"), 0.0),
    "CTF-premultiplied images": (("rlnCtfDataAreCtfPremultiplied",), 0.0),
    "phase-flipped images": (("rlnCtfDataArePhaseFlipped",), 0.0),
}


@dataclass(frozen=True, eq=False)
class Columns:
    """Particles joined with their optics groups: a value of the row wins over its group's.

    Attributes
    ----------
    particles, optics
        The two loops (no optics before RELION 3.1).
    group
        Row of ``optics`` of each particle, [N] (zeros without optics).
    """

    particles: Loop
    optics: Loop | None
    group: Integers

    @classmethod
    def join(cls, loops: list[Loop], path: str) -> "Columns":
        """The particles of a file, each with its optics group.

        Raises
        ------
        InputError
            If there are no particles, or a row names an optics group that is not there.
        """
        particles = _particle_loop(loops, path)
        optics = next((loop for loop in loops if loop.name == "optics" and len(loop)), None)
        return cls(particles, optics, _group_rows(particles, optics))

    def numbers(self, label: str) -> Floats | None:
        """A column [N], or None if neither loop has it."""
        if label in self.particles.labels:
            return self.particles.numbers(label)
        if self.optics is not None and label in self.optics.labels:
            return self.optics.numbers(label)[self.group]
        return None

    def has(self, label: str) -> bool:
        """Whether one of the two loops has the column."""
        return any(label in loop.labels for loop in (self.particles, self.optics) if loop)

    def require(self, labels: Iterable[str], why: str) -> None:
        """Raise InputError that names the absent columns of ``labels``, if any."""
        missing = ", ".join(f"_{label}" for label in labels if not self.has(label))
        where = f"{self.particles.path}, data_{self.particles.name}"
        remedy = "Join the table with the one that has them, or give the optics block."
        expected = f"column {missing} ({why})"
        require(not missing, where, expected=expected, got="no such column", remedy=remedy)

    def pixel_size(self) -> Floats:
        """Pixel size of the images [N], A; NaN where the file does not say.

        Raises
        ------
        InputError
            If one is given and not positive.
        """
        size = self.numbers("rlnImagePixelSize")
        detector, magnification = map(self.numbers, ("rlnDetectorPixelSize", "rlnMagnification"))
        if size is None and detector is not None and magnification is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                size = 1e4 * detector / magnification
        size = self.numbers("rlnPixelSize") if size is None else size
        if size is None:
            return np.full(len(self.particles), np.nan)
        bad = np.flatnonzero(~((size > 0) & (size < np.inf)))
        if len(bad):
            where = f"{self.particles.path}, line {self.particles.line[bad[0]]}, pixel size"
            raise InputError(where, expected="a positive number of A", got=f"{size[bad[0]]:g}")
        return size

    def ctf(self) -> dict[str, Floats]:
        """The columns of :data:`CTF`, [N] each; NaN where absent.

        Raises
        ------
        InputError
            If there is a defocus, but not all that the CTF needs.
        """
        if any(self.has(CTF[name]) for name in CTF_ESSENTIAL[:3]):
            self.require([CTF[name] for name in CTF_ESSENTIAL], "needed for the CTF")
        return {name: self._or_nan(label) for name, label in CTF.items()}

    def angles(self) -> Floats:
        """(rot, tilt, psi) [N, 3], degrees; NaN where absent."""
        return np.stack([self._or_nan(label) for label in ANGLES], -1)

    def shift(self, pixel_size: Floats) -> Floats:
        """Displacement of the particle (x, y) [N, 2], A; NaN where absent."""
        axes = []
        for label in ORIGINS:
            in_pixels = label.removesuffix("Angst")
            factor = pixel_size if not self.has(label) else 1.0
            axes.append(0.0 - self._or_nan(label if self.has(label) else in_pixels) * factor)
        return np.stack(axes, -1)

    def unused(self) -> list[str]:
        """Columns that hold an effect which the model does not have, in words."""
        found = []
        for effect, (labels, identity) in _UNUSED.items():
            used = [label for label in labels if self._differs(label, identity)]
            if used:
                found.append(f"{effect} ({', '.join(used)})")
        return found

    def _differs(self, label: str, identity: float) -> bool:
        for loop in (self.particles, self.optics):
            if loop is not None and label in loop.labels:
                values = np.unique(loop.words(label))
                return any(_not_all(value, identity) for value in values.tolist())
        return False

    def _or_nan(self, label: str) -> Floats:
        """A column that must be finite where it is there, or NaN where it is not."""
        values = self.numbers(label)
        if values is None:
            return np.full(len(self.particles), np.nan)
        for row in np.flatnonzero(~np.isfinite(values))[:1].tolist():
            where, got = self.particles.where(label, row), f"{values[row]:g}"
            remedy = "Drop the row, or the whole column if it is not known."
            raise InputError(where, expected="a finite number", got=got, remedy=remedy)
        return values


def _not_all(word: bytes, identity: float) -> bool:
    """Whether a number or a bracketed list of numbers holds another one than ``identity``."""
    parts = word.strip(b"[]").split(b",")
    try:
        return any(float(part) != identity for part in parts if part.strip())
    except ValueError:
        return True


def _particle_loop(loops: list[Loop], path: str) -> Loop:
    if not any(len(loop) for loop in loops):
        raise InputError(path, expected="particles", got="no particles (no loop has a row)")
    found = {loop.name: loop for loop in reversed(loops) if "rlnImageName" in loop.labels}
    names = ", ".join(f"data_{loop.name}" for loop in loops)
    expected = "a table of particles, with a column _rlnImageName"
    require(bool(found), path, expected=expected, got=f"no particles: {names} lack that column")
    named = [found[name] for name in ("particles", "images") if name in found]
    loop = (named or list(found.values())[::-1])[0]
    where = f"{path}, data_{loop.name}"
    require(len(loop) > 0, where, expected="particles", got="no particles (labels, no rows)")
    return loop


def _group_rows(particles: Loop, optics: Loop | None) -> Integers:
    label = "rlnOpticsGroup"
    if optics is None or (label not in particles.labels and len(optics) == 1):
        return np.zeros(len(particles), np.int64)
    for loop in (particles, optics):
        where = f"{loop.path}, data_{loop.name}"
        require(label in loop.labels, where, expected=f"column _{label}", got="no such column")
    numbers, wanted = optics.numbers(label), particles.numbers(label)
    order = np.argsort(numbers)
    place = np.searchsorted(numbers[order], wanted).clip(max=len(order) - 1)
    wrong = np.flatnonzero(numbers[order][place] != wanted)
    if len(wrong):
        listed = ", ".join(f"{n:g}" for n in numbers)
        where = particles.where(label, int(wrong[0]))
        got = f"{wanted[wrong[0]]:g}"
        raise InputError(where, expected=f"one of the optics groups {listed}", got=got)
    rows: Integers = order[place]
    return rows
