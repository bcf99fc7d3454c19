"""The ``simulate`` command: what to image, and what was written."""

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cryoprob.app.words import facts, say
from cryoprob.checks import InputError, require
from cryoprob.fourier.transforms import crop_map
from cryoprob.io.mrc import read_map
from cryoprob.io.structures import density, read_structure
from cryoprob.models.simulate import Microscope, Simulation, simulate
from cryoprob.phantoms import PHANTOMS
from cryoprob.types import Maps

__all__ = ["Source", "make", "run_simulate"]


@dataclass(frozen=True)
class Source:
    """What to image: exactly one of a structure, a map and a phantom.

    Attributes
    ----------
    structure, map, phantom
        A PDB or mmCIF file, an MRC file, a name of :data:`cryoprob.phantoms.PHANTOMS`.
    box, pixel_size
        Of the images; a map brings its own.
    resolution
        Of the map of a structure, A.
    """

    structure: Path | None = None
    map: Path | None = None
    phantom: str | None = None
    box: int | None = None
    pixel_size: float | None = None
    resolution: float | None = None

    def volume(self, generator: torch.Generator) -> tuple[Maps, float]:
        """The map [D, D, D] and its pixel size, A.

        Raises
        ------
        InputError
            If not exactly one thing is to be imaged, or box or pixel size are not known.
        """
        given = {"--structure": self.structure, "--map": self.map, "--phantom": self.phantom}
        found = [name for name, value in given.items() if value is not None]
        got = " and ".join(found) or "none of them"
        require(len(found) == 1, "simulate", expected=f"one of {', '.join(given)}", got=got)
        if self.map is not None:
            return self._from_map(self.map)
        box, pixel_size = self._side(), self._pixel()
        if self.structure is not None:
            atoms = read_structure(self.structure)
            return density(atoms, box, pixel_size, self.resolution), pixel_size
        name = str(self.phantom)
        require(name in PHANTOMS, "--phantom", expected=", ".join(PHANTOMS), got=name)
        return PHANTOMS[name](box, pixel_size, generator), pixel_size

    def _from_map(self, path: Path) -> tuple[Maps, float]:
        volume, own = read_map(path)
        own = own if self.pixel_size is None else self.pixel_size
        remedy = "Give --pixel-size."
        require(own > 0, f"{path}, pixel size", expected="a number", got="none", remedy=remedy)
        whole = volume.shape[-1]
        box = whole if self.box is None else self.box
        expected = f"an even number up to the map's {whole}"
        require(0 < box <= whole and box % 2 == 0, "--box", expected=expected, got=f"{box}")
        return crop_map(volume, box), own * whole / box

    def _side(self) -> int:
        if self.box is None:
            remedy = "For adenylate kinase, --box 32 --pixel-size 3 is small and enough."
            expected = "pixels along a side"
            raise InputError("--box", expected=expected, got="nothing", remedy=remedy)
        return self.box

    def _pixel(self) -> float:
        if self.pixel_size is None:
            raise InputError("--pixel-size", expected="Angstrom", got="nothing")
        return self.pixel_size


def run_simulate(source: Source, out: Path, *rest: Any) -> None:
    """The command: :func:`make`, and what to do next."""
    made = make(source, out, *rest)
    say(f"Next: cryoprob fit {made.particles} --out {out / 'fit'}")


def make(
    source: Source,
    out: Path,
    n: int,
    snr: float,
    seed: int | None,
    shift_sd: float | None,
    microscope: Microscope | None,
) -> Simulation:
    """Simulate into a folder that has no particles yet, and say what was written.

    Raises
    ------
    InputError
        If the folder has particles, or the input is bad.
    """
    there = out / "particles.star"
    remedy = "Give another --out, or remove it first."
    got = f"a simulation ({there})"
    require(not there.exists(), str(out), expected="a new folder", got=got, remedy=remedy)
    seed = secrets.randbelow(2**31) if seed is None else seed
    generator = torch.Generator().manual_seed(seed)
    volume, pixel_size = source.volume(generator)
    made = simulate(
        volume,
        pixel_size,
        n,
        snr,
        generator,
        out=out,
        microscope=microscope,
        shift_sd=shift_sd,
    )
    say(f"{n} images of {volume.shape[-1]} pixels of {pixel_size:g} A, SNR {snr:g}, seed {seed}:")
    facts(
        [
            (str(made.particles), "the particles, without poses"),
            (str(made.truth), "the same with their poses"),
            (str(made.truth_map), f"the map, times {made.scale:.4g}: noise has variance 1"),
        ]
    )
    return made
