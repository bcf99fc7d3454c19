"""q(volume) normal in every mode: exact expectations in every route, and in Pyro's own estimators."""

import pytest
import torch
from map_laws import draw_maps, gaussian, lost_at, posed
from problems import make_problem
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO

from cryoprob.checks import InputError
from cryoprob.fourier.gaussian_map import GaussianMap
from cryoprob.fourier.modes import opposite
from cryoprob.fourier.shells import spread
from cryoprob.inference.dense import DenseGrid
from cryoprob.inference.e_step import e_step
from cryoprob.inference.filtered import filter_images
from cryoprob.inference.guide import Guide
from cryoprob.inference.local_search import climb
from cryoprob.inference.objectives.base import log_terms
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.gaussian_volume import GaussianVolume
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.local import Local
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.treatments.point import Point

F64 = torch.float64
FIELDS = ("bound", "rotation", "shift", "probability", "entropy", "cross", "energy")
ROUNDING = {"rtol": 1e-9, "atol": 1e-9}  # some 100 nats, added up in other orders


def routes(problem, volume):
    """Guides of every route through the E-step, for a model of order 1 and refined shifts."""
    rotation, shift = (v.to(problem.volume) for v in (problem.stack.rotation, problem.stack.shift))
    pairs = {
        "dense": (Exact(), Exact()),
        "pruned": (Exact(1.0, coarse_order=0), Exact()),
        "beam": (Exact(0.9, coarse_order=0), Exact()),
        "local": (Local(rotation, 180.0), Local(shift, 99.0)),  # all of the grid
        "modal": (Modal(), Modal()),
        "polished": (Modal(polish=2), Modal(polish=2)),
        "known": (Known(rotation), Known(shift)),
    }
    return {k: Guide(rotation=r, shift=s, volume=volume) for k, (r, s) in pairs.items()}


@pytest.mark.parametrize("name", routes(make_problem(n=2), None))
def test_no_variance_is_a_point_to_the_last_bit(name):
    problem = make_problem(n=7, order=1, refine=1, signal=4.0)
    flat = GaussianVolume(problem.volume, torch.zeros_like(problem.volume))
    found = []
    for volume in (Point(problem.volume), flat):
        guide = routes(problem, volume)[name]
        found.append(e_step(problem.model, guide, problem.stack))
    point, q = found
    for field in FIELDS:
        assert getattr(q.summary, field).equal(getattr(point.summary, field)), field
    assert q.residual.equal(point.residual)
    ours, theirs = q.insertion.equations(), point.insertion.equations()
    assert ours.right.equal(theirs.right) and ours.stencil.equal(theirs.stencil)


def test_expected_scores_by_whole_matrices():
    problem = make_problem(n=5)
    q = gaussian(problem)
    index = torch.tensor([0, 2, 4])  # one optics group
    images = filter_images(problem.model, problem.stack, index)
    plain = DenseGrid.of(problem.model, problem.volume).posterior(images).logits
    found = DenseGrid.of(problem.model, q.maps).posterior(images).logits
    lost = lost_at(problem, q, problem.model.rotation.matrices())[index]
    assert float(lost.min()) > 0.1 and float(lost.std(1).min()) > 1e-3
    torch.testing.assert_close(plain - found, lost[:, None].expand_as(found), **ROUNDING)


def test_expected_scores_are_means_over_draws():
    problem = make_problem(n=4)
    q, index = gaussian(problem), torch.tensor([0, 2])
    images = filter_images(problem.model, problem.stack, index)
    found = DenseGrid.of(problem.model, q.maps).posterior(images).logits
    drawn = torch.stack(
        [DenseGrid.of(problem.model, one).posterior(images).logits for one in draw_maps(q, 400)]
    )
    error = drawn.std(0) / 400**0.5
    away = (drawn.mean(0) - found) / error
    # 720 numbers, of few independent ones; four standard errors, at a fixed seed
    assert float(away.abs().max()) < 4 and float((drawn[0] - found).abs().mean()) > error.mean()


@pytest.mark.parametrize("name", ["pruned", "local"])
def test_other_sums_are_the_dense_one(name):
    problem = make_problem(n=6, order=1, refine=1, signal=4.0)
    guides = routes(problem, gaussian(problem))
    whole, found = (e_step(problem.model, guides[n], problem.stack) for n in ("dense", name))
    torch.testing.assert_close(found.summary.bound, whole.summary.bound, **ROUNDING)
    # a local search's sums leave out 1e-4 of the posterior mass
    close = ROUNDING if name == "pruned" else {"rtol": 1e-3, "atol": 1e-3}
    for field in FIELDS:
        mine, wanted = getattr(found.summary, field), getattr(whole.summary, field)
        torch.testing.assert_close(mine, wanted, **close)
    torch.testing.assert_close(found.residual, whole.residual, **close)


def test_single_poses_are_expected_too():
    problem = make_problem(n=6, order=1, refine=1, signal=4.0)
    model, stack, q = problem.model, problem.stack, gaussian(problem)
    plain = e_step(model, routes(problem, Point(problem.volume))["known"], stack).summary
    found = e_step(model, routes(problem, q)["known"], stack).summary
    lost = lost_at(problem, q, stack.rotation).diagonal()
    torch.testing.assert_close(plain.bound - found.bound, lost, **ROUNDING)
    torch.testing.assert_close((found.energy - plain.energy) / 2, lost, **ROUNDING)
    found = e_step(model, routes(problem, q)["modal"], stack).summary
    grid = DenseGrid.of(model, q.maps)
    for group in (0, 1):
        images = filter_images(model, stack, (stack.group == group).nonzero()[:, 0])
        best = grid.posterior(images).logits.flatten(1).amax(1) + images.noise_only
        torch.testing.assert_close(found.bound[images.index], best, **ROUNDING)


def test_the_climb_follows_the_expected_score():
    problem = make_problem(n=5, signal=4.0)
    model, stack = problem.model, problem.stack
    q, index = gaussian(problem, 1.0), torch.arange(5)
    images = filter_images(model, stack, index)
    pose = stack.rotation, stack.shift
    plain = climb(model, problem.volume, images, *pose, 0)
    start = climb(model, q.maps, images, *pose, 0)
    lost = lost_at(problem, q, stack.rotation).diagonal()
    torch.testing.assert_close(plain.log_joint - start.log_joint, lost, **ROUNDING)
    for volume in (problem.volume, q.maps):
        climbed = climb(model, volume, images, *pose, 8)
        plain = climb(model, problem.volume, images, climbed.rotation, climbed.shift, 0)
        lost = lost_at(problem, q, climbed.rotation).diagonal()
        if volume is problem.volume:
            elsewhere = plain.log_joint - lost
    torch.testing.assert_close(plain.log_joint - lost, climbed.log_joint, **ROUNDING)
    assert (climbed.log_joint > start.log_joint + 0.1).all()
    # it looks for another optimum than the mean map's
    assert float((climbed.log_joint - elsewhere).mean()) > 0.1


def test_expected_residual():
    problem = make_problem(n=6)
    q = gaussian(problem)
    plain = posed(problem, Point(problem.volume))
    first = e_step(plain.model, plain.guide, plain.stack).residual
    known = posed(problem, q)
    found = e_step(known.model, known.guide, known.stack).residual
    slicer, stack = known.model.volume.slicer, known.stack
    power = q.maps.slice_variance(slicer, stack.rotation)
    images = filter_images(known.model, stack, torch.arange(6))
    sigma2 = known.model.noise(stack.group)[:, slicer.band.shell]
    wanted = torch.zeros_like(first)
    for n, group in enumerate(stack.group.tolist()):
        wanted[group].index_add_(0, slicer.band.shell, (images.transfer * power * sigma2)[n])
    torch.testing.assert_close(found - first, wanted, **ROUNDING)


def test_draws_have_the_bound_as_their_mean():
    problem = posed(make_problem(n=6), None)
    q = gaussian(problem)
    problem.guide.volume = q
    found = e_step(problem.model, problem.guide, problem.stack).summary.bound
    scores = []
    for one in draw_maps(q, 200):
        problem.guide.volume = Point(one)
        scores.append(e_step(problem.model, problem.guide, problem.stack).summary.bound)
    scores = torch.stack(scores)
    error = scores.std(0) / 200**0.5
    # four standard errors, at a fixed seed; the error is small beside what q takes off
    assert ((scores.mean(0) - found).abs() < 4 * error).all()
    problem.guide.volume = Point(problem.volume)
    plain = e_step(problem.model, problem.guide, problem.stack).summary.bound
    assert (plain - found > 4 * error).all()


def elbos(estimator, problem, count, **options):
    """Values of one of Pyro's own estimators."""
    with torch.random.fork_rng():
        torch.manual_seed(8)
        loss = estimator(**options)
        return torch.tensor(
            [-loss.loss(problem.model, problem.guide, problem.batch) for _ in range(count)]
        )


@pytest.mark.parametrize("estimator", [Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO])
def test_pyros_estimators_agree_at_known_poses(estimator):
    problem = posed(make_problem(n=6), None)
    problem.guide.volume = gaussian(problem)
    with torch.no_grad():
        bound = e_step(problem.model, problem.guide, problem.stack).summary.bound.sum()
        wanted = float(bound - problem.guide.volume.kl(problem.model.volume.prior()))
    shift = torch.distributions.Normal(0.0, 4.0).log_prob(problem.stack.shift).sum()
    quiet = {"strict_enumeration_warning": False} if estimator is TraceEnum_ELBO else {}
    values = elbos(estimator, problem, 100, **quiet) - float(shift)  # the known poses' own prior
    error = float(values.std()) / 10
    assert abs(float(values.mean()) - wanted) < 4 * error
    quiet |= {"num_particles": 25, "vectorize_particles": True, "max_plate_nesting": 1}
    batched = elbos(estimator, problem, 4, **quiet)
    batched = batched - float(shift)
    assert abs(float(batched.mean()) - wanted) < 4 * error


def test_enumerated_poses_lie_above_by_what_factorizing_costs():
    # Pyro sums the poses out at each draw of the map; the streamed bound has one q for all draws
    problem = make_problem(n=4)
    q = gaussian(problem, 0.3)
    problem.guide.volume = q
    with torch.no_grad():
        bound = e_step(problem.model, problem.guide, problem.stack).summary.bound
        kl = float(q.kl(problem.model.volume.prior()))
    values = elbos(TraceEnum_ELBO, problem, 200, max_plate_nesting=1)
    error = float(values.std()) / 200**0.5
    assert float(values.mean()) > float(bound.sum()) - kl + 4 * error
    # the same by draws of the streamed score
    scores = []
    for one in draw_maps(q, 200):
        problem.guide.volume = Point(one)
        scores.append(e_step(problem.model, problem.guide, problem.stack).summary.bound.sum())
    mean, spare = torch.stack(scores).mean(), torch.stack(scores).std() / 200**0.5
    assert abs(float(mean) - kl - float(values.mean())) < 4 * (error**2 + float(spare) ** 2) ** 0.5


def test_gradients_reach_mean_and_variance():
    problem = posed(make_problem(n=6), None)
    q = problem.guide.volume = gaussian(problem)
    with torch.random.fork_rng():
        torch.manual_seed(8)
        loss = TraceMeanField_ELBO(num_particles=2)
        loss.differentiable_loss(problem.model, problem.guide, problem.batch).backward()
    assert float(q.coefficients.grad.abs().max()) > 0
    assert torch.isfinite(q.log_variance.grad).all()
    assert float(q.log_variance.grad.abs().max()) > 0


def test_objectives_are_expected_under_q():
    problem = posed(make_problem(n=6), None)
    q = problem.guide.volume = gaussian(problem)
    bound = e_step(problem.model, problem.guide, problem.stack).summary.bound
    batch, model = problem.batch, problem.model
    found = Elbo()(model, problem.guide, q.maps, batch)
    torch.testing.assert_close(found, bound, **ROUNDING)
    poses = problem.guide.draw(batch, 1)
    terms = log_terms(model, problem.guide, problem.volume, poses, batch)
    lost = lost_at(problem, q, problem.stack.rotation).diagonal()
    torch.testing.assert_close(terms.likelihood[0] - found, lost, **ROUNDING)


def test_what_is_refused():
    volume = torch.zeros(6, 6, 6)
    with pytest.raises(InputError, match="variance of the volume: expected 0 or more, got -1"):
        GaussianVolume(volume, volume - 1)
    with pytest.raises(InputError, match=r"expected the map's shape, got \[4\] for"):
        GaussianVolume(volume, torch.ones(4))
    prior = make_problem(n=2).model.volume.prior()
    with pytest.raises(InputError, match=r"a density \(GaussianVolume\), got Point"):
        Point(volume).kl(prior)
    assert GaussianVolume.has_density and not Point.has_density
    assert Schedule.parse({"volume": "gaussian"}).volume == "gaussian"
    with pytest.raises(InputError, match="volume: expected point or gaussian, got 'normal'"):
        Schedule.parse({"volume": "normal"})


def test_the_start_is_made_even():
    odd = 1 + torch.rand(6, 6, 6, generator=torch.Generator().manual_seed(1))
    q = GaussianVolume(torch.zeros(6, 6, 6), odd)
    torch.testing.assert_close(q.variance, (odd + opposite(odd)) / 2)
    assert isinstance(q.maps, GaussianMap) and not q.maps.variance.requires_grad
    assert set(q.state_dict()) == {"coefficients", "log_variance"}
    torch.testing.assert_close(q.maps.variance, q.law().spectrum)
    assert spread(torch.ones(5), 6).shape == q.variance.shape
