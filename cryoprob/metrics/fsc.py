"""Fourier shell correlation, the resolution read from it, and its correction for the mask.

Shells are ``s = floor(|k| + 1/2)``, 0 to D // 2, as everywhere in the package; the corners of the
transform are left out. A curve is a tensor [S'] of ``S' = D // 2 + 1`` numbers (float64).

Source: Chen et al. (2013), Ultramicroscopy 135, 24 (phase randomization).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.shells import frequency_3d, shell_sum
from cryoprob.fourier.transforms import fft3, ifft3
from cryoprob.io.files import replacing
from cryoprob.types import Maps, PathType

__all__ = [
    "HalfMapFSC",
    "corrected_fsc",
    "fsc",
    "half_map_fsc",
    "last_shell",
    "randomize_phases",
    "resolution",
    "write_fsc_csv",
]

RANDOMIZE_BELOW = 0.8
"""Phases are random from the first shell whose unmasked FSC lies below this (as in RELION)."""

GAP_SHELLS = 2
"""Shells beyond the first randomized one that stay uncorrected (as in RELION)."""


def fsc(map_a: Maps, map_b: Maps, mask: Maps | None = None) -> Tensor:
    """Fourier shell correlation of two maps [*, D, D, D], [*, D // 2 + 1] (float64).

    ``Re sum a conj(b) / sqrt(sum |a|^2 sum |b|^2)`` over each shell; 0 where a map has no power.

    Parameters
    ----------
    mask
        Multiplies both maps first; a mask that is common to both correlates their noise
        (:func:`half_map_fsc` corrects for it).

    Raises
    ------
    InputError
        If the shapes differ or are not cubes.
    """
    shapes = [list(v.shape) for v in (map_a, map_b) if v is not None]
    cube = len(shapes[0]) >= 3 and len(set(shapes[0][-3:])) == 1
    same = cube and shapes[0] == shapes[1] and (mask is None or mask.shape == map_a.shape[-3:])
    got = ", ".join(str(s) for s in [*shapes, *([] if mask is None else [list(mask.shape)])])
    require(same, "maps to correlate", expected="[*, D, D, D], all of one shape", got=got)
    weight = 1.0 if mask is None else mask.double()
    a, b = (fft3(v.double() * weight) for v in (map_a, map_b))
    cross = shell_sum((a * b.conj()).real)
    power = (shell_sum(a.abs() ** 2) * shell_sum(b.abs() ** 2)).sqrt()
    return torch.where(power > 0, cross / power, 0.0)[..., :-1]


def last_shell(curve: Tensor, threshold: float) -> int:
    """Last shell of the unbroken run from shell 1 on which ``curve >= threshold``; 0 if none."""
    below = torch.nonzero(~(curve[1:] >= threshold))
    return int(below[0]) if len(below) else len(curve) - 1


def resolution(curve: Tensor, threshold: float, pixel_size: float, box: int) -> float:
    """Resolution in Angstrom at which ``curve`` [D // 2 + 1] first falls below ``threshold``.

    The crossing is interpolated linearly in frequency between :func:`last_shell` and the next
    one. A curve that never falls gives Nyquist, ``2 * pixel_size``; one below the threshold in
    shell 1 has no resolution: infinity.

    Raises
    ------
    InputError
        If the curve is not of this box, or the pixel size is not positive.
    """
    shells = box // 2 + 1
    got = f"shape {list(curve.shape)}"
    require(curve.shape == (shells,), "FSC curve", expected=f"{shells} shells", got=got)
    require(pixel_size > 0, "pixel size", expected="a positive length", got=str(pixel_size))
    last = last_shell(curve, threshold)
    if last in (0, box // 2):
        return float("inf") if last == 0 else 2 * pixel_size
    here, beyond = float(curve[last]), float(curve[last + 1])
    part = (here - threshold) / (here - beyond) if beyond == beyond else 0.0
    return box * pixel_size / (last + part)


def randomize_phases(volume: Maps, first_shell: int, generator: torch.Generator) -> Maps:
    """A map [D, D, D] whose phases are random from ``|k| >= first_shell`` on; amplitudes stay.

    The phases are those of white noise, hence independent, uniform, and of a real map.
    """
    box = volume.shape[-1]
    noise = torch.randn(
        volume.shape, generator=generator, dtype=torch.float64, device=generator.device
    )
    spectrum, phase = fft3(volume.double()), fft3(noise).angle().to(volume.device)
    random = torch.polar(spectrum.abs(), phase)
    outside = (frequency_3d(box) >= first_shell).to(volume.device)
    return ifft3(torch.where(outside, random, spectrum)).real.to(volume.dtype)


def corrected_fsc(masked: Tensor, randomized: Tensor, first_shell: int) -> Tensor:
    """FSC without the mask's share, ``(masked - randomized) / (1 - randomized)``, [D // 2 + 1].

    Below ``first_shell + 2`` it is the masked FSC, as in RELION. Noise scatters about 0 and may be
    negative.

    Parameters
    ----------
    randomized
        FSC of the masked maps with phases randomized from ``first_shell`` on.
    """
    beyond = torch.arange(len(masked), device=masked.device) >= first_shell + GAP_SHELLS
    own = (masked - randomized) / (1 - randomized).clamp(min=1e-12)
    return torch.where(beyond, own, masked)


@dataclass(frozen=True, eq=False)
class HalfMapFSC:
    """Gold-standard FSC of two half maps; every curve is [D // 2 + 1] (float64).

    Attributes
    ----------
    unmasked
        FSC of the whole boxes.
    masked, randomized
        FSC under the mask, of the maps and of the maps with random phases; None without a mask.
    corrected
        The masked FSC without the mask's share; the unmasked one if there is no mask.
    randomized_from
        First shell with random phases; ``D // 2 + 1`` if none was.
    pixel_size
        Angstrom.
    """

    unmasked: Tensor
    masked: Tensor | None
    randomized: Tensor | None
    corrected: Tensor
    randomized_from: int
    pixel_size: float

    @property
    def box(self) -> int:
        """Voxels along a side of the maps."""
        return 2 * (len(self.unmasked) - 1)

    def resolution(self, threshold: float = 0.143) -> float:
        """Resolution of the corrected curve in Angstrom (see :func:`resolution`)."""
        return resolution(self.corrected, threshold, self.pixel_size, self.box)

    def curves(self) -> dict[str, Tensor]:
        """The curves that exist, by the names of their columns in a table."""
        named = {
            "fsc_corrected": self.corrected,
            "fsc_unmasked": self.unmasked,
            "fsc_masked": self.masked,
            "fsc_phase_randomized_masked": self.randomized,
        }
        return {name: curve for name, curve in named.items() if curve is not None}


def half_map_fsc(
    half1: Maps,
    half2: Maps,
    pixel_size: float,
    mask: Maps | None = None,
    generator: torch.Generator | None = None,
) -> HalfMapFSC:
    """FSC of two half maps [D, D, D], with phase-randomized correction under a mask.

    Parameters
    ----------
    generator
        Source of the random phases; needed with a mask.

    Raises
    ------
    InputError
        If shapes disagree, or there is a mask but no generator.
    """
    unmasked = fsc(half1, half2)
    beyond = len(unmasked)
    if mask is None:
        return HalfMapFSC(unmasked, None, None, unmasked, beyond, pixel_size)
    require(generator is not None, "generator", expected="a torch.Generator", got="None")
    assert generator is not None
    masked = fsc(half1, half2, mask)
    first = last_shell(unmasked, RANDOMIZE_BELOW) + 1
    first_half, second_half = (randomize_phases(v, first, generator) for v in (half1, half2))
    randomized = fsc(first_half, second_half, mask)
    corrected = corrected_fsc(masked, randomized, first)
    return HalfMapFSC(unmasked, masked, randomized, corrected, first, pixel_size)


def write_fsc_csv(path: PathType, curves: Mapping[str, Tensor], pixel_size: float) -> None:
    """Write curves [D // 2 + 1] as a table, one row a shell; the file appears whole or not at all.

    Columns: shell, frequency_1_per_A, resolution_A, then each curve under its name.

    Raises
    ------
    InputError
        If there are no curves, or not all are of one box.
    OutputError
        If the file cannot be written.
    """
    sizes = {tuple(curve.shape) for curve in curves.values()}
    one = len(sizes) == 1 and all(len(size) == 1 for size in sizes)
    require(one, "FSC curves", expected="curves of one box", got=f"shapes {sorted(sizes)}")
    count = next(iter(sizes))[0]
    width = 2 * (count - 1) * pixel_size
    lines = [",".join(["shell", "frequency_1_per_A", "resolution_A", *curves])]
    for s in range(count):
        reach = f"{width / s:.4f}" if s else "inf"
        values = [f"{float(curve[s]):.6f}" for curve in curves.values()]
        lines.append(",".join([str(s), f"{s / width:.6f}", reach, *values]))
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
