"""The model is an ordinary Pyro program: its sites, its scale, and Pyro's own algorithms on it."""

from math import log

import pyro
import pytest
import torch
from brute_force import dense_log_density
from problems import make_problem
from pyro import poutine
from pyro.infer import (
    SVI,
    Importance,
    Predictive,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
)
from pyro.infer.autoguide import AutoDelta

from cryoprob.fourier.bands import full_band
from cryoprob.inference.guide import Guide
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.point import Point
from cryoprob.models.particle_model import ParticleModel

F64 = torch.float64


@pytest.fixture
def seeded():
    """Torch's random state, as it was before the test."""
    with torch.random.fork_rng():
        torch.manual_seed(9)
        yield


@pytest.fixture
def store():
    """Pyro's parameter store, emptied afterwards: SVI keeps what it optimizes there."""
    yield pyro.get_param_store()
    pyro.clear_param_store()


def known(problem, **more):
    """The values of every latent site, as the stack has them."""
    poses = {"rotation": problem.stack.rotation, "shift": problem.stack.shift}
    return {"volume": problem.volume, **{k: v.to(problem.volume) for k, v in poses.items()}} | more


def test_sites():
    problem = make_problem(n=6)
    trace = poutine.trace(problem.model).get_trace(problem.batch)
    shapes = {name: tuple(trace.nodes[name]["value"].shape) for name in trace.stochastic_nodes}
    shapes.pop("particles", None)
    assert shapes == {"volume": (8, 8, 8), "rotation": (6, 3, 3), "shift": (6, 2)}
    assert trace.observation_nodes == ["image"]
    trace.compute_log_prob()
    assert trace.nodes["image"]["log_prob"].shape == (6,)


@pytest.mark.parametrize("poses", ["continuous", "grid"])
def test_joint_density(poses):
    problem = make_problem(n=5)  # as many images as the grid has shifts
    values = known(problem)
    if poses == "continuous":
        problem = problem.continuous()
    else:
        cells = torch.tensor([3, 70, 12, 12, 0])
        values["rotation"] = problem.model.rotation.matrices(cells)
        values["shift"] = problem.model.shift.points()[[4, 0, 0, 2, 1]]
    model, batch = problem.model, problem.batch
    trace = poutine.trace(pyro.condition(model, data=values)).get_trace(batch)
    images = dense_log_density(problem, values["rotation"], values["shift"]).sum()
    prior = model.volume.prior().log_prob(values["volume"])
    if poses == "continuous":
        zero = torch.zeros((), dtype=F64)
        prior = prior + torch.distributions.Normal(zero, 4.0).log_prob(values["shift"]).sum()
    else:
        prior = prior + model.shift.log_mass()[[4, 0, 0, 2, 1]].sum()
        prior = prior - 5 * log(72)
    # float64 throughout; some 500 nats
    assert float(trace.log_prob_sum()) == pytest.approx(float(images + prior), abs=1e-8)


def test_subsampling_scales_to_all_particles():
    # the anchor: batches of 2 of 6 weigh three times, and their mean is the whole
    problem = make_problem(n=6)
    conditioned = pyro.condition(problem.model, data=known(problem))
    totals = []
    for part in ([0, 3], [1, 4], [5, 2]):
        values = known(problem)
        for site in ("rotation", "shift"):
            values[site] = values[site][part]
        here = pyro.condition(problem.model, data=values)
        trace = poutine.trace(here).get_trace(problem.part(torch.tensor(part)))
        assert trace.nodes["image"]["scale"] == trace.nodes["rotation"]["scale"] == 3.0
        assert trace.nodes["volume"]["scale"] == 1.0
        totals.append(float(trace.log_prob_sum()))
    whole = float(poutine.trace(conditioned).get_trace(problem.batch).log_prob_sum())
    assert sum(totals) / 3 == pytest.approx(whole, rel=1e-12)


def test_predictive(seeded):
    problem = make_problem(n=4)
    draws = Predictive(poutine.uncondition(problem.model), num_samples=3)(problem.batch)
    assert draws["volume"].squeeze().shape == (3, 8, 8, 8)
    assert draws["rotation"].squeeze().shape == (3, 4, 3, 3)
    assert draws["shift"].squeeze().shape == (3, 4, 2)
    assert draws["image"].squeeze().shape == (3, 4, len(full_band(8)))
    # other maps, other noise
    assert len({float(v) for v in draws["image"].abs().sum((-1, -2)).flatten()}) == 3


def test_draws_at_known_poses_scatter_around_the_truth(seeded):
    problem = make_problem(n=4).continuous()
    values = known(problem)
    here = pyro.condition(poutine.uncondition(problem.model), data=values)
    draws = torch.stack([here(problem.batch) for _ in range(400)])
    law = problem.model.likelihood(
        values["volume"], values["rotation"], values["shift"], problem.batch
    )
    score = (draws.mean(0) - law.mean).abs() / (law.sigma2.amax(-1, keepdim=True) / 400).sqrt()
    assert float(score.max()) < 6  # 560 numbers of at most one standard error each: 1e-6


def test_condition_and_do_replace_a_site():
    problem = make_problem(n=4)
    trace = poutine.trace(pyro.condition(problem.model, data=known(problem)))
    assert trace.get_trace(problem.batch).nodes["shift"]["is_observed"]
    cut = poutine.trace(poutine.do(problem.model, data=known(problem))).get_trace(problem.batch)
    wanted = problem.model.likelihood(
        *(known(problem)[name] for name in ("volume", "rotation", "shift")), problem.batch
    )
    assert cut.nodes["image"]["fn"].mean.equal(wanted.mean)


def test_one_step_of_svi_with_the_guide(store):
    problem = make_problem(n=5)

    def model(batch):
        pyro.module("model", problem.model)
        problem.model(batch)

    def guide(batch):
        pyro.module("guide", problem.guide)
        problem.guide(batch)

    point = problem.guide.volume.coefficients
    start = point.detach().clone()
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), TraceEnum_ELBO(max_plate_nesting=1))
    losses = [svi.step(problem.batch) for _ in range(4)]
    assert list(store) == ["guide$$$volume.coefficients"]
    assert losses[0] > losses[1] > losses[2] > losses[3]
    # Adam's first steps are lr each
    assert 0 < float((point.detach() - start).abs().max()) <= 4.1e-3


def test_the_elbo_as_a_torch_module():
    # the house way: no store at all
    problem = make_problem(n=5)
    loss = TraceEnum_ELBO(max_plate_nesting=1)(problem.model, problem.guide)
    assert [name for name, _ in loss.named_parameters()] == ["guide.volume.coefficients"]
    before = loss(problem.batch)
    before.backward()
    torch.optim.SGD(loss.parameters(), lr=1e-3).step()
    assert loss(problem.batch).item() < before.item()
    assert not list(pyro.get_param_store())


def test_one_step_of_svi_with_autodelta(store):
    problem = make_problem(n=5)
    guide = AutoDelta(
        poutine.block(problem.model, expose=["volume"]),
        init_loc_fn=lambda site: problem.volume.clone(),
    )
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    svi = SVI(problem.model, guide, pyro.optim.Adam({"lr": 1e-3}), elbo)
    start = svi.evaluate_loss(problem.batch)
    assert start == pytest.approx(float(elbo.loss(problem.model, problem.guide, problem.batch)))
    for _ in range(3):
        svi.step(problem.batch)
    assert svi.evaluate_loss(problem.batch) < start


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceGraph_ELBO, RenyiELBO])
def test_other_objectives_with_given_poses(objective):
    # every latent site a Dirac: each objective is the joint density, however many particles
    problem = make_problem(n=5)
    joint = poutine.trace(pyro.condition(problem.continuous().model, data=known(problem)))
    wanted = float(joint.get_trace(problem.batch).log_prob_sum())
    other = problem.continuous()
    options = {"num_particles": 2} if objective is not RenyiELBO else {"alpha": 0.5}
    loss = objective(**options).loss(other.model, other.guide, problem.batch)
    assert -float(loss) == pytest.approx(wanted, rel=1e-10)


def test_renyi_with_conditioned_poses_and_a_wide_guide(seeded):
    # alpha -> 0 is the importance-weighted bound: between the ELBO and the evidence
    problem = make_problem(n=4, ctf=False).continuous()
    values = known(problem)
    poses = {name: values[name] for name in ("rotation", "shift")}
    model = pyro.condition(problem.model, data=poses)

    def guide(batch):
        law = torch.distributions.Normal(problem.volume, 1e-3)
        pyro.sample("volume", pyro.distributions.Normal(law.loc, law.scale).to_event(3))

    options = {"num_particles": 8, "vectorize_particles": False}
    torch.manual_seed(0)
    bound = -RenyiELBO(alpha=0.0, **options).loss(model, guide, problem.batch)
    torch.manual_seed(0)
    elbo = -Trace_ELBO(**options).loss(model, guide, problem.batch)
    assert elbo < bound


def test_importance_sampling_of_shifts(seeded):
    # from the prior over 5 shifts at known rotations: the evidence, by enumeration
    problem = make_problem(n=1, groups=1, signal=1.0)
    rotation = problem.model.rotation.matrices(torch.tensor([5]))
    given = {"volume": problem.volume, "rotation": rotation}
    model = pyro.condition(problem.model, data=given)
    guide = poutine.block(model, expose=["shift"])
    posterior = Importance(model, guide, num_samples=200).run(problem.batch)
    shifts = problem.model.shift
    scores = torch.stack(
        [dense_log_density(problem, rotation, point[None])[0] for point in shifts.points()]
    )
    fixed = problem.model.volume.prior().log_prob(problem.volume) - log(72)
    wanted = torch.logsumexp(scores + shifts.log_mass(), 0) + fixed
    weights = (scores + fixed - wanted).exp()
    error = ((shifts.log_mass().exp() * (weights - 1) ** 2).sum() / 200).sqrt()
    found = posterior.get_log_normalizer()
    assert abs(float((found - wanted).exp() - 1)) < 5 * float(error)


def test_a_mixture_of_known_and_searched_is_refused():
    problem = make_problem(n=4)
    known_rotation = problem.continuous().guide.rotation
    with pytest.raises(ValueError, match="both searched, in the same way"):
        Guide(rotation=known_rotation, shift=Exact(), volume=Point(problem.volume))


def test_no_parameters_in_the_model():
    problem = make_problem(n=4)
    assert isinstance(problem.model, ParticleModel)
    assert not list(problem.model.parameters())
    assert {"noise.sigma2", "volume.tau2", "shift.sigma"} <= set(problem.model.state_dict())
