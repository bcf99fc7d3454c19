"""Images without noise: variances that stay above rounding, and classes that lose all images."""

from dataclasses import replace

import pytest
import torch
from problems import make_problem, some_map

from cryoprob.fourier.bands import full_band
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.build import build_model, image_power
from cryoprob.inference.conjugate_gradients import conjugate_gradients
from cryoprob.inference.e_step import e_step
from cryoprob.inference.em import EM, EMState
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.joint import follow
from cryoprob.inference.least_noise import least_noise
from cryoprob.inference.m_step import Solution, lift_tau2, update_noise, update_tau2
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.solvent import Solvent
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.point import Point
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.particles import ParticleStack

SHARE = 2.0**-11.5
NUMBERS = full_band(8).numbers_per_shell()


def test_least_noise_is_a_part_of_each_shell_and_never_nothing():
    power = torch.tensor([[640.0, 0.0, 64.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    found = (
        least_noise(power, NUMBERS, torch.float32)[0]
        / torch.tensor(2.0, dtype=torch.float64) ** -23
    )
    pixel = 704 / 64
    wanted = [640 / SHARE**-1 * 2.0**23, pixel, 64 / float(NUMBERS[2]) * SHARE * 2.0**23]
    assert found[:3].tolist() == pytest.approx(wanted)
    assert found[3:].tolist() == pytest.approx([pixel] * 3)
    double = least_noise(power, NUMBERS, torch.float64)[0]
    assert double[[0, 1]].tolist() == pytest.approx([10 * 2.0**-26 * 64, 11 * 2.0**-52])
    groups = least_noise(torch.cat([power, 0 * power]), NUMBERS, torch.float32)
    assert groups[1].tolist() == pytest.approx([pixel / 2 * 2.0**-23] * 6)


def positive_maps(count, generator):
    """Maps of one mass, so that all their images have the same zero frequency."""
    maps = [100 * some_map(8, generator).abs() for _ in range(count)]
    return torch.stack([v * (maps[0].sum() / v.sum()) for v in maps]).float()


def noise_free(classes, mass):
    """EM of some classes from near the truth, and 30 images of two maps, all but noise-free."""
    n, generator = 30, torch.Generator().manual_seed(3)
    maps = positive_maps(2, generator)
    rotation = random_rotations(n, generator, torch.float32)
    volume = FourierVoxels(8, dtype=torch.float32)
    slices = torch.stack([volume.slices(v, rotation) for v in maps])
    images = volume.band.unpack(slices[torch.arange(n) % 2, torch.arange(n)])
    images = images + 0.1 * torch.randn(n, 8, 8, generator=generator)
    stack = ParticleStack.from_arrays(images, 3.0, None, rotation, torch.zeros(n, 2))
    plan = Schedule(
        coarse_order=0,
        max_order=2,
        shift_extent=1.2,
        shift_step=1.2,
        max_radius=3,
        classes=classes,
    )
    model = build_model(stack, plan, image_power(stack), radius=3)
    starts = (maps + 20 * torch.randn(2, 8, 8, 8, generator=generator))[:classes]
    point, exact = Point(starts if classes > 1 else starts[0]), Exact(mass, coarse_order=0)
    states = Exact() if classes > 1 else None
    guide = Guide(rotation=exact, shift=exact, conformation=states, volume=point)
    state = EMState([Half(model, guide, torch.arange(n))])
    state.shell = 3
    return EM(plan, 3, Solvent("none")), state, stack


@pytest.mark.parametrize(
    ("classes", "mass", "steps"), [(1, 0.999, 13), (2, 0.999, 5), (2, None, 5)]
)
def test_em_of_images_without_noise_goes_on(classes, mass, steps):
    """One map explains the zero frequency wholly; one of two classes loses all its images."""
    em, state, stack = noise_free(classes, mass)
    for _ in range(steps):
        em.step(state, stack)
    half, power = state.halves[0], image_power(stack)
    assert torch.isfinite(half.guide.volume.coefficients).all()
    sigma2 = half.model.noise.sigma2.double()
    least = least_noise(power * NUMBERS, NUMBERS, half.model.noise.sigma2.dtype)
    assert (sigma2 >= 0.999 * least).all() and torch.isfinite(sigma2).all()
    bounds = [record["bound"] for record in state.history]
    assert bounds[-1] > bounds[0] + 100  # it went on to explain them
    for member in half.members:
        tau2 = member.model.linear_volume.tau2
        assert torch.isfinite(tau2).all() and float(tau2.max()) < 1e3 * float(power.max())


@pytest.mark.parametrize("residual", [-1e3, 0.0, 1e-12])
def test_a_residual_of_nothing_is_the_rounding_of_its_shell(residual):
    problem = make_problem(n=6, groups=1)
    statistics = e_step(problem.model, problem.guide, problem.stack)
    before = update_of(problem, statistics)
    statistics.residual[0, 1] = residual
    after = update_of(problem, statistics)
    power = statistics.power[0] / statistics.counts[0]
    assert float(after[0, 1]) == pytest.approx(float(2.0**-26 * power[1] / NUMBERS[1]))
    others = torch.arange(len(NUMBERS)) != 1
    assert after[:, others].equal(before[:, others])


def update_of(problem, statistics):
    update_noise(problem.model, statistics)
    return problem.model.noise.sigma2.clone()


def test_gradient_training_holds_the_noise_as_em_does():
    """A gradient that would take all noise away leads to the least noise of the images."""
    problem = make_problem(n=6, groups=1).continuous()
    sigma2, batch = problem.model.noise.sigma2, problem.batch
    follow(problem.model, torch.full_like(sigma2, -1e9), batch, 1.0)
    wanted = least_noise(batch.power.mean(0, keepdim=True), NUMBERS, sigma2.dtype)
    torch.testing.assert_close(problem.model.noise.sigma2, wanted.to(sigma2))


def test_a_map_without_data_keeps_its_prior():
    problem = make_problem(n=2)
    tau2 = problem.model.linear_volume.tau2
    before = tau2.clone()
    for weight in (0.0, 1e-42, 1e-30):
        nothing = torch.full((8, 8, 8), weight, dtype=tau2.dtype)
        solution = Solution(torch.zeros_like(problem.volume), nothing, 0)
        update_tau2(problem.model, solution)
        lift_tau2(problem.model, solution, 1)
        assert tau2.equal(before)
    some = replace(solution, volume=problem.volume, weight=torch.ones_like(nothing))
    update_tau2(problem.model, some)
    assert not tau2.equal(before)


@pytest.mark.parametrize("gain", [1.0, 0.3, 0.01])
def test_conjugate_gradients_end_where_the_right_side_is_nothing(gain):
    """They close in on zero until the numbers end, where 0 / 0 would be next."""
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(8, 8, 8, generator=generator) * 10 ** (-seed / 4)
        weight = 1 + torch.rand(8, 8, 8, generator=generator)
        about = gain / weight.mean()
        found, _ = conjugate_gradients(
            weight.mul, torch.zeros_like(start), start, about.mul, 1e-3, 100
        )
        assert torch.isfinite(found).all() and found.abs().max() <= start.abs().max()
