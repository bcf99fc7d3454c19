"""Variances of modes and the diagonal of the normal matrix, held against whole matrices."""

import pytest
import torch
from dense_maps import columns, covariance, diagonal, some_variance, wave

from cryoprob.fourier.bands import full_band
from cryoprob.fourier.gaussian_map import GaussianMap, mean_of, power_of, variance_of
from cryoprob.fourier.modes import opposite
from cryoprob.fourier.normal import Insertion
from cryoprob.fourier.slices import Slicer
from cryoprob.fourier.transforms import fft3
from cryoprob.geometry.rotations import random_rotations

F64 = torch.float64
CASES = [
    ("linear", 6, 2, 2),
    ("linear", 8, 2, 3),
    ("linear", 6, 1, 2),
    ("linear", 6, 3, 1),
    ("nearest", 6, 2, 2),
    ("nearest", 6, 1, 2),
]
TIGHT = {"rtol": 1e-11, "atol": 1e-11}  # sums of some 10^3 numbers in float64


def setup(interpolation, box, pad, radius, generator):
    """A slicer, some rotations (the identity among them), and variances of all modes."""
    slicer = Slicer(full_band(box).prefix(radius), interpolation, pad, dtype=F64)
    rotations = random_rotations(4, generator, F64)
    rotations[0] = torch.eye(3)  # samples on grid points and on the plane x = 0
    return slicer, rotations, some_variance(box, generator)


def dense_slices(slicer, rotations):
    """Every coefficient as a row over all voxels, [Q, M, D^3]."""
    return columns(lambda v: slicer.slices(v, rotations), slicer.band.box)


@pytest.mark.parametrize("case", CASES)
def test_the_variance_of_slices(case, generator):
    slicer, rotations, variance = setup(*case, generator)
    rows = dense_slices(slicer, rotations)
    spread = covariance(variance).to(rows)
    wanted = torch.einsum("qmi,ij,qmj->qm", rows, spread, rows.conj()).real
    law = GaussianMap(torch.zeros_like(variance), variance)
    torch.testing.assert_close(law.slice_variance(slicer, rotations), wanted, **TIGHT)
    shaped = law.slice_variance(slicer, rotations.view(2, 2, 3, 3))
    assert shaped.shape == (2, 2, len(slicer.band)) and shaped.flatten(0, 1).equal(
        law.slice_variance(slicer, rotations)
    )


@pytest.mark.parametrize("case", CASES)
def test_the_diagonal_of_the_normal_matrix(case, generator):
    slicer, rotations, variance = setup(*case, generator)
    rows = dense_slices(slicer, rotations)
    weight = torch.rand(4, len(slicer.band), generator=generator, dtype=F64)
    normal = torch.einsum("qmi,qm,qmj->ij", rows.conj(), weight.to(rows), rows).real
    insertion = Insertion(slicer)
    insertion.add(torch.zeros_like(rows[..., 0]), weight, rotations)
    found = insertion.equations().mode_weights()
    torch.testing.assert_close(found, diagonal(normal), **TIGHT)
    # and so the one is the transpose of the other
    law = GaussianMap(torch.zeros_like(variance), variance)
    power = (weight * law.slice_variance(slicer, rotations)).sum()
    torch.testing.assert_close((found * variance).sum(), power, **TIGHT)


def test_a_smaller_band_has_a_table_of_its_own(generator):
    slicer, rotations, variance = setup("linear", 8, 2, 3, generator)
    small = Slicer(full_band(8).prefix(2), dtype=F64)
    law = GaussianMap(torch.zeros_like(variance), variance)
    wide = law.slice_variance(slicer, rotations)
    narrow = law.slice_variance(small, rotations)
    torch.testing.assert_close(narrow, wide[:, : len(small.band)], **TIGHT)


def test_gradients_are_the_weights(generator):
    slicer, rotations, variance = setup("linear", 6, 2, 2, generator)
    weight = torch.rand(4, len(slicer.band), generator=generator, dtype=F64)
    free = variance.clone().requires_grad_()
    law = GaussianMap(torch.zeros_like(variance), free)
    (weight * law.slice_variance(slicer, rotations)).sum().backward()
    insertion = Insertion(slicer)
    insertion.add(torch.zeros_like(weight).to(torch.complex128), weight, rotations)
    both = (free.grad + opposite(free.grad)) / 2
    torch.testing.assert_close(both, insertion.equations().mode_weights(), **TIGHT)


def test_gradients_in_the_rotation_by_differences(generator):
    slicer, rotations, variance = setup("linear", 6, 2, 2, generator)
    law, rotations = GaussianMap(torch.zeros_like(variance), variance), rotations[1:2]
    angle = torch.tensor([0.3, -0.2, 0.5], dtype=F64)
    skew = torch.linalg.cross(torch.eye(3, dtype=F64), angle.expand(3, 3))

    def total(step):
        turned = torch.linalg.matrix_exp(step * skew) @ rotations
        return law.slice_variance(slicer, turned).sum()

    step = torch.zeros((), dtype=F64, requires_grad=True)
    total(step).backward()
    small = torch.tensor(1e-6, dtype=F64)
    # central differences of a piecewise smooth function, none of whose kinks lies that near
    slope = (total(small) - total(-small)) / (2 * small)
    torch.testing.assert_close(step.grad, slope, rtol=1e-6, atol=1e-8)


def test_a_map_that_is_known_has_no_variance(generator):
    slicer, rotations, variance = setup("linear", 6, 2, 2, generator)
    volume = torch.randn(6, 6, 6, generator=generator, dtype=F64)
    slices = slicer.slices(volume, rotations)
    assert variance_of(volume, slicer, rotations) is None and mean_of(volume) is volume
    known = power_of(volume, slicer, slices, rotations)
    assert known.equal(slices.abs().square())
    law = GaussianMap(volume, torch.zeros_like(variance))
    assert mean_of(law) is volume and power_of(law, slicer, slices, rotations).equal(known)


def test_opposite_frequencies(generator):
    volume = torch.randn(6, 6, 6, generator=generator, dtype=F64)
    torch.testing.assert_close(opposite(fft3(volume)), fft3(volume).conj(), **TIGHT)
    assert opposite(opposite(volume)).equal(volume)
    modes = wave(4)
    torch.testing.assert_close(modes @ modes.conj().T, torch.eye(64).to(modes), **TIGHT)


def test_single_precision(generator):
    slicer, rotations, variance = setup("linear", 8, 2, 3, generator)
    narrow = Slicer(slicer.band)
    law = GaussianMap(torch.zeros(8, 8, 8), variance.float())
    wide = GaussianMap(torch.zeros_like(variance), variance).slice_variance(slicer, rotations)
    found = law.slice_variance(narrow, rotations.float())
    # 27 products, whose places in a cell are right to some 1e-6
    torch.testing.assert_close(found.double(), wide, rtol=2e-5, atol=0)
