"""Classes that start from one map: each takes a step with images of its own, drawn by chance."""

from dataclasses import replace

import torch

from cryoprob.inference.em import EM, EMState
from cryoprob.inference.half import Half
from cryoprob.particles import ParticleStack

__all__ = ["split"]


def split(algorithm: EM, state: EMState, stack: ParticleStack) -> None:
    """Replace the like maps of a state's classes by those that a random part of the images gives.

    As RELION does, whose first iteration draws the class of every image. Noise, priors and widths
    stay. From an empty map (known poses) it is the reconstruction of each part.
    """
    half = state.halves[0]
    plan = replace(algorithm.schedule, noise=False, tau2=False, shift_sigma=False, contrast=False)
    step = replace(algorithm, schedule=plan)
    generator = torch.Generator().manual_seed(algorithm.seed)
    parts = half.index[torch.randperm(len(half.index), generator=generator)]
    maps = []
    for member, index in zip(half.members, parts.chunk(len(half.members)), strict=True):
        own = EMState([Half(member.model, member.guide, index.sort().values)])
        own.shell = state.shell
        step.step(own, stack)
        maps.append(member.guide.volume.coefficients.data)
    half.guide.volume.coefficients.data = torch.stack(maps)
