"""What a fit starts from: its particles, its numbers' type and place, and reference maps."""

from typing import Any

import torch

from cryoprob.checks import InputError, require
from cryoprob.fourier.shells import low_pass
from cryoprob.fourier.transforms import crop_map
from cryoprob.inference.config import FitConfig
from cryoprob.io.mrc import read_map
from cryoprob.particles import ParticleStack
from cryoprob.types import Maps

__all__ = ["kind_of", "reference_map", "stack_of"]


def reference_map(path: str, stack: ParticleStack, low_pass_A: float) -> Maps:
    """A reference [D, D, D] in the images' box, low-passed.

    Raises
    ------
    InputError
        If it cannot be read, or its field of view is not the images'.
    """
    volume, pixel_size = read_map(path)
    field = volume.shape[-1] * pixel_size
    mine = stack.box * stack.pixel_size
    require(
        abs(field / mine - 1) < 0.01,
        f"reference {path}",
        expected=f"a field of view of {mine:.1f} A, as the images have",
        got=f"{volume.shape[-1]} voxels of {pixel_size:.4g} A = {field:.1f} A",
        remedy="Pad or crop the map, or correct its voxel size.",
    )
    return low_pass(crop_map(volume, stack.box), stack.pixel_size, low_pass_A)


def stack_of(config: FitConfig, box: int = 0) -> ParticleStack:
    """The particles as a fit reads them, cropped to a ``box`` or to the configuration's."""
    return ParticleStack.read(
        config.particles,
        box=box or config.box or None,
        invert=config.invert,
        pixel_size=config.pixel_size or None,
        need=("ctf",) if config.poses == "ignore" else ("ctf", "rotation", "shift"),
    )


def kind_of(config: FitConfig) -> dict[str, Any]:
    """``dtype`` and ``device`` of a fit.

    Raises
    ------
    InputError
        If this machine does not have the device.
    """
    dtype = torch.float64 if config.double else torch.float32
    return {"dtype": dtype, "device": _device(config.device)}


def _device(word: str) -> torch.device:
    """The device of a word, if this machine has it."""
    where, expected = f"--device {word}", "cpu, or a CUDA device that this machine has"
    require(word.split(":")[0] in ("cpu", "cuda"), where, expected=expected, got=repr(word))
    try:
        return torch.zeros(0, device=word).device
    except (AssertionError, RuntimeError) as error:  # torch raises either
        raise InputError(where, expected=expected, got=str(error).splitlines()[0]) from error
