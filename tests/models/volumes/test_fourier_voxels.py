"""The radial Gaussian prior as a density and as a sampler, and the voxel map's slices."""

import math

import pytest
import torch
from scipy import stats
from torch.distributions import MultivariateNormal

from cryoprob.checks import InputError
from cryoprob.fourier.shells import shell_counts, shell_index_3d, shell_sum
from cryoprob.fourier.transforms import fft3
from cryoprob.geometry.rotations import random_rotations
from cryoprob.models.volumes.fourier_voxels import FourierVoxels, SpectralGaussian

F64 = torch.float64


def spectrum(box):
    return 2.0 / (1 + torch.arange(box // 2 + 2, dtype=F64)) + 0.1


def dense(tau2, box):
    """Covariance of all D^3 voxels, a sum over all frequencies."""
    k = torch.arange(box, dtype=F64) - box // 2
    grid = torch.stack(torch.meshgrid(k, k, k, indexing="ij")).flatten(1)
    wave = torch.exp(-2j * math.pi * (grid.T @ grid) / box) / box**1.5
    variance = tau2[shell_index_3d(box).flatten()]
    return (wave.conj().T @ (variance[:, None] * wave)).real


def test_density_is_that_of_all_voxels(generator):
    box = 4
    tau2 = spectrum(box)
    maps = torch.randn(3, box, box, box, generator=generator, dtype=F64)
    wanted = MultivariateNormal(torch.zeros(box**3, dtype=F64), dense(tau2, box))
    found = SpectralGaussian(tau2, box).log_prob(maps)
    torch.testing.assert_close(found, wanted.log_prob(maps.flatten(1)), rtol=1e-10, atol=1e-10)


def test_draws_follow_the_density(false_alarm):
    box, tau2 = 8, spectrum(8)
    prior = SpectralGaussian(tau2, box)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        maps = prior.sample((2000,))
    assert maps.shape == (2000, box, box, box)
    top = float(prior.log_prob(torch.zeros(box, box, box, dtype=F64)))
    square = 2 * (top - prior.log_prob(maps))
    assert stats.kstest(square.numpy(), stats.chi2(box**3).cdf).pvalue > false_alarm
    power = shell_sum(fft3(maps).abs() ** 2).sum(0) / tau2
    for value, count in zip(power.tolist(), shell_counts(box).tolist(), strict=True):
        tail = stats.chi2(count * len(maps)).sf(value)
        assert false_alarm / 12 < tail < 1 - false_alarm / 12


def test_gradient_of_the_prior_is_the_m_steps_precision(generator):
    # d log p / d V = - V / tau2, in Fourier space
    box = 4
    volume = torch.randn(box, box, box, generator=generator, dtype=F64).requires_grad_()
    SpectralGaussian(spectrum(box), box).log_prob(volume).backward()
    precision = torch.linalg.inv(dense(spectrum(box), box))
    wanted = -(precision @ volume.detach().flatten()).reshape(box, box, box)
    torch.testing.assert_close(volume.grad, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    ("maps", "poses"),
    [
        ((3,), (3,)),
        ((2, 1), (5,)),
        ((2, 3), ()),
        ((2, 1), (4, 1, 3)),
        ((1, 3), (2, 1)),
        ((), (2, 3)),
    ],
)
def test_slices_of_many_maps_are_a_broadcast(maps, poses, generator):
    voxels = FourierVoxels(6, dtype=F64)
    volume = torch.randn(*maps, 6, 6, 6, generator=generator, dtype=F64)
    number = torch.Size(poses).numel()
    rotation = random_rotations(number, generator, F64).reshape(*poses, 3, 3)
    found = voxels.slices(volume, rotation)
    shape = torch.broadcast_shapes(maps, poses)
    assert found.shape == (*shape, len(voxels.band))
    volumes = volume.expand(*shape, 6, 6, 6).reshape(-1, 6, 6, 6)
    rotations = rotation.expand(*shape, 3, 3).reshape(-1, 3, 3)
    wanted = [voxels.slices(v, r[None])[0] for v, r in zip(volumes, rotations, strict=True)]
    torch.testing.assert_close(found.reshape(-1, len(voxels.band)), torch.stack(wanted))


def test_a_batch_of_priors(generator):
    prior = SpectralGaussian(spectrum(6), 6)
    many = prior.expand((4, 1))
    assert many.batch_shape == (4, 1) and many.event_shape == (6, 6, 6)
    volume = torch.randn(6, 6, 6, generator=generator, dtype=F64)
    density = many.log_prob(volume)
    assert density.shape == (4, 1) and (density == prior.log_prob(volume)).all()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draws = many.sample((2,))
    assert draws.shape == (2, 4, 1, 6, 6, 6)
    assert len(set(draws.abs().sum((-1, -2, -3)).flatten().tolist())) == 8


def test_slices_of_a_smaller_band(generator):
    volume = torch.randn(8, 8, 8, generator=generator, dtype=F64)
    voxels = FourierVoxels(8, dtype=F64)
    rotation = random_rotations(4, generator, F64)
    before = voxels.slices(volume, rotation)
    assert voxels.band.radius == 3 and before.shape == (4, len(voxels.band))
    voxels.set_band(2)
    after = voxels.slices(volume, rotation)
    assert after.shape[1] == len(voxels.band) < before.shape[1]
    torch.testing.assert_close(after, before[:, : len(voxels.band)])
    assert voxels.density(volume) is volume and voxels.linear_in_coefficients


def test_bad_input():
    with pytest.raises(InputError, match="positive variances"):
        FourierVoxels(8, -1.0)
    with pytest.raises(InputError, match="at most 3"):
        FourierVoxels(8, radius=4)
