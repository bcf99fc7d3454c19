"""Insertion is the adjoint of slicing, and the stencil is the normal operator, to rounding."""

import pytest
import torch
from problems import PIXEL_SIZE, some_optics
from scipy import stats

from cryoprob.fourier.bands import full_band
from cryoprob.fourier.normal import Insertion
from cryoprob.fourier.slices import Slicer
from cryoprob.geometry.rotations import random_rotations
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.optics import ctf

F64 = torch.float64
KERNELS = ["linear", "nearest"]


class Imaging:
    """H = CTF . shift . slice . FFT . pad . gridding correction, for n images, float64."""

    def __init__(self, generator, *, box=8, n=12, radius=None, **options):
        band = full_band(box).prefix(box // 2 - 1 if radius is None else radius)
        self.slicer = Slicer(band, dtype=F64, **options)
        self.rotations = random_rotations(n, generator, F64)
        shift = 8 * torch.rand(n, 2, generator=generator, dtype=F64) - 4
        self.factor = shift_phase(band, shift, PIXEL_SIZE)
        self.factor *= ctf(some_optics(n, generator), band.kx, band.ky, PIXEL_SIZE, box)
        self.volume = torch.randn(box, box, box, generator=generator, dtype=F64)
        self.other = torch.randn(box, box, box, generator=generator, dtype=F64)
        self.images = torch.randn(n, len(band), 2, generator=generator, dtype=F64)
        self.images = torch.view_as_complex(self.images)
        self.weight = torch.rand(n, len(band), generator=generator, dtype=F64)

    def forward(self, volume):
        return self.factor * self.slicer.slices(volume, self.rotations)

    def equations(self, order=slice(None)):
        """Of images and their weights, as the E-step inserts them: without the shift."""
        return self.insertion(order).equations()

    def insertion(self, order=slice(None)):
        insertion = Insertion(self.slicer)
        numerator = (self.weight * self.factor.conj() * self.images).resolve_conj()
        transfer = self.weight * self.factor.abs() ** 2
        insertion.add(numerator[order], transfer[order], self.rotations[order])
        return insertion


def inner(a, b):
    """Real inner product of packed coefficients: real and imaginary parts are numbers each."""
    return float((torch.view_as_real(a) * torch.view_as_real(b)).sum())


@pytest.mark.parametrize("interpolation", KERNELS)
@pytest.mark.parametrize(("box", "pad", "radius"), [(8, 2, 3), (8, 1, 3), (8, 3, 2), (16, 2, 5)])
def test_adjoint(interpolation, box, pad, radius, generator):
    h = Imaging(generator, box=box, pad=pad, radius=radius, interpolation=interpolation)
    left = inner(h.forward(h.volume), h.weight * h.images)
    right = float((h.volume * h.equations().right_side()).sum())
    # sums of 10^4 products in float64
    assert left == pytest.approx(right, rel=1e-10)


def test_transform_and_its_adjoint(generator):
    slicer = Imaging(generator).slicer
    volume = torch.randn(8, 8, 8, generator=generator, dtype=F64)
    grid = torch.randn(*slicer.grid_shape, 2, generator=generator, dtype=F64)
    grid = torch.view_as_complex(grid)
    back = slicer.adjoint_transform(grid)
    assert inner(slicer.transform(volume), grid) == pytest.approx(float((volume * back).sum()))


@pytest.mark.parametrize("interpolation", KERNELS)
def test_normal_operator(interpolation, generator):
    h = Imaging(generator, interpolation=interpolation)
    equations = h.equations()
    for volume in (h.volume, h.other):
        energy = float((h.weight * h.forward(volume).abs() ** 2).sum())
        assert float((volume * equations.apply(volume)).sum()) == pytest.approx(energy, rel=1e-10)
    # and with it, by polarization, all of <V, A U>
    mixed = inner(h.forward(h.volume), h.weight * h.forward(h.other))
    assert float((h.volume * equations.apply(h.other)).sum()) == pytest.approx(mixed, rel=1e-10)
    back = float((h.other * equations.apply(h.volume)).sum())
    assert back == pytest.approx(mixed, rel=1e-10)


def test_against_dense_matrices(generator):
    # 6^3 columns of H, one voxel each
    h = Imaging(generator, box=6, n=5)
    voxels = torch.eye(6**3, dtype=F64).reshape(-1, 6, 6, 6)
    matrix = torch.stack([torch.view_as_real(h.forward(v)).flatten() for v in voxels], 1)
    weight = h.weight[..., None].expand(*h.weight.shape, 2).flatten()
    normal = matrix.T @ (weight[:, None] * matrix)
    equations = h.equations()
    found = torch.stack([equations.apply(v).flatten() for v in voxels], 1)
    tight = {"rtol": 1e-10, "atol": 1e-12}
    torch.testing.assert_close(found, normal, **tight)
    right = matrix.T @ (weight * torch.view_as_real(h.images).flatten())
    torch.testing.assert_close(equations.right_side().flatten(), right, **tight)
    assert float(torch.linalg.eigvalsh(found).min()) > -1e-12


@pytest.mark.parametrize("interpolation", KERNELS)
def test_autograd_gives_the_same_adjoint(interpolation, generator):
    h = Imaging(generator, interpolation=interpolation)
    volume = h.volume.requires_grad_()
    residual = h.images - h.forward(volume)
    (-(h.weight * residual.abs() ** 2).sum() / 2).backward()
    equations = h.equations()
    wanted = equations.right_side() - equations.apply(volume.detach())
    torch.testing.assert_close(volume.grad, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("interpolation", KERNELS)
def test_order_threads_and_chunks_change_nothing(interpolation, monkeypatch, generator):
    h = Imaging(generator, n=23, interpolation=interpolation)
    one = h.equations()
    orders = [torch.arange(22, -1, -1), torch.randperm(23, generator=generator)]
    for threads, chunk, order in [(1, 64, orders[0]), (3, 2, orders[1]), (4, 5, slice(None))]:
        monkeypatch.setattr(torch, "get_num_threads", lambda n=threads: n)
        monkeypatch.setattr("cryoprob.fourier.normal._CHUNK", chunk)
        other = h.equations(order)
        # the same up to 40 numbers in another order
        torch.testing.assert_close(other.right, one.right, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other.stencil, one.stencil, rtol=1e-12, atol=1e-12)


def test_insertions_add_up(generator):
    h = Imaging(generator)
    insertion = Insertion(h.slicer)
    numerator = (h.weight * h.factor.conj() * h.images).resolve_conj()
    transfer = h.weight * h.factor.abs() ** 2
    for part in (slice(0, 5), slice(5, 12)):
        insertion.add(numerator[part], transfer[part], h.rotations[part])
    both = insertion.equations()
    torch.testing.assert_close(both.right, h.equations().right, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(both.stencil, h.equations().stencil, rtol=1e-12, atol=1e-12)


def test_diagonal_is_the_weight_that_arrives(generator):
    # weights of interpolation add up to one, so the row sums add up to all weights inserted,
    # times the squared packing weights
    for interpolation in KERNELS:
        h = Imaging(generator, interpolation=interpolation)
        total = (h.weight * h.factor.abs() ** 2 * h.slicer.band.weight**2).sum()
        assert float(h.equations().diagonal().sum()) == pytest.approx(float(total), rel=1e-10)


def test_single_precision(generator):
    h = Imaging(generator, box=16, n=40)
    wide = h.equations()
    narrow = Insertion(Slicer(h.slicer.band))
    numerator = (h.weight * h.factor.conj() * h.images).resolve_conj()
    transfer = h.weight * h.factor.abs() ** 2
    narrow.add(numerator.to(torch.complex64), transfer.float(), h.rotations.float())
    narrow = narrow.equations()
    # some 100 numbers a cell, at positions right to 1e-6 of a cell
    size = wide.right_side().abs().max()
    assert float((narrow.right_side() - wide.right_side()).abs().max() / size) < 1e-5
    applied = wide.apply(h.volume)
    change = (narrow.apply(h.volume.float()) - applied).abs().max()
    assert float(change / applied.abs().max()) < 1e-5


@pytest.mark.parametrize(("interpolation", "n"), [("linear", 3), ("linear", 60), ("nearest", 12)])
def test_noise_has_the_normal_matrix_as_its_covariance(interpolation, n, generator, false_alarm):
    # few images: cells of one sample, whose covariance has rank 1; many: cells of full rank
    h = Imaging(generator, box=6, n=n, interpolation=interpolation)
    insertion = h.insertion()
    equations, before = insertion.equations(), insertion.noise(2, generator)
    assert before.shape == (2, 6, 6, 6) and not before[0].equal(before[1])
    probes = torch.randn(12, 6, 6, 6, generator=generator, dtype=F64)
    probes[:6] += probes[:6].flip(1, 2, 3).roll((1, 1, 1), (1, 2, 3))  # even
    probes[6:] -= probes[6:].flip(1, 2, 3).roll((1, 1, 1), (1, 2, 3))  # odd
    applied = torch.stack([equations.apply(probe) for probe in probes]).flatten(1)
    root = torch.linalg.cholesky(probes.flatten(1) @ applied.T)
    noise = insertion.noise(1000, generator).flatten(1)
    white = torch.linalg.solve_triangular(root, probes.flatten(1) @ noise.T, upper=False)
    assert stats.kstest(white.flatten().numpy(), "norm").pvalue > false_alarm / 2
    # 144 products of independent normals, each a mean of 1000 of variance 1 or 2
    error = (white @ white.T / 1000 - torch.eye(12)) / (1 + torch.eye(12)).sqrt() * 1000**0.5
    assert float(error.abs().max()) < stats.norm.isf(false_alarm / 4 / 144)
