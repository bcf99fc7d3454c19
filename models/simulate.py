"""Particle stacks drawn by running the Pyro model forward, written block by block."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from cryoprob.checks import OutputError, require
from cryoprob.fourier.bands import full_band
from cryoprob.io.mrc import StackWriter, write_map
from cryoprob.io.tables import new_table, write_particles
from cryoprob.models import sites
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.optics import Optics, check_optics, ctf
from cryoprob.particles import Batch
from cryoprob.types import Coefficients, Images, Maps, PathType, Rotations, Shifts

__all__ = [
    "Microscope",
    "Poses",
    "Simulation",
    "draw_images",
    "draw_optics",
    "draw_poses",
    "simulate",
]

_BLOCK_NUMBERS = 1 << 23
"""Pixels that are drawn at once."""


@dataclass(frozen=True)
class Microscope:
    """What CTFs are drawn from.

    Attributes
    ----------
    defocus
        Least and greatest mean defocus, A; uniform between them.
    astigmatism
        Greatest difference of the two defoci, A; uniform from 0, at any angle.
    voltage, spherical_aberration, amplitude_contrast
        kV, mm, and a fraction: of all images alike.
    """

    defocus: tuple[float, float] = (10000.0, 25000.0)
    astigmatism: float = 400.0
    voltage: float = 300.0
    spherical_aberration: float = 2.7
    amplitude_contrast: float = 0.1


@dataclass(frozen=True, eq=False)
class Poses:
    """Rotations [n, 3, 3] and shifts [n, 2] (A)."""

    rotation: Rotations
    shift: Shifts


@dataclass(frozen=True, eq=False)
class Simulation:
    """A stack that was written.

    Attributes
    ----------
    particles, truth, truth_map
        Table without poses, the same with poses, and the scaled map.
    scale
        Factor that was put on the map.
    """

    particles: Path
    truth: Path
    truth_map: Path
    scale: float


def draw_optics(n: int, generator: torch.Generator, microscope: Microscope) -> Optics:
    """Optics of ``n`` particles.

    Raises
    ------
    InputError
        If the microscope is impossible.
    """
    low, high = microscope.defocus
    require(low <= high, "defocus", expected="least, greatest", got=f"{low:g}, {high:g}")
    uniform = torch.rand(3, n, generator=generator, dtype=torch.float64)
    half = microscope.astigmatism * uniform[1] / 2
    mean = low + (high - low) * uniform[0]
    lens = (microscope.voltage, microscope.spherical_aberration, microscope.amplitude_contrast)
    alike = torch.tensor(lens, dtype=torch.float64)
    optics = Optics(mean + half, mean - half, 180 * uniform[2], *alike.unbind())
    check_optics(optics, "microscope")
    return optics


def draw_poses(
    model: ParticleModel, volume: Maps, optics: Optics | None, n: int, seed: int
) -> tuple[Poses, Tensor]:
    """Run a particle model forward at a map [D, D, D] up to its noise.

    Parameters
    ----------
    seed
        Of every draw; torch's own random state is left as it was.

    Returns
    -------
    Poses, Tensor
        Of ``n`` particles; and the variance of the pixels of each noiseless image, [n] float64.
    """
    parts, variances = [], []
    with _seeded(seed):
        for batch in _blank_batches(model, optics, n):
            trace = poutine.trace(_at(model, volume=volume)).get_trace(batch)
            found = [trace.nodes[name] for name in (sites.ROTATION, sites.SHIFT, sites.IMAGE)]
            parts.append((found[0]["value"], found[1]["value"]))
            variances.append(_variance(found[2]["fn"].mean, model.band.box))
    rotation, shift = (torch.cat(values) for values in zip(*parts, strict=True))
    return Poses(rotation, shift), torch.cat(variances)


def draw_images(
    model: ParticleModel, volume: Maps, optics: Optics | None, poses: Poses, seed: int
) -> Iterator[Images]:
    """Run a particle model forward at a map [D, D, D] and known poses: images in blocks [b, D, D].

    Each block has a seed of its own, counted from ``seed``, and is drawn when asked for.
    """
    for number, batch in enumerate(_blank_batches(model, optics, len(poses.shift))):
        here = {"rotation": poses.rotation[batch.index], "shift": poses.shift[batch.index]}
        drawn = _at(poutine.uncondition(model), volume=volume, **here)
        with _seeded(seed + number):
            packed: Coefficients = drawn(batch)
        yield batch.band.unpack(packed)


def simulate(
    volume: Maps,
    pixel_size: float,
    n: int,
    snr: float,
    generator: torch.Generator,
    *,
    out: PathType,
    microscope: Microscope | None = Microscope(),
    shift_sd: float | None = None,
) -> Simulation:
    """Draw ``n`` images of a map and write ``particles.mrcs``, the tables and the truth.

    The poses are uniform rotations and Gaussian shifts; noise is white, of variance 1. The map is
    scaled so that the mean over the images of the variance of the noiseless image (CTF applied,
    whole box) is ``snr``; ``truth.mrc`` holds the scaled map, ``truth.star`` the poses.

    Parameters
    ----------
    volume
        [D, D, D], D even.
    pixel_size
        A.
    generator
        Same state, same bytes.
    out
        A folder; made if it does not exist.
    microscope
        None for images without a CTF.
    shift_sd
        Of the shifts along x and along y, A; 0.03 boxes if left out.

    Raises
    ------
    InputError
        If the map is empty, a number is impossible or the microscope is.
    OutputError
        If a file cannot be written.
    """
    box = _check(volume, pixel_size, n, snr)
    optics = None if microscope is None else draw_optics(n, generator, microscope)
    seed = int(torch.randint(2**62, (), generator=generator))
    sigma = 0.03 * box * pixel_size if shift_sd is None else shift_sd
    model = _model(box, pixel_size, sigma)
    volume = volume.float()
    poses, variance = draw_poses(model, volume, optics, n, seed)
    scale = (snr / float(variance.mean())) ** 0.5
    folder = _folder(out)
    with StackWriter(folder / "particles.mrcs", pixel_size) as writer:
        for block in draw_images(model, scale * volume, optics, poses, seed + 1):
            writer.write(block)
    write_map(folder / "truth.mrc", scale * volume, pixel_size)
    table = new_table(folder / "particles.mrcs", n, pixel_size, box=box, optics=optics)
    write_particles(folder / "truth.star", table, poses.rotation, poses.shift)
    write_particles(folder / "particles.star", table)
    names = ("particles.star", "truth.star", "truth.mrc")
    particles, truth, truth_map = (folder / name for name in names)
    return Simulation(particles, truth, truth_map, scale)


def _check(volume: Maps, pixel_size: float, n: int, snr: float) -> int:
    """The box, of a map and numbers that make sense."""
    shape = list(volume.shape)
    cube = len(shape) == 3 and len(set(shape)) == 1 and shape[0] % 2 == 0
    require(cube, "map to simulate from", expected="[D, D, D], D even", got=f"{shape}")
    finite = bool(torch.isfinite(volume).all()) and bool(volume.min() < volume.max())
    got = "NaN, infinite or only equal voxels"
    require(finite, "map to simulate from", expected="a molecule", got=got)
    for name, value in (("pixel size", pixel_size), ("number of images", n), ("SNR", snr)):
        good = 0 < value < float("inf")
        require(good, name, expected="a positive number", got=f"{value:g}")
    return shape[0]


def _folder(path: PathType) -> Path:
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        got = error.strerror or str(error)
        raise OutputError(str(path), expected="a folder to write to", got=got) from error
    return folder


def _model(box: int, pixel_size: float, sigma: float) -> ParticleModel:
    noise = RadialNoise(torch.ones(1, box // 2 + 2))
    poses = UniformRotation(), GaussianShift(sigma)
    return ParticleModel(FourierVoxels(box), *poses, noise, pixel_size)


def _blank_batches(model: ParticleModel, optics: Optics | None, n: int) -> Iterator[Batch]:
    """Batches whose images are all zero, over the whole band."""
    band = full_band(model.band.box)
    size = max(1, _BLOCK_NUMBERS // band.box**2)
    for index in (torch.arange(low, min(low + size, n)) for low in range(0, n, size)):
        here = None if optics is None else optics[index]
        transfer = torch.ones(len(index), len(band))
        if here is not None:
            kind = {"dtype": torch.float32}
            transfer = ctf(here, band.kx, band.ky, model.pixel_size, band.box, **kind)
        image = torch.zeros(len(index), len(band), dtype=torch.complex64)
        power = torch.zeros(len(index), band.n_shells, dtype=torch.float64)
        yield Batch(image, power, here, transfer, torch.zeros_like(index), index, n, band)


def _at(model: Any, **values: Tensor) -> Any:
    return pyro.condition(model, data=values)


def _variance(clean: Coefficients, box: int) -> Tensor:
    """Variance of the pixels of packed images, [n] float64; the first coefficient is the mean."""
    power = clean.abs().double().square()
    return (power.sum(-1) - power[..., 0]) / box**2


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers from a seed inside; outside they go on as if nothing had been."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
