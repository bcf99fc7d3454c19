"""Small simulated stacks for the tests of models and inference."""

from dataclasses import dataclass

import torch

from cryoprob.fourier.bands import full_band
from cryoprob.fourier.shells import frequency_3d, low_pass
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.guide import Guide
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.point import Point
from cryoprob.models.contrast import Contrast
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.noise import RadialNoise as PixelNoise
from cryoprob.optics import Optics
from cryoprob.particles import Batch, ParticleStack

PIXEL_SIZE = 5.0
SHIFT_SIGMA = 4.0


@dataclass
class Problem:
    """A stack, the model it was drawn from, and a guide at the true volume."""

    model: ParticleModel
    guide: Guide
    stack: ParticleStack
    volume: torch.Tensor

    @property
    def batch(self) -> Batch:
        """All images, with every number of each."""
        return self.part(torch.arange(len(self.stack)))

    def part(self, index: torch.Tensor) -> Batch:
        """Some images, with every number of each."""
        return self.stack.batch(index, full_band(self.stack.box), dtype=self.volume.dtype)

    def continuous(self) -> "Problem":
        """The same with continuous poses, known in the guide."""
        old, kind = self.model, {"dtype": self.volume.dtype}
        poses = UniformRotation(**kind), GaussianShift(SHIFT_SIGMA, **kind)
        model = ParticleModel(old.volume, *poses, old.noise, old.pixel_size, old.contrast)
        rotation, shift = (
            Known(v.to(self.volume)) for v in (self.stack.rotation, self.stack.shift)
        )
        guide = Guide(rotation=rotation, shift=shift, volume=Point(self.volume))
        return Problem(model, guide, self.stack, self.volume)


def dense_covariance(sigma2, box):
    """Covariance of all D^2 pixels of noise of a spectrum [S], by a sum over all frequencies."""
    k = torch.arange(box, dtype=torch.float64) - box // 2
    y, x = (g.flatten() for g in torch.meshgrid(k, k, indexing="ij"))
    wave = torch.exp(-2j * torch.pi * (torch.outer(x, x) + torch.outer(y, y)) / box) / box
    shell = torch.floor((x**2 + y**2).sqrt() + 0.5).long().clamp(max=box // 2 + 1)
    return (wave.conj().T @ (sigma2.double()[shell][:, None] * wave)).real


def some_map(box, generator):
    """An asymmetric object of soft edge, [D, D, D] float64, with density all over its ball."""
    white = torch.randn(box, box, box, generator=generator, dtype=torch.float64)
    ball = torch.exp(-((frequency_3d(box) / (0.25 * box)) ** 2))  # |voxel|, same grid
    return low_pass(white * ball, 1.0, 3.0, edge_shells=4.0)


def some_optics(n, generator):
    """Defoci that put three zeros of the CTF into a box of 10 A resolution; astigmatism."""
    defocus = 4000 + 4000 * torch.rand(n, generator=generator, dtype=torch.float64)
    angle = 180 * torch.rand(n, generator=generator, dtype=torch.float64)
    return Optics(defocus, defocus + 500, angle, 300.0, 2.7, 0.1)


def some_contrast(n, generator, dtype):
    """Unlike amplitudes and noise factors."""
    contrast = Contrast(n, dtype=dtype)
    scale, spread = torch.rand(2, n, generator=generator, dtype=torch.float64)
    contrast.scale.copy_(0.7 + 0.7 * scale)
    contrast.spread.copy_(0.8 + 0.45 * spread)
    return contrast


def make_problem(
    *,
    box=8,
    n=6,
    order=0,
    step=6.0,
    refine=0,
    groups=2,
    ctf=True,
    contrast=True,
    signal=2.0,
    tau2=0.5,
    dtype=torch.float64,
    seed=7,
    **volume_options,
):
    """A problem on a rotation grid of ``order`` and 5 shifts (``step`` A apart, then refined)."""
    generator = torch.Generator().manual_seed(seed)
    volume = signal * some_map(box, generator)
    sigma2 = 0.3 + torch.rand(groups, box // 2 + 2, generator=generator, dtype=torch.float64)
    factors = some_contrast(n if contrast else 0, generator, dtype)
    model = ParticleModel(
        FourierVoxels(box, tau2, dtype=dtype, **volume_options),
        UniformRotation(dtype=dtype).discretize(order),
        GaussianShift(SHIFT_SIGMA, dtype=dtype).discretize(step, step, refine=refine),
        RadialNoise(sigma2.to(dtype)),
        PIXEL_SIZE,
        factors,
    )
    rotation = random_rotations(n, generator, torch.float64)
    shift = 4 * torch.rand(n, 2, generator=generator, dtype=torch.float64) - 2
    group = torch.arange(n) % groups
    optics = some_optics(n, generator) if ctf else None
    blank = torch.randn(n, box, box, generator=generator, dtype=torch.float64)
    empty = ParticleStack.from_arrays(blank, PIXEL_SIZE, optics, rotation, shift, group)
    images = _images(model, empty, volume, generator)
    stack = ParticleStack.from_arrays(images, PIXEL_SIZE, optics, rotation, shift, group)
    guide = Guide(rotation=Exact(), shift=Exact(), volume=Point(volume.to(dtype)))
    return Problem(model, guide, stack, volume.to(dtype))


def _images(model, stack, volume, generator):
    """Noisy real images at the stack's poses, [N, D, D] float64."""
    slicer = FourierVoxels(stack.box, dtype=torch.float64).slicer
    clean = slicer.slices(volume, stack.rotation)
    clean = clean * shift_phase(slicer.band, stack.shift, PIXEL_SIZE)
    clean = clean * stack.batch(torch.arange(len(stack)), slicer.band, torch.float64).ctf
    scale, spread = (v.double()[:, None, None] for v in model.contrast(torch.arange(len(stack))))
    noise = PixelNoise(model.noise.sigma2.double()[stack.group], stack.box)
    return scale * slicer.band.unpack(clean) + spread * noise.sample(generator=generator)
