"""Amplitude and noise factors per image are found again."""

import torch

from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.e_step import e_step
from cryoprob.inference.guide import Guide
from cryoprob.inference.m_step import update_contrast
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.point import Point
from cryoprob.models.contrast import Contrast
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.particles import ParticleStack
from cryoprob.phantoms import blobs


def test_scale_and_noise_factor_are_found(generator):
    """32^2 pixels tell a noise factor to 1 / sqrt(2 * 1024) = 2 %, five steps of EM the amplitude."""
    box, count = 32, 40
    volume = blobs(box, 5.0, generator)
    truth = Contrast(count)
    truth.scale.uniform_(0.7, 1.4, generator=generator)
    truth.spread.uniform_(0.7, 1.4, generator=generator)
    parts = FourierVoxels(box), UniformRotation(), GaussianShift(5.0)
    model = ParticleModel(*parts, RadialNoise(torch.ones(1, box // 2 + 2)), 5.0)
    rotation = random_rotations(count, generator)
    energy = (model.volume.slices(volume, rotation).abs() ** 2).sum(1).mean()
    volume = volume * (4000 / energy).sqrt()
    clean = model.volume.band.unpack(model.volume.slices(volume, rotation))
    noise = torch.randn(count, box, box, generator=generator)
    images = truth.scale[:, None, None] * clean + truth.spread[:, None, None] * noise
    stack = ParticleStack.from_arrays(images, 5.0)
    model.contrast = Contrast(count)
    guide = Guide(
        rotation=Known(rotation), shift=Known(torch.zeros(count, 2)), volume=Point(volume)
    )
    for _ in range(5):
        update_contrast(model, e_step(model, guide, stack))
    found = model.contrast
    for one, other in ((found.scale, truth.scale), (found.spread, truth.spread)):
        ratio = one / other
        # five standard deviations of 2 %, and of 1 / sqrt(energy) = 1.6 % over the least amplitude
        assert (ratio / ratio.median() - 1).abs().max() < 0.15
