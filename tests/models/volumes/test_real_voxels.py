"""Real-space projections held against SciPy's interpolation."""

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from cryoprob.checks import InputError
from cryoprob.geometry.rotations import random_rotations
from cryoprob.models.volumes.real_voxels import RealVoxels

F64 = torch.float64


def test_projection_is_scipys(generator):
    box = 8
    volume, density = RealVoxels(box, dtype=F64), torch.zeros(box, box, box, dtype=F64)
    inner = slice(1, -1)  # at the edge, SciPy and torch fade to zero in other ways
    density[inner, inner, inner] = torch.rand(6, 6, 6, generator=generator, dtype=F64)
    turns = random_rotations(5, generator, F64)
    found = volume.projection(density, turns)
    k = np.arange(box) - box // 2
    lab = np.stack(np.meshgrid(k, k, k, indexing="ij")[::-1], -1).reshape(-1, 3)
    for image, turn in zip(found, turns.numpy(), strict=True):
        places = (lab @ turn)[:, ::-1].T + box // 2  # R^T r as z, y, x
        wanted = map_coordinates(density.numpy(), places, order=1, mode="constant", cval=0.0)
        wanted = torch.from_numpy(wanted.reshape(box, box, box).sum(0))
        torch.testing.assert_close(image, wanted, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(volume.band.pack(found), volume.slices(density, turns))


def test_prior_is_white():
    law = RealVoxels(4, 2.0, dtype=F64).prior()
    value = torch.ones(4, 4, 4, dtype=F64)
    zero = torch.zeros((), dtype=F64)
    wanted = torch.distributions.Normal(zero, 2.0).log_prob(value).sum()
    assert float(law.log_prob(value)) == pytest.approx(float(wanted), rel=1e-12)


def test_start(generator):
    volume = RealVoxels(12, 2.0)
    found = volume.start(generator)
    assert found.shape == (12, 12, 12) and found.dtype == torch.float32 and volume.is_map
    assert float(found[0].abs().max()) == 0 and 0 < float(found.std()) < volume.unit == 2


def test_bad_input():
    with pytest.raises(InputError, match="positive number"):
        RealVoxels(8, 0.0)
    with pytest.raises(InputError, match="at most 3"):
        RealVoxels(8, radius=4)
