"""The gray scale of a reference: chosen among a ladder of factors by exact evidence."""

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.shells import shell_mean
from cryoprob.fourier.transforms import fft3
from cryoprob.inference.e_step import e_step
from cryoprob.inference.grids import on_grid
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.local import Local
from cryoprob.inference.treatments.point import Point
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.particles import ParticleStack

__all__ = ["match_amplitude", "regressed_amplitude"]

_IMAGES = 64
_REGRESSED = 512
_FACTORS = 2.0 ** torch.arange(-8.0, 3.0, 0.5)


def match_amplitude(half: Half, stack: ParticleStack, schedule: Schedule, symmetry: str) -> str:
    """Scale the volume of a half to the images; returns what was done, in words.

    Of classes the first is looked at, and all are scaled. The ladder starts where the map's
    projections would carry all of the images' power.
    """
    first, point = half.members[0], half.guide.volume
    model, given = first.model, first.guide.volume.coefficients.data
    if isinstance(half.guide.rotation, Known | Local):
        return "The reference's gray scale is taken as it is."
    model.linear_volume.set_band(schedule.radius(stack.box, 4))
    turns = UniformRotation(given.dtype, given.device).discretize(1, symmetry=symmetry)
    extent = schedule.shift_extent * stack.pixel_size
    prior = GaussianShift(extent / 2, given.dtype, given.device)
    searched = on_grid(model.as_given(), turns, prior.discretize(extent, extent / 3))
    power = shell_mean(fft3(given).abs() ** 2)[1:5].mean() * stack.box
    top = (model.noise.sigma2[:, 1:5].mean() / power.clamp(min=1e-30)).sqrt()
    index = half.index[:: max(1, len(half.index) // _IMAGES)][:_IMAGES]
    scores = []
    for factor in [*(float(top) * f for f in _FACTORS.tolist()), 1.0]:
        guide = Guide(rotation=Exact(), shift=Exact(), volume=Point(factor * given))
        evidence = e_step(searched, guide, stack, index).summary.bound[index]
        scores.append((float(evidence.mean()), factor))
    best, factor = max(scores)
    if best < scores[-1][0] + 0.1:
        factor = 1.0
    point.coefficients.data = factor * point.coefficients.data
    return f"The reference was multiplied by {factor:.3g} (gray scale of the images, by evidence)."


def regressed_amplitude(model: ParticleModel, volume: Tensor, stack: ParticleStack) -> float:
    """The factor on a volume's density that fits the images best, at the poses of their file.

    Least squares under the model's noise, over some images, at conformation 0.

    Raises
    ------
    InputError
        If it is not positive: the volume does not show what the images do.
    """
    assert stack.rotation is not None and stack.shift is not None
    like, size = model.noise.sigma2, model.volume.conformation_size
    cross = power = 0.0
    for index in torch.arange(len(stack))[:: max(1, len(stack) // _REGRESSED)].split(_IMAGES):
        batch = stack.batch(index, model.band, like.dtype, like.device)
        poses = stack.rotation[index].to(like), stack.shift[index].to(like)
        state = like.new_zeros(len(index), size) if size else None
        mean = model.likelihood(volume, *poses, batch, state).mean
        weight = 1 / like[batch.group][:, model.band.shell.to(like.device)]
        cross += float(((mean.conj() * batch.image).real * weight).sum())
        power += float((mean.abs().square() * weight).sum())
    require(
        cross > 0,
        "reference",
        expected="a molecule whose projections look like the images",
        got="ones that do not correlate with them at the poses of the file",
        remedy="Superpose it on a map made with these poses; --invert if particles are dark.",
    )
    return cross / power
