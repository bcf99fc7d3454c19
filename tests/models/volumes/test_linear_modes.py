"""Linear modes beside the sum of their maps (the rest is in the contract of all volumes)."""

import pytest
import torch
from moving import smooth_maps

from cryoprob.checks import InputError
from cryoprob.fourier.transforms import fft3
from cryoprob.geometry.rotations import random_rotations
from cryoprob.models.volumes.fourier_voxels import FourierVoxels, SpectralGaussian
from cryoprob.models.volumes.linear_modes import LinearModes

F64 = torch.float64


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_slices_are_those_of_the_summed_map(generator, interpolation):
    kind = {"interpolation": interpolation, "dtype": F64, "radius": 3}
    volume, voxels = LinearModes(8, 2, **kind), FourierVoxels(8, **kind)
    parts, z = smooth_maps(3, 8, generator), torch.randn(5, 2, generator=generator, dtype=F64)
    rotation = random_rotations(5, generator, F64)
    found = volume.slices(parts, rotation, z)
    maps = parts[0] + torch.einsum("nk,kzyx->nzyx", z, parts[1:])
    torch.testing.assert_close(found, voxels.slices(maps, rotation))
    torch.testing.assert_close(volume.density(parts, z), maps)


def test_component_slices_are_those_of_each_map(generator):
    volume, voxels = LinearModes(8, 2, dtype=F64), FourierVoxels(8, dtype=F64)
    parts, rotation = smooth_maps(3, 8, generator), random_rotations(4, generator, F64)
    found = volume.component_slices(parts, rotation)
    for one, part in zip(found, parts, strict=True):
        assert one.equal(voxels.slices(part, rotation))


def test_the_prior_is_a_gaussian_of_each_component(generator):
    tau2, mode_tau2 = 0.5 + torch.rand(6, dtype=F64), 0.1 + torch.rand(2, 6, dtype=F64)
    prior = LinearModes(8, 2, tau2, mode_tau2, dtype=F64).prior()
    parts = smooth_maps(3, 8, generator)
    rows = [tau2, *mode_tau2]
    own = [SpectralGaussian(t, 8).log_prob(v) for t, v in zip(rows, parts, strict=True)]
    torch.testing.assert_close(prior.log_prob(parts), sum(own))
    assert (prior.batch_shape, prior.event_shape) == ((), (3, 8, 8, 8))


def test_draws_of_the_prior_have_its_powers():
    torch.manual_seed(0)
    prior = LinearModes(8, 1, 4.0, 0.25, dtype=F64).prior()
    power = (fft3(prior.sample((40,))).abs() ** 2).mean((0, 2, 3, 4))
    # 40 draws of 512 numbers each: 0.01 of the mean is a standard deviation
    wanted = torch.tensor([4.0, 0.25], dtype=F64)
    torch.testing.assert_close(power, wanted, rtol=0.06, atol=0)
    torch.testing.assert_close(prior.variance, wanted[:, None, None, None].expand(2, 8, 8, 8))
    assert not prior.mean.any()


def test_a_conformation_of_the_right_size_is_wanted(generator):
    volume, parts = LinearModes(8, 2), smooth_maps(3, 8, generator).float()
    rotation = torch.eye(3)
    for state in (None, torch.zeros(3)):
        with pytest.raises(InputError, match="conformation"):
            volume.slices(parts, rotation, state)
        with pytest.raises(InputError, match="conformation"):
            volume.density(parts, state)


@pytest.mark.parametrize("options", [{"size": 0}, {"tau2": 0.0}, {"mode_tau2": -1.0}])
def test_impossible_modes_are_refused(options):
    with pytest.raises(InputError):
        LinearModes(**{"box": 8, "size": 2, **options})
