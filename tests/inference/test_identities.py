"""One number by three routes: enumeration in Pyro, the streamed E-step, and dense Gaussians."""

import pytest
import torch
from brute_force import BruteForce
from problems import make_problem
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

from cryoprob.inference.dense import DenseGrid
from cryoprob.inference.e_step import e_step
from cryoprob.inference.filtered import filter_images

F64 = torch.float64
CASES = {
    "plain": {"ctf": False, "contrast": False, "groups": 1},
    "ctf": {"contrast": False, "groups": 1},
    "two groups": {"contrast": False, "groups": 2},
    "contrast": {"groups": 2},
    "small band": {"groups": 2, "radius": 2},
    "nearest": {"groups": 2, "interpolation": "nearest"},
}


@pytest.mark.parametrize("name", CASES)
def test_evidence_by_three_routes(name):
    problem = make_problem(**CASES[name])
    model, guide = problem.model, problem.guide
    brute = BruteForce(problem).evidence
    streamed = e_step(model, guide, problem.stack).summary.bound
    # some 100 nats in float64
    torch.testing.assert_close(streamed, brute, rtol=0, atol=1e-9)
    elbo = -TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, problem.batch)
    prior = float(model.volume.prior().log_prob(problem.volume))
    assert elbo - prior == pytest.approx(float(brute.sum()), abs=1e-8)


@pytest.mark.parametrize("name", ["plain", "contrast"])
def test_evidence_in_single_precision(name):
    wide = make_problem(**CASES[name])
    narrow = make_problem(**CASES[name], dtype=torch.float32)
    brute = BruteForce(wide).evidence
    streamed = e_step(narrow.model, narrow.guide, narrow.stack).summary.bound
    assert streamed.dtype == F64
    # 100 nats and 6e-8 a rounding
    assert float((streamed - brute).abs().max()) < 1e-3
    elbo = -TraceEnum_ELBO(max_plate_nesting=1).loss(narrow.model, narrow.guide, narrow.batch)
    prior = float(narrow.model.volume.prior().log_prob(narrow.volume))
    assert elbo - prior == pytest.approx(float(brute.sum()), abs=6 * 1e-3)


def test_one_image_at_a_time():
    # TraceEnum's evidence of each image, not of their sum
    problem = make_problem(n=3)
    brute = BruteForce(problem).evidence
    prior = float(problem.model.volume.prior().log_prob(problem.volume))
    for i in range(3):
        batch = problem.part(torch.tensor([i]))
        elbo = -TraceEnum_ELBO(max_plate_nesting=1).loss(problem.model, problem.guide, batch)
        # one of three images stands for all of them
        assert (elbo - prior) / 3 == pytest.approx(float(brute[i]), abs=1e-9)


@pytest.mark.parametrize("name", ["contrast", "small band", "nearest"])
def test_gradients_are_fishers_identity(name):
    # d log p(X | V) / d V = H^T W (x - H V), expected under the posterior: b - A V
    problem = make_problem(**CASES[name])
    point = problem.guide.volume.coefficients
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    elbo.differentiable_loss(problem.model, problem.guide, problem.batch).backward()
    volume = problem.volume.clone().requires_grad_()
    problem.model.volume.prior().log_prob(volume).backward()
    equations = e_step(problem.model, problem.guide, problem.stack).insertion.equations()
    wanted = equations.right_side() - equations.apply(problem.volume) + volume.grad
    # sums of 10^3 terms in float64
    torch.testing.assert_close(-point.grad, wanted, rtol=1e-8, atol=1e-10)


def test_gradients_by_finite_differences():
    problem = make_problem(n=4)
    equations = e_step(problem.model, problem.guide, problem.stack).insertion.equations()
    slope = equations.right_side() - equations.apply(problem.volume)
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(8, 8, 8, generator=generator, dtype=F64)
    step, values = 1e-4, []
    for sign in (1, -1):
        moved = problem.volume + sign * step * direction
        problem.guide.volume.coefficients.data = moved
        found = e_step(problem.model, problem.guide, problem.stack).summary.bound
        values.append(float(found.sum()))
    # central differences: error of step^2 times a third derivative, and 1e-12 / step
    found = (values[0] - values[1]) / (2 * step)
    assert found == pytest.approx(float((slope * direction).sum()), rel=1e-5)


@pytest.mark.parametrize("name", ["plain", "contrast", "small band"])
def test_responsibilities(name):
    problem = make_problem(**CASES[name])
    wanted = BruteForce(problem).weights.transpose(1, 2)
    for group in problem.stack.group.unique():
        index = (problem.stack.group == group).nonzero()[:, 0]
        images = filter_images(problem.model, problem.stack, index)
        found = DenseGrid.of(problem.model, problem.volume).posterior(images).weights
        torch.testing.assert_close(found, wanted[index], rtol=1e-8, atol=1e-12)


def test_known_poses():
    # the log density at the poses; with the priors, Trace_ELBO of the continuous model
    problem = make_problem(n=6).continuous()
    summary = e_step(problem.model, problem.guide, problem.stack).summary
    elbo = -Trace_ELBO().loss(problem.model, problem.guide, problem.batch)
    shift = problem.stack.shift
    prior = problem.model.volume.prior().log_prob(problem.volume)
    prior = (
        prior + torch.distributions.Normal(torch.zeros((), dtype=F64), 4.0).log_prob(shift).sum()
    )
    assert float(summary.bound.sum() + prior) == pytest.approx(elbo, abs=1e-9)
    assert summary.rotation.equal(problem.stack.rotation) and summary.shift.equal(shift)
    assert (summary.entropy == 0).all() and (summary.probability == 1).all()


def test_known_poses_on_the_grid_are_one_term_of_the_sum():
    problem = make_problem(n=6)
    brute = BruteForce(problem)
    rotation, shift = torch.tensor([3, 71, 0, 44, 44, 9]), torch.tensor([0, 1, 2, 3, 4, 2])
    stack = problem.stack.subset(torch.arange(6))
    object.__setattr__(stack, "rotation", brute.rotations[rotation])
    object.__setattr__(stack, "shift", brute.shifts[shift])
    problem.stack = stack
    known = problem.continuous()
    found = e_step(known.model, known.guide, stack).summary.bound
    wanted = (brute.joint - brute.log_prior)[torch.arange(6), rotation, shift]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_elbo_of_any_guess_is_lower():
    # log p = ELBO(q) + KL(q || posterior): a Dirac on the best pose costs -log of its mass
    problem = make_problem(n=5)
    brute = BruteForce(problem)
    best = brute.joint.flatten(1).max(1).values
    gap = brute.evidence - best
    assert (gap > 0).all()
    torch.testing.assert_close(gap, -brute.weights.flatten(1).max(1).values.log())
    summary = e_step(problem.model, problem.guide, problem.stack).summary
    # the exact posterior closes the gap: mean log joint + entropy
    mean = (brute.weights * brute.joint).flatten(1).sum(1)
    torch.testing.assert_close(mean + summary.entropy, summary.bound, rtol=0, atol=1e-9)
