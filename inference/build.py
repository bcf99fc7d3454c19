"""Models and guides, built from a stack, a family and a schedule."""

from collections.abc import Iterable
from math import pi
from typing import Any

import torch
from torch import Tensor

from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.inference.families import Family, Recipe
from cryoprob.inference.guide import Guide
from cryoprob.inference.imaging import exact_imaging
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.treatments.base import Treatment
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.local import Local
from cryoprob.models.conformations.base import Conformation
from cryoprob.models.conformations.classes import Classes
from cryoprob.models.contrast import Contrast
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.structure_factors import Term
from cryoprob.models.volumes.base import Volume
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.models.volumes.mixture import Mixture
from cryoprob.particles import ParticleStack

__all__ = [
    "assemble",
    "build_guide",
    "build_model",
    "image_power",
    "noise_log_density",
    "starting_noise",
]

_BLOCK = 512


def image_power(stack: ParticleStack, index: Tensor | None = None) -> Tensor:
    """Mean power of a number in each shell, per optics group, [G, S] (float64)."""
    index = torch.arange(len(stack)) if index is None else index
    band = full_band(stack.box)
    groups = int(stack.group.max()) + 1
    total = torch.zeros(groups, band.n_shells, dtype=torch.float64)
    for part in index.split(_BLOCK):
        batch = stack.batch(part, band.prefix(1))
        total.index_add_(0, batch.group, batch.power)
    counts = torch.bincount(stack.group[index], minlength=groups).clamp(min=1)
    return total / (counts[:, None] * band.numbers_per_shell())


def noise_log_density(stack: ParticleStack) -> Tensor:
    """Log density of every image under noise of its group's mean power, [N] (float64).

    The best that no map at all can do; the price of noise, against which a map's gain is counted.
    """
    band, power = full_band(stack.box), image_power(stack)
    counts = band.numbers_per_shell()
    constant = (counts * torch.log(2 * pi * power)).sum(1)
    parts = []
    for part in torch.arange(len(stack)).split(_BLOCK):
        batch = stack.batch(part, band.prefix(1))
        found = (batch.power / power[batch.group]).sum(1)
        parts.append(-(found + constant[batch.group]) / 2)
    return torch.cat(parts)


def build_model(
    stack: ParticleStack,
    schedule: Schedule,
    power: Tensor,
    *,
    radius: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> ParticleModel:
    """A particle model whose noise starts at the images' own power, with the schedule's classes.

    While the map explains nothing the noise explains all: the likelihood is tempered, most where
    the signal is strongest, and it sharpens by itself as the map improves.
    """
    sigma2 = starting_noise(power).to(device, dtype)
    signal = sigma2.mean(0) / stack.box
    kind: dict[str, Any] = {
        "interpolation": schedule.interpolation,
        "dtype": dtype,
        "device": device,
    }
    count = schedule.classes
    maps = [FourierVoxels(stack.box, signal, radius=radius, **kind) for _ in range(count)]
    if count == 1:
        return assemble(stack, schedule, sigma2, maps[0])
    even = torch.ones(count, dtype=dtype, device=device)
    return assemble(stack, schedule, sigma2, Mixture(maps), Classes(even))


def starting_noise(power: Tensor) -> Tensor:
    """Noise spectra [G, S] at the images' own power, which is above zero everywhere."""
    return power.clamp(min=1e-3 * float(power.mean()))


def assemble(
    stack: ParticleStack,
    schedule: Schedule,
    sigma2: Tensor,
    volume: Volume,
    conformation: Conformation | None = None,
    terms: Iterable[Term] = (),
) -> ParticleModel:
    """A particle model of any volume, poses on the continuum, noise of spectra [G, S]."""
    kind: dict[str, Any] = {"dtype": sigma2.dtype, "device": sigma2.device}
    sigma = schedule.shift_extent * stack.pixel_size / 2
    total = len(stack) if schedule.contrast else 0
    return ParticleModel(
        volume,
        UniformRotation(**kind),
        GaussianShift(sigma, **kind),
        RadialNoise(sigma2),
        stack.pixel_size,
        Contrast(total, **kind),
        conformation,
        terms,
    )


def build_guide(recipe: Recipe, row: Family, stack: ParticleStack, poses: str) -> Guide:
    """The family's guide; or known poses, or the exact search around them.

    Raises
    ------
    InputError
        If poses are wanted and the particles have none.
    """
    if poses == "ignore":
        return row.guide(recipe)
    if stack.rotation is None or stack.shift is None:
        raise InputError(f"poses = {poses!r}", expected="particles with poses", got="none")
    like = recipe.model.noise.sigma2
    rotation, shift = stack.rotation.to(like), stack.shift.to(like)
    treatments: tuple[Treatment, Treatment] = (Known(rotation), Known(shift))
    if poses == "local":
        reach = 2 * recipe.plan.shift_step * stack.pixel_size
        treatments = (Local(rotation, 12.0), Local(shift, reach))
    turns, moves = treatments
    volume, states, seen = recipe.volume, recipe.conformation, exact_imaging(recipe.model)
    return Guide(rotation=turns, shift=moves, volume=volume, conformation=states, **seen)
