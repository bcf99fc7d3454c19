"""Covariances of slices of maps that are known up to a normal law."""

import pytest
import torch

from cryoprob.fourier.bands import full_band
from cryoprob.fourier.gaussian_map import GaussianMap
from cryoprob.fourier.shells import spread
from cryoprob.fourier.slices import Slicer
from cryoprob.fourier.transforms import fft3, ifft3
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.slice_errors import SliceErrors

F64 = torch.float64
BOX, RADIUS = 8, 2


def jumping(generator):
    """Of three components, a hundred times larger beyond the band: as a prior leaves them."""
    root = 0.1 * torch.randn(BOX // 2 + 2, 3, 3, generator=generator, dtype=F64)
    root[RADIUS + 1 :] *= 10
    return root @ root.mT


def slicer():
    return Slicer(full_band(BOX).prefix(RADIUS), "linear", dtype=F64)


def test_they_are_those_of_slices_of_drawn_maps(generator):
    covariance, rotation = jumping(generator), random_rotations(2, generator, F64)
    errors = SliceErrors.of(slicer(), covariance)(rotation)
    root = spread(torch.linalg.cholesky(covariance).movedim(0, -1), BOX).to(torch.complex128)
    draws = []
    for _ in range(2000):
        white = torch.randn(3, BOX, BOX, BOX, generator=generator, dtype=F64)
        maps = ifft3(torch.einsum("abzyx,bzyx->azyx", root, fft3(white))).real
        slices = torch.stack([slicer().slices(one, rotation) for one in maps])
        draws.append(torch.einsum("anm,bnm->nabm", slices, slices.conj()).real)
    draws = torch.stack(draws)
    error = draws.std(0) / len(draws) ** 0.5
    # some 160 numbers and more, at 1e-3 together
    assert float(((draws.mean(0) - errors) / error).abs().max()) < 5


@pytest.mark.parametrize("pair", [(0, 0), (2, 1)])
def test_they_come_pair_by_pair_and_are_covariances(generator, pair):
    covariance, rotation = jumping(generator), random_rotations(3, generator, F64)
    errors = SliceErrors.of(slicer(), covariance)(rotation)
    a, b = pair
    alone = GaussianMap(torch.zeros(BOX, BOX, BOX, dtype=F64), spread(covariance[:, a, b], BOX))
    torch.testing.assert_close(errors[:, a, b], alone.slice_variance(slicer(), rotation))
    torch.testing.assert_close(errors, errors.transpose(1, 2))
    assert float(torch.linalg.eigvalsh(errors.movedim(-1, 1)).min()) > 0
