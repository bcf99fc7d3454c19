"""Convergence and scores of draws whose law is known."""

import math

import pytest
import torch
from scipy import stats

from cryoprob.checks import InputError
from cryoprob.fourier.shells import shell_mean
from cryoprob.fourier.transforms import fft3
from cryoprob.inference.chains import Chains, score

F64 = torch.float64


def independent(chains, draws, generator):
    volume = torch.randn(chains, draws, 4, 4, 4, generator=generator, dtype=F64)
    return Chains(volume, -volume.square().sum((-1, -2, -3)) / 2)


def test_independent_draws_have_converged(generator):
    found = independent(4, 200, generator).diagnose()
    assert found.rhat["power"].shape == (4,) and found.rhat["log_joint"].shape == ()
    # of 800 independent draws; ArviZ's estimate of the effective number scatters by some 15 %
    assert found.worst_rhat < 1.02 and found.least_ess > 400


def test_slow_chains_are_known_by_their_effective_number(generator):
    # an autoregression of 0.9 has (1 + 0.9) / (1 - 0.9) = 19 times the variance of its mean
    log_joint = torch.zeros(4, 500, dtype=F64)
    step = math.sqrt(1 - 0.81)
    for t in range(1, 500):
        fresh = torch.randn(4, generator=generator, dtype=F64)
        log_joint[:, t] = 0.9 * log_joint[:, t - 1] + step * fresh
    volume = independent(4, 500, generator).volume
    found = Chains(volume, log_joint).diagnose()
    assert 2000 / 19 / 2 < found.least_ess < 2000 / 19 * 2
    assert found.least_ess == float(found.ess["log_joint"])


def test_chains_apart_are_told(generator):
    chains = independent(2, 100, generator)
    apart = Chains(
        chains.volume * torch.tensor([1.0, 2.0])[:, None, None, None, None], chains.log_joint
    )
    assert apart.diagnose().worst_rhat > 1.5
    assert float(apart.diagnose().rhat["log_joint"]) < 1.05


def test_numbers_do_not_depend_on_the_frame(generator):
    chains = independent(2, 20, generator)
    turned = Chains(chains.volume.roll(1, -1).roll(2, -3), chains.log_joint)
    torch.testing.assert_close(turned.power(), chains.power())
    wanted = shell_mean(fft3(chains.volume[1, 3]).abs() ** 2)
    torch.testing.assert_close(chains.power()[1, 3], wanted)
    numbers = chains.dataset()
    assert numbers["power"].dims == ("chain", "draw", "shell")
    assert float(numbers["power"][1, 3, 2]) == pytest.approx(float(wanted[2]))


def test_too_few_chains(generator):
    for chains, draws in ((1, 10), (2, 3)):
        with pytest.raises(InputError, match="two or more, of four draws or more"):
            independent(chains, draws, generator).diagnose()


def test_score_of_a_right_and_a_wrong_approximation(generator):
    # draws from N(1, 4) at every voxel
    draws = 1 + 2 * torch.randn(2, 4000, 4, 4, 4, generator=generator, dtype=F64)
    one, two = torch.ones(2, 4, 4, 4, dtype=F64)
    right = score(draws, one, 2 * two)
    # 8000 draws: means to 0.011, shares to 0.0034; 64 voxels, 5 errors
    assert float(right.bias.abs().max()) < 0.056 and float((right.ratio - 1).abs().max()) < 0.04
    assert float((right.coverage - 0.9).abs().max()) < 0.017
    wrong = score(draws, one + 1, two)
    half = stats.norm.cdf([0.5 - 1.6449 / 2, 0.5 + 1.6449 / 2])
    assert float((wrong.bias - 0.5).abs().max()) < 0.07
    assert float((wrong.ratio - 0.5).abs().max()) < 0.02
    assert float((wrong.coverage - (half[1] - half[0])).abs().max()) < 0.028
    summary = wrong.summary()
    assert set(summary) == {"bias", "ratio", "coverage"}
    assert summary["bias"] == pytest.approx(0.5, abs=0.02)
    assert summary["coverage"] == pytest.approx(half[1] - half[0], abs=0.005)


def test_one_draw_is_no_posterior():
    one = torch.ones(4, 4, 4, dtype=F64)
    with pytest.raises(InputError, match="two or more, got 1"):
        score(one[None], one, one)
