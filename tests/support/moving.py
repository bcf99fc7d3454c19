"""Small simulated stacks of molecules that move along linear modes, at known poses."""

from dataclasses import dataclass, replace

import torch
from problems import PIXEL_SIZE, SHIFT_SIGMA, some_optics

from cryoprob.fourier.bands import full_band
from cryoprob.fourier.shells import frequency_3d, low_pass
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.linear_modes_em import ModesState
from cryoprob.inference.treatments.conditional_gaussian import ConditionalGaussian
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.point import Point
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.volumes.linear_modes import LinearModes
from cryoprob.optics import ctf
from cryoprob.particles import ParticleStack

F64 = torch.float64


@dataclass
class Moving:
    """Images of true components [1 + K, D, D, D] at true z [N, K]; a model of like size."""

    model: ParticleModel
    stack: ParticleStack
    truth: torch.Tensor
    z: torch.Tensor

    def guide(self, coefficients=None):
        """Known poses, exact z, and a volume (default zero)."""
        like = self.model.noise.sigma2
        start = torch.zeros_like(self.truth) if coefficients is None else coefficients
        rotation, shift = (Known(v.to(like)) for v in (self.stack.rotation, self.stack.shift))
        return Guide(
            rotation=rotation,
            shift=shift,
            volume=Point(start.to(like)),
            conformation=ConditionalGaussian(),
        )

    def state(self, coefficients=None):
        """A fit of all images that has not begun."""
        index = torch.arange(len(self.stack))
        return ModesState(Half(self.model, self.guide(coefficients), index))


def smooth_maps(count, box, generator, resolution=4.0):
    """Smooth noise in a ball, of norm 1, [count, D, D, D] float64."""
    white = torch.randn(count, box, box, box, generator=generator, dtype=F64)
    ball = torch.exp(-((frequency_3d(box) / (0.25 * box)) ** 4))  # |voxel|, same grid
    found = torch.stack([low_pass(one * ball, 1.0, resolution) for one in white])
    return found / found.flatten(1).norm(dim=1)[:, None, None, None]


def moving(
    *,
    box=8,
    n=30,
    values=(6.0, 3.0),
    mean=10.0,
    snr=None,
    with_ctf=True,
    blur=1.0,
    groups=1,
    seed=5,
    dtype=F64,
    resolution=4.0,
    scale=None,
    tau2=1.0,
    mode_tau2=0.1,
    **options,
):
    """Images of ``mean + sum z_k V_k`` with orthogonal V_k of norms ``values``, z normal.

    Noise is white of variance 1; with ``snr`` the maps are scaled to a mean variance of the
    clean images of ``snr``, and the truth says so.
    """
    generator = torch.Generator().manual_seed(seed)
    parts = smooth_maps(1 + len(values), box, generator, resolution)
    _, _, axes = torch.linalg.svd(parts[1:].flatten(1), full_matrices=False)
    parts[1:] = axes.reshape(-1, box, box, box)
    truth = parts * torch.tensor([mean, *values], dtype=F64)[:, None, None, None]
    z = torch.randn(n, len(values), generator=generator, dtype=F64)
    rotation = random_rotations(n, generator, F64)
    shift = 4 * torch.rand(n, 2, generator=generator, dtype=F64) - 2
    optics = some_optics(n, generator) if with_ctf else None
    if optics is not None:
        optics = replace(
            optics, **{k: getattr(optics, k) * blur for k in ("defocus_u", "defocus_v")}
        )
    group = torch.arange(n) % groups
    blank = torch.randn(n, box, box, generator=generator, dtype=F64)
    empty = ParticleStack.from_arrays(blank, PIXEL_SIZE, optics, rotation, shift, group)
    clean = clean_images(truth, z, empty)
    if snr is not None:
        factor = (snr / clean.var((1, 2)).mean()).sqrt()
        clean, truth = clean * factor, truth * factor
    images = clean + blank
    stack = ParticleStack.from_arrays(images, PIXEL_SIZE, optics, rotation, shift, group)
    kind = {"dtype": dtype}
    scale = torch.ones(len(values)) if scale is None else scale
    model = ParticleModel(
        LinearModes(box, len(values), tau2, mode_tau2, **kind, **options),
        UniformRotation(**kind),
        GaussianShift(SHIFT_SIGMA, **kind),
        RadialNoise(torch.ones(groups, box // 2 + 2, **kind)),
        PIXEL_SIZE,
        conformation=GaussianConformation(scale.to(dtype)),
    )
    return Moving(model, stack, truth, z)


def clean_images(truth, z, stack):
    """Noiseless images [N, D, D] at the stack's poses."""
    volume = LinearModes(stack.box, z.shape[1], dtype=F64)
    clean = volume.slices(truth, stack.rotation, z)
    clean = clean * shift_phase(volume.band, stack.shift, stack.pixel_size)
    clean = clean * stack.batch(torch.arange(len(stack)), volume.band, F64).ctf
    return full_band(stack.box).prefix(volume.band.radius).unpack(clean)


def principal_angles(found, truth):
    """Degrees between the spans of two sets of modes [K, D, D, D], largest last."""
    bases = [torch.linalg.qr(v.double().flatten(1).T)[0] for v in (found, truth)]
    cosines = torch.linalg.svdvals(bases[0].T @ bases[1]).clamp(max=1)
    return torch.rad2deg(torch.arccos(cosines))


def pixel_components(problem, coefficients):
    """Noiseless real pixels of every component of all images, [1 + K, N, D^2], plane by plane."""
    stack, box = problem.stack, problem.stack.box
    slices = problem.model.volume.component_slices(coefficients, stack.rotation)
    plane = torch.fft.fftfreq(box, 1 / box).double()
    ky, kx = torch.meshgrid(plane, plane, indexing="ij")
    transfer = ctf(stack.optics, kx.flatten(), ky.flatten(), PIXEL_SIZE, box)
    angle = kx * stack.shift[:, 0, None, None] + ky * stack.shift[:, 1, None, None]
    operator = transfer.reshape(-1, box, box) * torch.exp(
        -2j * torch.pi * angle / (box * PIXEL_SIZE)
    )
    images = problem.model.band.unpack(slices)
    clean = torch.fft.ifft2(torch.fft.fft2(images) * operator).real
    scale, _ = problem.model.contrast(torch.arange(len(stack)))
    return (clean * scale[:, None, None]).flatten(2)
