"""Images of several maps in one stack, drawn state by state and written as one data set."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from cryoprob.fourier.transforms import crop_map
from cryoprob.io.mrc import StackWriter, read_map
from cryoprob.io.tables import new_table, write_particles
from cryoprob.models.simulate import Microscope, simulate
from cryoprob.optics import Optics
from cryoprob.particles import ParticleStack

NO_NOISE = 1e6
"""A signal-to-noise ratio at which nobody sees the noise."""

NO_CTF = Microscope((0.0, 0.0), 0.0, 300.0, 0.0, 1.0)
"""Amplitude contrast alone, in focus: the CTF is 1 everywhere."""

_FIELDS = ("defocus_u", "defocus_v", "defocus_angle", "voltage", "spherical_aberration")


@dataclass
class Truth:
    """Each image's state, rotation and shift (A), and the maps as they were scaled and cropped."""

    state: Tensor
    rotation: Tensor
    shift: Tensor
    maps: Tensor


def mixed(
    maps: Tensor,
    pixel_size: float,
    counts: list[int],
    snr: float,
    box: int,
    seed: int,
    microscope: Microscope | None = None,
    shift_sd: float | None = None,
) -> tuple[ParticleStack, Truth]:
    """A stack of so many images of each map, state after state, cropped to a box."""
    images, optics, truth, poses = [], [], [], []
    for state, count in enumerate(counts):
        with tempfile.TemporaryDirectory() as name:
            generator = torch.Generator().manual_seed(100 * seed + state)
            how = {"microscope": microscope or Microscope(), "shift_sd": shift_sd, "out": name}
            made = simulate(maps[state], pixel_size, count, snr, generator, **how)
            stack = ParticleStack.read(made.truth, box=box, need=("ctf", "rotation", "shift"))
            poses.append((stack.rotation, stack.shift))
            images.append(stack.images(torch.arange(count)))
            optics.append(stack.optics)
            truth.append(crop_map(read_map(made.truth_map)[0], box))
    names = (*_FIELDS, "amplitude_contrast")
    lens = Optics(**{name: torch.cat([getattr(one, name) for one in optics]) for name in names})
    pixel = pixel_size * maps.shape[-1] / box
    rotation, shift = (torch.cat(parts) for parts in zip(*poses, strict=True))
    stack = ParticleStack.from_arrays(torch.cat(images), pixel, lens, rotation, shift)
    state = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return stack, Truth(state, rotation, shift, torch.stack(truth).float())


def written(stack: ParticleStack, folder: Path) -> Path:
    """Images, CTFs and poses of a stack as ``particles.mrcs`` and ``truth.star``; the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    n, star = len(stack), folder / "truth.star"
    with StackWriter(folder / "particles.mrcs", stack.pixel_size) as writer:
        writer.write(stack.images(torch.arange(n)))
    size = {"box": stack.box, "optics": stack.optics}
    table = new_table(folder / "particles.mrcs", n, stack.pixel_size, **size)
    write_particles(star, table, stack.rotation, stack.shift)
    return star
