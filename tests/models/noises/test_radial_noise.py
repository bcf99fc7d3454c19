"""A noise spectrum per optics group, as a module."""

import pytest
import torch

from cryoprob.checks import InputError
from cryoprob.models.contrast import Contrast
from cryoprob.models.noises.radial_noise import RadialNoise


def test_spectrum_of_each_image(generator):
    sigma2 = 0.1 + torch.rand(3, 6, generator=generator)
    noise = RadialNoise(sigma2)
    group = torch.tensor([2, 0, 2])
    assert noise(group).equal(sigma2[group])
    assert RadialNoise(sigma2[0])(torch.zeros(4, dtype=torch.long)).shape == (4, 6)
    noise.sigma2.mul_(2)
    assert not noise.sigma2.equal(sigma2)  # a copy


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_variance(bad):
    sigma2 = torch.ones(2, 6)
    sigma2[1, 3] = bad
    with pytest.raises(InputError, match="1 other values"):
        RadialNoise(sigma2)


def test_contrast_is_one_until_it_is_estimated():
    index = torch.tensor([4, 1])
    scale, spread = Contrast(dtype=torch.float64)(index)
    assert scale.equal(torch.ones(2).double()) and spread.equal(scale)
    contrast = Contrast(6)
    contrast.scale[4], contrast.spread[1] = 1.5, 0.5
    scale, spread = contrast(index)
    assert scale.tolist() == [1.5, 1.0] and spread.tolist() == [1.0, 0.5]
