"""Slow and obvious: slices by sums over voxels, evidence by dense Gaussians of all pixels."""

from math import log, pi

import torch
from problems import PIXEL_SIZE, SHIFT_SIGMA, dense_covariance
from torch.distributions import MultivariateNormal

from cryoprob.fourier.bands import full_band
from cryoprob.optics import ctf

F64 = torch.float64


def direct_slices(volume, rotations, band):
    """Slices by the sum over voxels of V(r) exp(-2 pi i (R^T k) . r / D) / D, packed."""
    box = band.box
    place = volume.nonzero()
    where = (place - box // 2).flip(1).double()  # (x, y, z)
    plane = torch.stack([band.kx, band.ky, torch.zeros_like(band.kx)], 1).double()
    angle = -2 * pi / box * (plane @ rotations) @ where.T
    density = volume[tuple(place.T)]
    total = torch.complex(angle.cos() @ density, angle.sin() @ density)
    return total * band.weight / box


def dense_log_density(problem, rotation, shift):
    """Log density of the real pixels of every image at a pose each, [N], by full covariances."""
    model, stack, box = problem.model, problem.stack, problem.stack.box
    slices = model.volume.slices(problem.volume, rotation)
    plane = torch.fft.fftfreq(box, 1 / box).double()
    ky, kx = torch.meshgrid(plane, plane, indexing="ij")
    transfer = torch.ones(len(stack), box, box, dtype=F64)
    if stack.optics is not None:
        transfer = ctf(stack.optics, kx.flatten(), ky.flatten(), PIXEL_SIZE, box).reshape(
            -1, box, box
        )
    angle = kx * shift[:, 0, None, None] + ky * shift[:, 1, None, None]
    operator = transfer * torch.exp(-2j * torch.pi * angle / (box * PIXEL_SIZE))
    clean = torch.fft.ifft2(torch.fft.fft2(model.band.unpack(slices)) * operator).real
    scale, spread = model.contrast(torch.arange(len(stack)))
    mean = scale[:, None, None] * clean
    covariance = torch.stack([dense_covariance(v, box) for v in model.noise(stack.group)])
    law = MultivariateNormal(mean.flatten(1), covariance * spread[:, None, None] ** 2)
    pixels = stack.batch(torch.arange(len(stack)), full_band(box), F64).image
    return law.log_prob(full_band(box).unpack(pixels).flatten(1))


class BruteForce:
    """Every image at every pose by a full covariance of its pixels, in float64 [N, Q, T].

    Slices are those of the model (tested apart). The rest shares nothing with it: the pose and the
    CTF act on whole planes, one pose at a time, and the pixels are real.
    """

    def __init__(self, problem):
        model, stack = problem.model, problem.stack
        box, self.count = stack.box, len(stack)
        index = torch.arange(self.count)
        full = full_band(box)
        self.pixels = full.unpack(stack.batch(index, full, F64).image)
        self.rotations = model.rotation.matrices().double()
        self.shifts = model.shift.points().double()
        weight = torch.exp(-self.shifts.square().sum(1) / 2 / SHIFT_SIGMA**2)
        self.log_prior = (weight / weight.sum()).log() - log(len(self.rotations))
        slices = model.volume.slices(problem.volume, model.rotation.matrices())
        flat = model.band.unpack(slices.to(torch.complex128))
        plane = torch.fft.fftfreq(box, 1 / box).double()
        ky, kx = torch.meshgrid(plane, plane, indexing="ij")
        transfer = torch.ones(self.count, box, box, dtype=F64)
        if stack.optics is not None:
            transfer = ctf(stack.optics, kx.flatten(), ky.flatten(), PIXEL_SIZE, box).view_as(
                transfer
            )
        scale, spread = (v.double() for v in model.contrast(index))
        covariance = torch.stack([dense_covariance(v, box) for v in model.noise(stack.group)])
        self.noise = MultivariateNormal(
            torch.zeros(self.count, box**2, dtype=F64), covariance * spread[:, None, None] ** 2
        )
        spectrum = torch.fft.fft2(flat)
        scores, self.means = [], []
        for shift in self.shifts:
            move = torch.exp(-2j * torch.pi * (kx * shift[0] + ky * shift[1]) / (box * PIXEL_SIZE))
            image = torch.fft.ifft2(spectrum[:, None] * move * transfer).real  # [Q, N, D, D]
            self.means.append(scale[:, None, None] * image)
            scores.append(self.noise.log_prob((self.pixels - self.means[-1]).flatten(2)))
        self.means = torch.stack(self.means, 2)  # [Q, N, T, D, D]
        self.joint = torch.stack(scores, 2).transpose(0, 1) + self.log_prior

    @property
    def evidence(self):
        return self.joint.flatten(1).logsumexp(1)

    @property
    def weights(self):
        return self.joint.flatten(1).softmax(1).view_as(self.joint)

    def poses(self, table):
        """Posterior mean of a table [Q, T, ...] over poses, [N, ...]."""
        return torch.einsum("nqt,qt...->n...", self.weights, table)

    def residual_power(self):
        """Posterior mean of |pixels - mean|^2 in each shell of the whole plane, [N, S]."""
        band = full_band(self.pixels.shape[-1])
        power = torch.zeros(self.count, band.n_shells, dtype=F64)
        for n in range(self.count):
            difference = band.pack(self.pixels[n] - self.means[:, n]).abs().square()
            expected = torch.einsum("qt,qtm->m", self.weights[n], difference)
            power[n].index_add_(0, band.shell, expected)
        return power
