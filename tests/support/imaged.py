"""Simulated stacks whose images have amplitudes and defoci that differ from the given ones."""

from dataclasses import dataclass

import torch
from problems import SHIFT_SIGMA

from cryoprob.fourier.bands import full_band
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.guide import Guide
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.point import Point
from cryoprob.io.mrc_writer import write_stack
from cryoprob.io.tables import new_table, write_particles
from cryoprob.models.gaussian_contrast import GaussianContrast
from cryoprob.models.gaussian_defocus import GaussianDefocus
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.optics import Optics
from cryoprob.particles import ParticleStack
from cryoprob.phantoms import blobs

F64 = torch.float64
PIXEL_A = 3.0
CONTRAST, DEFOCUS_A = 0.2, 300.0
"""Standard deviations of the amplitudes, and of the errors of the defocus."""


@dataclass
class Imaged:
    """Images of a map [D, D, D] at known poses, with the amplitudes and errors [N] of each."""

    model: ParticleModel
    stack: ParticleStack
    volume: torch.Tensor
    contrast: torch.Tensor
    defocus: torch.Tensor

    @property
    def batch(self):
        return self.stack.batch(torch.arange(len(self.stack)), full_band(self.stack.box), F64)

    @property
    def poses(self):
        return self.stack.rotation, self.stack.shift

    def with_sites(self, **priors):
        """The same model with these priors of contrast and defocus alone."""
        return imaged_model(self.stack.box, **priors)

    def guide(self, volume=None, **parts):
        """Known poses, and treatments of the other sites."""
        rotation, shift = (Known(value) for value in self.poses)
        point = Point(self.volume if volume is None else volume)
        return Guide(rotation=rotation, shift=shift, volume=point, **parts)


def imaged_model(box, contrast=None, defocus=None):
    """White noise of variance 1, continuous poses, float64."""
    kind = {"dtype": F64}
    return ParticleModel(
        FourierVoxels(box, **kind),
        UniformRotation(**kind),
        GaussianShift(SHIFT_SIGMA, **kind),
        RadialNoise(torch.ones(1, box // 2 + 2, **kind)),
        PIXEL_A,
        contrast,
        defocus=defocus,
    )


def make_imaged(*, box=16, n=24, power=4e4, seed=11, spread=CONTRAST, error_A=DEFOCUS_A):
    """``power`` is the mean of the noiseless images' |slice|^2 over the noise's variance, summed.

    Underfocus of 1 to 2 um: four to eight zeros of the CTF inside the band, so that amplitude and
    defocus hardly look alike.
    """
    generator = torch.Generator().manual_seed(seed)
    priors = GaussianContrast(spread, F64), GaussianDefocus(error_A, dtype=F64)
    model = imaged_model(box, *priors)
    rotation = random_rotations(n, generator, F64)
    shift = 4 * torch.rand(n, 2, generator=generator, dtype=F64) - 2
    given = 10000 + 10000 * torch.rand(n, generator=generator, dtype=F64)
    optics = Optics(given, given + 400, 180 * torch.rand(n, generator=generator), 300.0, 2.7, 0.1)
    volume = blobs(box, PIXEL_A, generator).double()
    energy = model.volume.slices(volume, rotation).abs().square().sum(1).mean()
    volume = volume * (power / energy).sqrt()
    contrast = 1 + spread * torch.randn(n, generator=generator, dtype=F64)
    defocus = error_A * torch.randn(n, generator=generator, dtype=F64)
    noise = torch.randn(n, box, box, generator=generator, dtype=F64)
    blank = ParticleStack.from_arrays(noise, PIXEL_A, optics, rotation, shift)
    batch = blank.batch(torch.arange(n), full_band(box), F64)
    clean = model.likelihood(volume, rotation, shift, batch, None, contrast, defocus).mean
    images = full_band(box).unpack(clean) + noise
    stack = ParticleStack.from_arrays(images, PIXEL_A, optics, rotation, shift)
    return Imaged(model, stack, volume, contrast, defocus)


def write_imaged(imaged, folder):
    """Its images, and a table with poses and the given (wrong) defoci; the table's path."""
    stack = imaged.stack
    write_stack(folder / "particles.mrcs", stack.images(torch.arange(len(stack))), PIXEL_A)
    optics = {"box": stack.box, "optics": stack.optics}
    table = new_table(folder / "particles.mrcs", len(stack), PIXEL_A, **optics)
    write_particles(folder / "truth.star", table, stack.rotation, stack.shift)
    return folder / "truth.star"
