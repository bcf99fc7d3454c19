"""The factor that a map and its images' contrasts can trade: who takes it up, and how much."""

from dataclasses import replace

import pytest
import torch
from imaged import F64, imaged_model, make_imaged

from cryoprob.inference.amplitude_law import AmplitudeLaw, expanded_scale
from cryoprob.inference.em import EM, EMState
from cryoprob.inference.finish import finish
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.imaging import exact_imaging
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.solvent import Solvent
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.point import Point
from cryoprob.models.gaussian_defocus import GaussianDefocus


def begun(model, imaged, scale, index):
    """A reconstruction of some images that starts from the true map times a factor."""
    poses = (Known(value) for value in imaged.poses)
    parts = dict(zip(("rotation", "shift"), poses, strict=True)) | exact_imaging(model)
    return Half(model, Guide(**parts, volume=Point(scale * imaged.volume)), index)


def rising(model, imaged, steps=8):
    """Log posterior after each of some EM steps, and the contrasts' last mean; prior fixed."""
    half = begun(model, imaged, 0.5, torch.arange(len(imaged.stack)))
    fixed = {"noise": False, "tau2": False, "shift_sigma": False}
    plan = replace(Schedule(), max_radius=7, **fixed)
    algorithm, state = EM(plan, 1, Solvent("none")), EMState([half])
    values = []
    for _ in range(steps):
        before = model.log_prior_volume(half.guide.volume.coefficients.detach())
        algorithm.step(state, imaged.stack)
        values.append(state.history[-1]["bound"] * len(imaged.stack) + float(before))
    return values, algorithm.e_step(half, imaged.stack, 0).imaging.contrast.mean()


def test_each_step_raises_the_log_posterior(monkeypatch):
    imaged = make_imaged(n=40, power=2000.0)
    nodes = GaussianDefocus(300.0, 5, F64)
    values, mean = rising(imaged_model(16, imaged.model.contrast, nodes), imaged)
    rise = torch.tensor(values).diff()
    # float64 sums of ten thousand nats; conjugate gradients stop at 1e-3 of the map's residual
    assert float(rise.min()) > -1e-6 and float(rise[0]) > 100
    monkeypatch.setattr("cryoprob.inference.em.rescale", lambda *args, **more: None)
    plain, slow = rising(imaged_model(16, imaged.model.contrast, nodes), imaged)
    assert values[-1] > plain[-1] and abs(float(mean) - 1) < abs(float(slow) - 1)


def halved(imaged, scale, steps, **more):
    """Two halves after some EM steps, their prior power from the half maps; and the E-step."""
    count, free = len(imaged.stack), {"noise": False, "shift_sigma": False} | more
    parts = [imaged_model(16, imaged.model.contrast) for _ in range(2)]
    halves = [begun(m, imaged, scale, torch.arange(n, count, 2)) for n, m in enumerate(parts)]
    algorithm = EM(replace(Schedule(), max_radius=7, **free), 1, Solvent("none"))
    state = EMState(halves)
    for _ in range(steps):
        algorithm.step(state, imaged.stack)
    return halves, algorithm


def test_half_maps_come_to_the_scale_of_the_contrasts(monkeypatch):
    """Prior power goes along with the map and the weights; starts of any scale end in the same."""
    imaged, powers, factors = make_imaged(n=160, power=2000.0), [], []
    for scale in (0.5, 2.0):
        halves, _ = halved(imaged, scale, 1)
        powers.append(halves[0].model.linear_volume.tau2[1:6])
    # a factor of 14 with weights left behind
    assert float((powers[0] / powers[1]).log2().abs().max()) < 1
    halves, _ = halved(imaged, 2.0, 1, tau2=False)  # half maps tell it all the same
    torch.testing.assert_close(halves[0].model.linear_volume.tau2[1:6], powers[1])

    def noted(*given):
        factors.append(expanded_scale(*given))
        return factors[-1]

    monkeypatch.setattr("cryoprob.inference.common_factor.expanded_scale", noted)
    halves, algorithm = halved(imaged, 0.5, 6)
    assert factors[-2:] == pytest.approx(factors[-4:-2], abs=1e-3)
    for half, factor in zip(halves, factors[-2:], strict=True):
        # what the M-step shrinks: 1 % of maps of 80 images each
        assert factor == pytest.approx(1, abs=0.03)
        found = algorithm.e_step(half, imaged.stack, 0).imaging.contrast[half.index]
        assert float(found.mean()) == pytest.approx(1, abs=0.03)


def test_the_joint_map_is_as_large_as_the_true_one():
    """The truth regressed on it is 1, as on any posterior mean: contrasts count around 1."""
    slopes = []
    for seed in range(3):
        imaged = make_imaged(n=64, power=300.0, seed=seed)
        halves, algorithm = halved(imaged, 1.0, 6)
        state = EMState(halves, history=[{"bound": 0.0}])
        found = finish(algorithm, state, imaged.stack, [], [], 1).volume
        slope = (imaged.volume * found).sum() / found.square().sum()
        slopes.append(float(slope * imaged.contrast.mean()))
    # 0.99 with an error of 0.01, of 8 seeds; 1.07 where only the half maps take up the factor
    assert sum(slopes) / 3 == pytest.approx(1, abs=0.04)


def test_the_factor_that_contrasts_have_in_common():
    """Where the posteriors are as the prior has them none; else its closed form without a map."""
    law = AmplitudeLaw(0.09)
    generator = torch.Generator().manual_seed(2)
    for common in (0.7, 1.0, 1.4):
        drawn = common * (1 + 0.3 * torch.randn(20000, generator=generator, dtype=F64))
        found = expanded_scale(law, drawn, torch.full_like(drawn, 1e-9), 0.0)
        first, second = float(drawn.mean()), float(drawn.square().mean())
        wanted = ((first**2 + 4 * 0.09 * second) ** 0.5 - first) / (2 * 0.09)
        # the search's own tolerance; and the sampling error of the mean, six times
        assert found == pytest.approx(wanted, abs=1e-5)
        assert found == pytest.approx(common, abs=6 * 0.3 / 20000**0.5)
    assert expanded_scale(law, drawn, torch.full_like(drawn, 1e-9), 5e4) < found
