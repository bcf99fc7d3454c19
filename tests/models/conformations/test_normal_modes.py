"""Amplitudes of normal modes: equipartition, displacements, and the map to first order."""

import pytest
import torch
from scipy import stats

from cryoprob.checks import InputError
from cryoprob.elastic_network import elastic_hessian, normal_modes
from cryoprob.io.structures import adk
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.conformations.normal_modes import NormalModeAmplitudes
from cryoprob.models.volumes.displacements import LinearDisplacements
from cryoprob.models.volumes.gaussian_mixture import GaussianMixture

F64 = torch.float64
COUNT, RMS = 6, 2.5


@pytest.fixture(scope="module")
def network():
    positions = adk("open").positions
    return positions, *normal_modes(positions, COUNT)


def draws(part, count, seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return part.prior().sample((count,))


def test_every_mode_has_half_a_kt(network, false_alarm):
    """Energies of draws, by the whole Hessian, are kT / 2 times chi-squared of all modes."""
    positions, modes, energies = network
    part = NormalModeAmplitudes(energies, 0.3)
    assert isinstance(part, GaussianConformation) and part.size == COUNT
    z = draws(part, 500)
    moved = LinearDisplacements(modes)(modes.new_zeros(0), z).flatten(1)
    energy = ((moved @ elastic_hessian(positions)) * moved).sum(1) / 2
    law = stats.chi2(COUNT)
    assert stats.kstest((2 * energy / 0.3).numpy(), law.cdf).pvalue > false_alarm


def test_sites_move_as_far_as_the_prior_says(network, false_alarm):
    """Mean squared displacement of each site: ``sum_k kT / eigenvalue_k |mode_k|^2``."""
    _, modes, energies = network
    part = NormalModeAmplitudes.moving(energies, modes.shape[1], RMS)
    n = 4000
    z = draws(part, n)
    squares = LinearDisplacements(modes)(modes.new_zeros(0), z).square().sum(-1)  # [n, sites]
    variance = part.temperature / energies
    wanted = (variance[:, None] * modes.square().sum(-1)).sum(0)
    # a squared displacement is a quadratic form of z of variance 2 |cov|^2
    covariance = torch.einsum("k,kna,knb->nab", variance, modes, modes)
    error = (2 * covariance.square().sum((1, 2)) / n).sqrt()
    away = ((squares.mean(0) - wanted) / error).abs()
    # the largest of all sites
    assert float(away.max()) < stats.norm.isf(false_alarm / (2 * modes.shape[1]))
    assert float(wanted.mean()) ** 0.5 == pytest.approx(RMS)


def test_small_amplitudes_change_the_map_along_its_slope(generator):
    """To first order by ``-sum_j (z . mode_j) . grad G_j``: linear modes of the density."""
    where = 4 * torch.randn(7, 3, generator=generator, dtype=F64)
    modes, energies = normal_modes(where, 2, 30.0)
    assert NormalModeAmplitudes(energies).size == 2
    kind = {"widths": 6.0, "free": (), "dtype": F64}
    volume = GaussianMixture(16, 4.0, where, displacement=LinearDisplacements(modes), **kind)
    none, z = volume.start(generator), torch.tensor([0.7, -0.4], dtype=F64)
    voxel = 4.0 * (torch.arange(16, dtype=F64) - 8)
    grid = torch.stack(torch.meshgrid(voxel, voxel, voxel, indexing="ij")[::-1], -1)
    away = grid[..., None, :] - where
    bump = 64 * torch.exp(-away.square().sum(-1) / 72) / (72 * torch.pi) ** 1.5
    slope = -away / 36 * bump[..., None]
    wanted = -(slope * torch.einsum("k,kna->na", z, modes)).sum((-1, -2))
    step = 1e-4
    change = (volume.density(none, step * z) - volume.density(none, -step * z)) / (2 * step)
    torch.testing.assert_close(change, wanted, rtol=0, atol=1e-7 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: NormalModeAmplitudes(torch.tensor([0.0, 1.0])), "no rigid motions"),
        (lambda: NormalModeAmplitudes(torch.ones(2), 0.0), "A\\^2"),
        (lambda: NormalModeAmplitudes.moving(torch.ones(2), 5, -1.0), "positive number of A"),
        (lambda: NormalModeAmplitudes.moving(torch.tensor([-1.0]), 5, 1.0), "no rigid"),
    ],
)
def test_impossible_amplitudes(call, told):
    with pytest.raises(InputError, match=told):
        call()
