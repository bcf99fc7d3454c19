"""The end of a fit of linear modes: axes whose coordinates differ as much as their maps do."""

import pytest
import torch
from moving import moving, smooth_maps
from scenes import assembled

from cryoprob.fourier.shells import frequency_3d
from cryoprob.inference.finish import verdict
from cryoprob.inference.joint_finish import summary_at
from cryoprob.inference.linear_posterior import latents, prior_scale
from cryoprob.inference.modes_finish import finish_modes, turn_to_axes
from cryoprob.inference.modes_m_step import BlockEquations, determined
from cryoprob.inference.modes_statistics import modes_e_step

F64 = torch.float64


def test_modes_of_one_norm_and_every_images_map_as_it_was():
    problem = moving(n=12, values=(6.0, 3.0))
    start = 5 * smooth_maps(3, 8, torch.Generator().manual_seed(1))
    state = problem.state(start)
    half, stack = state.half, problem.stack
    before = latents(half.model, half.guide, stack)
    told = before.mean @ start[1:].flatten(1)
    spread = start[1:].flatten(1).T @ before.covariance @ start[1:].flatten(1)
    result = finish_modes(state, stack)
    after, prior = half.guide.volume.coefficients.detach(), prior_scale(half.model)
    modes = after[1:].flatten(1)
    norms = modes.norm(dim=1)
    torch.testing.assert_close(norms, norms[:1].expand(2))
    assert abs(float(modes[0] @ modes[1])) < 1e-9 * float(norms[0]) ** 2
    assert float(prior[0]) == 1 and 0 < float(prior[1]) < 1
    torch.testing.assert_close(result.states.mean.double() @ modes, told)
    # the same posterior under the prior that the coordinates now have
    again = latents(half.model, half.guide, stack)
    torch.testing.assert_close(again.mean, result.states.mean.double())
    torch.testing.assert_close(modes.T @ again.covariance @ modes, spread)
    torch.testing.assert_close(again.log_evidence, before.log_evidence)
    variance = again.covariance.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(result.states.std.double().square(), variance)
    first, second = (result.states.maps[f"mode_{k}"].norm() for k in (1, 2))
    torch.testing.assert_close((second / first).double(), prior[1])
    torch.testing.assert_close(turn_to_axes(half), prior)  # they are there
    torch.testing.assert_close(half.guide.volume.coefficients.detach(), after)


def test_a_mode_that_has_vanished():
    problem = moving(n=6, values=(6.0, 3.0))
    start = 5 * smooth_maps(3, 8, torch.Generator().manual_seed(1))
    start[2] = 0
    half = problem.state(start).half
    turn_to_axes(half)
    prior = half.model.conformation.prior()
    assert torch.isfinite(half.guide.volume.coefficients).all() and (prior.stddev > 0).all()


def test_coordinates_that_say_nothing_are_told():
    problem = moving(n=12, values=(6.0, 3.0))
    start = 5 * smooth_maps(3, 8, torch.Generator().manual_seed(1))
    assert "almost nothing" not in finish_modes(problem.state(start), problem.stack).trust
    start[1:] *= 1e-4
    assert "almost nothing" in finish_modes(problem.state(start), problem.stack).trust


@pytest.mark.parametrize("name", ["ppca", "3dva", "covariance"])
def test_noise_is_not_trusted(name):
    options = {"zdim": 2, "max_radius": 3} | (
        {} if name == "covariance" else {"max_iterations": 8}
    )
    for values, trusted in ((0.0, False), (6.0, True)):
        stack = moving(n=200, values=(values + 1e-6,) * 2, mean=1e-6 + 2 * values).stack
        built = assembled(stack, name, **options)
        while not built.state.done:
            built.algorithm.step(built.state, stack)
        assert built.finish().trust.startswith("Do not trust") != trusted


def test_numbers_that_are_determined():
    """All where images tell much more than the prior, none where they tell nothing."""
    problem = moving(n=60, values=(6.0, 3.0))
    for factor, least, most in ((1e-8, 0.99, 1.0), (1.0, 0.05, 0.95), (1e8, 0.0, 1e-3)):
        problem.model.noise.sigma2.fill_(factor)
        sums = modes_e_step(problem.model, problem.guide(problem.truth), problem.stack)
        found = determined(BlockEquations.of(sums), problem.truth, problem.model.volume.tau2)
        seen = 3 * (frequency_3d(8) < problem.model.band.radius - 0.5).sum()  # shells within
        assert least * float(seen) <= found <= most * 3 * 8**3


def test_nats_that_are_no_number_are_no_praise():
    nothing = torch.full((2,), torch.nan)
    found = verdict(
        summary_at(nothing, torch.eye(3).expand(2, 3, 3), torch.zeros(2, 2)),
        torch.zeros(2),
        [],
        True,
    )
    assert found.startswith("Do not trust this map")
