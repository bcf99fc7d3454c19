"""Pyro's own algorithms on the unmodified model, each against a number known by other means."""

from math import log

import pyro
import pytest
import torch
from brute_force import BruteForce, dense_log_density
from problems import make_problem
from pyro import poutine
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    Importance,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
)
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.infer.autoguide.initialization import init_to_value
from pyro.infer.mcmc.util import initialize_model
from scipy import stats
from torch.distributions import MultivariateNormal

from cryoprob.checks import InputError
from cryoprob.geometry.grids import RotationGrid
from cryoprob.models import sites

F64 = torch.float64


@pytest.fixture(autouse=True)
def seeded():
    """Torch's random state, as it was before the test."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        yield


@pytest.fixture
def store():
    """Pyro's parameter store, emptied afterwards."""
    yield pyro.get_param_store()
    pyro.clear_param_store()


def given(problem):
    """The stack's poses, as values of the sites."""
    rotation, shift = problem.stack.rotation, problem.stack.shift
    return {"rotation": rotation, "shift": shift}


def joint(problem):
    """log p(images, volume, poses of the stack), continuous poses, by dense covariances."""
    poses = given(problem)
    zero = torch.zeros((), dtype=F64)
    found = dense_log_density(problem, poses["rotation"], poses["shift"]).sum()
    found = found + torch.distributions.Normal(zero, 4.0).log_prob(poses["shift"]).sum()
    return float(found + problem.model.volume.prior().log_prob(problem.volume))


class Ridge:
    """The Gaussian posterior of the volume at known poses, by dense matrices."""

    def __init__(self, problem):
        model, batch, box = problem.model, problem.batch, problem.stack.box
        poses = given(problem)
        laws = [
            model.likelihood(volume, poses["rotation"], poses["shift"], batch)
            for volume in torch.eye(box**3, dtype=F64).reshape(-1, box, box, box)
        ]
        scale = laws[0].sigma2[:, laws[0].band.shell].sqrt()
        design = torch.stack([whole(law.mean / scale) for law in laws], 1)
        images = whole(batch.image / scale)
        prior = model.volume.prior()
        curvature = torch.autograd.functional.hessian(lambda v: -prior.log_prob(v), problem.volume)
        self.precision = design.T @ design + curvature.reshape(box**3, box**3)
        self.mean = torch.linalg.solve(self.precision, design.T @ images)
        marginal = design @ torch.linalg.solve(curvature.reshape(box**3, -1), design.T)
        marginal += torch.eye(len(marginal), dtype=F64)
        law = MultivariateNormal(torch.zeros(len(marginal), dtype=F64), marginal)
        weight = laws[0].band.weight
        logs = (weight**2 * scale.log()).sum()
        # imaginary parts that are nil by symmetry are no numbers
        extra = len(batch) * int((weight == 1).sum()) * log(2 * torch.pi) / 2
        self.evidence = float(law.log_prob(images) - logs + extra)


def whole(coefficients):
    """Real and imaginary parts of every image in one vector."""
    return torch.view_as_real(coefficients.resolve_conj()).flatten()


def test_svi_finds_the_ridge_solution(store):
    problem = make_problem(box=6, n=12).continuous()
    ridge = Ridge(problem)
    low, *_, high = torch.linalg.eigvalsh(ridge.precision).tolist()
    problem.guide.volume.coefficients.data.zero_()

    def model(batch):
        pyro.module("model", problem.model)
        problem.model(batch)

    def guide(batch):
        pyro.module("guide", problem.guide)
        problem.guide(batch)

    # the heavy ball at its best rates for a quadratic function of these curvatures
    pace, drag = high**0.5 + low**0.5, high**0.5 - low**0.5
    torch_optimizer = pyro.optim.SGD({"lr": 4 / pace**2, "momentum": (drag / pace) ** 2})
    svi = SVI(model, guide, torch_optimizer, Trace_ELBO())
    for _ in range(150):
        svi.step(problem.batch)
    assert list(store) == ["guide$$$volume.coefficients"]
    found = problem.guide.volume.coefficients.detach().flatten()
    start = ridge.mean.norm()
    # (drag / pace)^150 times a polynomial of 150
    assert float((found - ridge.mean).norm() / start) < 1e-6


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("objective", [Trace_ELBO, TraceGraph_ELBO, RenyiELBO])
def test_known_poses_score_the_joint_density(objective, vectorized):
    problem = make_problem(n=5).continuous()
    options = {"num_particles": 3, "vectorize_particles": vectorized, "max_plate_nesting": 1}
    loss = objective(**options).loss(problem.model, problem.guide, problem.batch)
    assert -float(loss) == pytest.approx(joint(problem), rel=1e-10)


@pytest.mark.parametrize("vectorized", [False, True])
def test_enumerated_poses_and_several_volumes(vectorized):
    # every draw of the volume has its own evidence, whichever way the draws are laid out
    problem, drawn = make_problem(n=3), []

    def guide(batch):
        law = pyro.distributions.Normal(problem.volume, 0.1).to_event(3)
        drawn.append(pyro.sample("volume", law))
        with sites.particles(batch):
            pass

    options = {"num_particles": 2, "vectorize_particles": vectorized, "max_plate_nesting": 1}
    found = -TraceEnum_ELBO(**options).loss(problem.model, guide, problem.batch)
    wanted = []
    for volume in torch.cat([v.reshape(-1, 8, 8, 8) for v in drawn[-1 if vectorized else -2 :]]):
        law = torch.distributions.Normal(problem.volume, 0.1)
        problem.volume, kept = volume, problem.volume
        evidence = BruteForce(problem).evidence.sum()
        prior = problem.model.volume.prior().log_prob(volume)
        problem.volume = kept
        wanted.append(float(evidence + prior - law.log_prob(volume).sum()))
    assert len(wanted) == 2 and abs(wanted[0] - wanted[1]) > 0.1
    assert found == pytest.approx(sum(wanted) / 2, rel=1e-10)


def weak(n, signal=0.5):
    """Images of little signal, at a given volume: their log evidence over the grid of poses."""
    problem = make_problem(n=n, signal=signal, groups=1)
    return problem, pyro.condition(problem.model, data={"volume": problem.volume})


def poses_from_the_prior(problem):
    """A guide that draws poses blindly."""

    def guide(batch):
        with sites.particles(batch):
            pyro.sample("rotation", problem.model.rotation.prior())
            pyro.sample("shift", problem.model.shift.prior())

    return guide


def test_renyi_bound_rises_to_the_evidence():
    # one image and blind proposals: one and two draws by sums over all (pairs of) poses
    problem, model = weak(1, signal=1.5)
    brute, guide = BruteForce(problem), poses_from_the_prior(problem)
    mass, ratio = brute.log_prior.exp().expand(72, -1).flatten(), brute.joint - brute.log_prior
    ratio = ratio.flatten()
    exact = [float(mass @ ratio)]
    pairs = torch.logaddexp(ratio[:, None], ratio) - log(2)
    exact.append(float(mass @ pairs @ mass))
    fixed = float(problem.model.volume.prior().log_prob(problem.volume))
    means, errors = [], []
    for particles, repeats in ((1, 400), (2, 400), (64, 100)):
        options = {"num_particles": particles, "vectorize_particles": True}
        bound = RenyiELBO(alpha=0.0, max_plate_nesting=1, **options)
        values = [-float(bound.loss(model, guide, problem.batch)) for _ in range(repeats)]
        values = torch.tensor(values, dtype=F64) - fixed
        means.append(float(values.mean()))
        errors.append(float(values.std()) / repeats**0.5)
    evidence = float(brute.evidence)
    # 4 standard errors: 6e-5 each
    assert exact[0] < exact[1] - 8 * errors[1] < exact[1] < evidence
    assert abs(means[0] - exact[0]) < 4 * errors[0] and abs(means[1] - exact[1]) < 4 * errors[1]
    assert means[1] + 8 * errors[1] < means[2] < evidence + 4 * errors[2]


def test_importance_sampling_of_poses():
    problem, model = weak(2)
    guide, brute, draws = poses_from_the_prior(problem), BruteForce(problem), 800
    found = Importance(model, guide, num_samples=draws).run(problem.batch).get_log_normalizer()
    fixed = problem.model.volume.prior().log_prob(problem.volume)
    wanted = brute.evidence.sum() + fixed
    # relative variance of a weight: the images' second moments multiply
    ratio = brute.joint - brute.log_prior - brute.evidence[:, None, None]
    second = (brute.log_prior.exp() * (2 * ratio).exp()).flatten(1).sum(1).prod()
    error = float(((second - 1) / draws).sqrt())
    assert 0.01 < error < 0.2
    assert abs(float((found - wanted).exp()) - 1) < 4 * error


def test_nuts_on_the_chart_of_one_image():
    # against sums over 36864 orientations 7.5 degrees apart, at a given shift
    problem = make_problem(n=1, signal=4.0, ctf=False, groups=1).continuous()
    values = {"volume": problem.volume, "shift": problem.stack.shift}
    model = pyro.condition(problem.model, data=values)
    grid = RotationGrid(3).matrices(dtype=F64)
    law = problem.model.likelihood(problem.volume, grid[:, None], values["shift"], problem.batch)
    weights = law.log_prob(problem.batch.image)[:, 0].softmax(0)
    wanted = torch.einsum("q,qij->ij", weights, grid)
    mode = grid[weights.argmax()]
    # several cells matter, so that the sum is an integral, and there is one mode to find
    assert float(weights.max()) < 0.1 and torch.linalg.svdvals(wanted).min() > 0.5
    kernel = NUTS(model, init_strategy=init_to_value(values={"rotation": mode[None]}))
    mcmc = MCMC(kernel, num_samples=120, warmup_steps=40, disable_progbar=True)
    mcmc.run(problem.batch)
    draws = mcmc.get_samples()["rotation"][:, 0]
    count = pyro.ops.stats.effective_sample_size(draws[None], 0, 1).clamp(max=120)
    error = draws.std(0) / count.sqrt()
    assert float(error.max()) < 0.05
    # nine means of 4 errors each: 6e-4
    assert float(((draws.mean(0) - wanted).abs() / error).max()) < 4


def test_nuts_sees_the_evidence_of_enumerated_poses():
    problem = make_problem(n=3)
    _, potential, *_ = initialize_model(problem.model, (problem.batch,), max_plate_nesting=1)
    prior = problem.model.volume.prior().log_prob(problem.volume)
    wanted = BruteForce(problem).evidence.sum() + prior
    found = potential({"volume": problem.volume})
    assert -float(found) == pytest.approx(float(wanted), rel=1e-10)


@pytest.mark.parametrize("parallel", [False, True])
def test_prior_predictive(parallel, false_alarm):
    # what is drawn together belongs together: residuals are white noise
    problem = make_problem(n=4)
    draw = Predictive(poutine.uncondition(problem.model), num_samples=30, parallel=parallel)
    draws = draw(problem.batch)
    assert draws["volume"].shape == (30, 1, 8, 8, 8)
    values = [draws[name] for name in ("volume", "rotation", "shift")]
    assert white(problem, draws["image"], *values) > false_alarm
    # and not by chance: those of another draw are not
    assert white(problem, draws["image"].roll(1, 0), *values) < 1e-10


@pytest.mark.parametrize("parallel", [False, True])
def test_posterior_predictive(parallel, false_alarm):
    # the volume's draws have a dimension for the plate, as Predictive lays them out
    problem = make_problem(n=4)
    maps = torch.stack([problem.volume, 3 * problem.volume] * 15)[:, None]
    model = poutine.uncondition(problem.model)
    draws = Predictive(model, {"volume": maps}, parallel=parallel)(problem.batch)
    assert set(draws) == {"rotation", "shift", "image"}
    p = white(problem, draws["image"], maps, draws["rotation"], draws["shift"])
    assert p > false_alarm


def test_predictive_with_a_guide(false_alarm):
    problem = make_problem(n=4).continuous()
    model = poutine.uncondition(problem.model)
    draw = Predictive(model, guide=problem.guide, num_samples=30, parallel=True)
    draws = draw(problem.batch)
    assert (draws["volume"] == problem.volume).all()
    assert (draws["rotation"] == problem.stack.rotation).all()
    poses = given(problem)
    p = white(problem, draws["image"], problem.volume, poses["rotation"], poses["shift"])
    assert p > false_alarm


def white(problem, images, volume, rotation, shift):
    """Chance of the residuals of images [K, N, M], were they noise of the model."""
    law = problem.model.likelihood(volume, rotation, shift, problem.batch)
    scaled = (images - law.mean) / law.sigma2[:, law.band.shell].sqrt()
    inner = torch.view_as_real(scaled[..., law.band.weight > 1]).flatten()
    numbers = torch.cat([inner, scaled[..., law.band.weight == 1].real.flatten()])
    assert (scaled[..., law.band.weight == 1].imag == 0).all()
    return stats.kstest(numbers.numpy(), "norm").pvalue


def test_replay_takes_the_values_of_a_trace():
    problem = make_problem(n=5).continuous()
    trace = poutine.trace(problem.guide).get_trace(problem.batch)
    model = poutine.trace(poutine.replay(problem.model, trace)).get_trace(problem.batch)
    assert model.log_prob_sum().item() == pytest.approx(joint(problem), rel=1e-10)


def test_autonormal_of_the_volume_at_its_optimum(store):
    # the best product of normals has the ridge mean and the diagonal of the precision; the bound
    # there is the evidence less KL(q || posterior), all in closed form
    problem = make_problem(box=6, n=8).continuous()
    ridge = Ridge(problem)
    poses = given(problem)
    model = pyro.condition(problem.model, data=poses)
    guide = AutoNormal(model)
    guide(problem.batch)
    guide.locs.volume.data.copy_(ridge.mean.reshape(6, 6, 6))
    scale = ridge.precision.diagonal().rsqrt()
    guide.scales.volume = scale.reshape(6, 6, 6)
    elbo = Trace_ELBO(num_particles=400, vectorize_particles=True, max_plate_nesting=1)
    found = -elbo.loss(model, guide, problem.batch)
    divergence = -(scale.log().sum() + ridge.precision.logdet() / 2)
    zero = torch.zeros((), dtype=F64)
    prior = torch.distributions.Normal(zero, 4.0).log_prob(poses["shift"]).sum()
    wanted = ridge.evidence + float(prior - divergence)
    # log p - log q of a draw is a quadratic form of scaled normals, of variance |off diagonal|^2/2
    correlation = ridge.precision * torch.outer(scale, scale)
    spread = (correlation - torch.eye(216, dtype=F64)).square().sum() / 2
    assert float(divergence) > 1
    assert abs(found - wanted) < 4 * float(spread / 400) ** 0.5


def test_autodelta_of_every_site(store):
    problem = make_problem(n=5).continuous()
    values = {"volume": problem.volume} | given(problem)
    start = init_to_value(values=values)
    guide = AutoDelta(problem.model, init_loc_fn=start, create_plates=sites.particles)
    loss = Trace_ELBO().loss(problem.model, guide, problem.batch)
    assert -loss == pytest.approx(joint(problem), rel=1e-10)


def test_autonormal_on_the_plate_of_a_minibatch(store):
    problem = make_problem(n=5).continuous()
    part = problem.part(torch.tensor([3, 1]))
    guide = AutoNormal(problem.model, create_plates=sites.particles)
    trace = poutine.trace(guide).get_trace(part)
    assert trace.nodes["particles"]["value"].tolist() == [3, 1]
    model = poutine.trace(poutine.replay(problem.model, trace)).get_trace(part)
    model.compute_log_prob()
    # the images 3 and 1 of the stack at the guide's poses, each standing for 5 / 2
    rotation, shift = (trace.nodes[name]["value"] for name in ("rotation", "shift"))
    problem.volume = trace.nodes["volume"]["value"].detach()
    everyone = [torch.zeros(5, *v.shape[1:], dtype=F64) for v in (rotation, shift)]
    for whole_, some in zip(everyone, (rotation, shift), strict=True):
        whole_[[3, 1]] = some.detach()
    wanted = dense_log_density(problem, *everyone)[[3, 1]]
    found = model.nodes["image"]["unscaled_log_prob"]
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)
    assert model.nodes["image"]["scale"] == 2.5
    # parameters of the other images do not move
    Trace_ELBO().differentiable_loss(problem.model, guide, part).backward()
    moved = guide.locs.shift.grad
    assert (moved.abs().sum(1) > 0).tolist() == [False, True, False, True, False]


def test_a_guide_that_draws_its_own_minibatch_is_refused(store):
    # AutoNormal's own plate has the size of the batch, and other particles in it
    problem = make_problem(n=5).continuous()
    part = problem.part(torch.tensor([3, 1]))
    guide = AutoNormal(problem.model)
    with pytest.raises(InputError, match="3, 1, got 2 drawn by the guide") as caught:
        Trace_ELBO().loss(problem.model, guide, part)
    assert "create_plates=sites.particles" in str(caught.value)
    # with all particles there is nothing to draw
    assert Trace_ELBO().loss(problem.model, AutoNormal(problem.model), problem.batch) > 0
    shuffled = problem.part(torch.tensor([4, 3, 2, 1, 0]))
    with pytest.raises(InputError, match="4, 3, 2, 1, ..., got 5"):
        Trace_ELBO().loss(problem.model, AutoNormal(problem.model), shuffled)
