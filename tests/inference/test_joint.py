"""Map and q by gradients together: the optimum, the noise, resuming, and what stops it."""

from unittest.mock import Mock

import pytest
import torch
from problems import make_problem

from cryoprob.checks import InputError
from cryoprob.inference.e_step import e_step
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.joint import Joint, JointState, follow
from cryoprob.inference.joint_finish import finish_joint
from cryoprob.inference.laws.rotations import ConcentratedLaw, DiracRotation
from cryoprob.inference.laws.shifts import DiracShift, NormalShift
from cryoprob.inference.loop import Quiet, run_loop
from cryoprob.inference.m_step import solve_volume, update_noise
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.objectives.iwae import Iwae
from cryoprob.inference.objectives.profile_log_joint import ProfileLogJoint
from cryoprob.inference.objectives.symmetric import Symmetric
from cryoprob.inference.solvent import Solvent
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.particles import ParticleStack

RADIUS = 3


@pytest.fixture
def problem():
    return make_problem(n=12, contrast=False, signal=4.0).continuous()


def half(problem, rotation=None, shift=None, volume=None):
    volume = torch.zeros_like(problem.volume) if volume is None else volume
    shift = problem.guide.shift if shift is None else shift
    rotation = problem.guide.rotation if rotation is None else rotation
    guide = Guide(rotation=rotation, shift=shift, volume=Point(volume))
    return Half(problem.model, guide, torch.arange(len(problem.stack)))


def tables(problem):
    """Laws that start at the true poses."""
    rotation = PerImage(ConcentratedLaw(10.0), problem.stack.rotation)
    shift = PerImage(NormalShift(2.0), problem.stack.shift.double())
    return rotation, shift


def joint(objective, **options):
    options = {"batch": 12, "first_radius": RADIUS, "radius": RADIUS, **options}
    return Joint(objective, 3, **options)


def run(algorithm, state, stack):
    run_loop(algorithm, state, stack, stage="", steps=9, observer=Quiet(), save=lambda: None)


def test_known_poses_end_at_the_exact_m_step(problem):
    state = JointState(half(problem))
    run(
        joint(Elbo(), steps=600, volume_rate=0.3, noise=False, solvent=Solvent("none")),
        state,
        problem.stack,
    )
    statistics = e_step(problem.model, state.half.guide, problem.stack)
    equations = statistics.insertion.equations()
    found = state.half.guide.volume.coefficients.data
    best = solve_volume(equations, problem.model.volume.tau2, found, tolerance=1e-8).volume
    prior = problem.model.volume.prior()

    def height(volume):
        quadratic = (volume * (equations.right_side() - equations.apply(volume) / 2)).sum()
        return float(quadratic + prior.log_prob(volume))

    gain = height(best) - height(torch.zeros_like(best))
    # minibatches of 12 drawn with replacement from 12 leave their noise: 1 % of the way
    assert 0 <= height(best) - height(found) < 0.01 * gain


def test_the_gradient_in_sigma2_tells_of_the_residual(problem):
    statistics = e_step(problem.model, problem.guide, problem.stack)
    wanted = make_problem(n=12, contrast=False, signal=4.0).model
    update_noise(wanted, statistics)
    sigma2 = problem.model.noise.sigma2.requires_grad_()
    value = Elbo()(problem.model, problem.guide, problem.volume, problem.batch).mean()
    (gradient,) = torch.autograd.grad(value, sigma2)
    problem.model.noise.sigma2 = sigma2.detach()
    follow(problem.model, gradient, problem.batch, 1.0)
    torch.testing.assert_close(problem.model.noise.sigma2, wanted.noise.sigma2)


@pytest.mark.parametrize(
    ("objective", "dirac"), [(Elbo(2), False), (ProfileLogJoint(), True), (Symmetric(), True)]
)
def test_it_climbs_and_a_resumed_run_gives_the_same_bytes(objective, dirac):
    def begin():
        problem = make_problem(n=12, contrast=False, signal=4.0).continuous()
        rotation, shift = tables(problem)
        if dirac:
            rotation = PerImage(DiracRotation(), problem.stack.rotation)
            shift = problem.guide.shift
        return problem, JointState(half(problem, rotation, shift))

    algorithm = joint(objective, steps=150, rate=0.01)
    problem, whole = begin()
    run(algorithm, whole, problem.stack)
    values = [record["bound"] for record in whole.history]
    assert values[0] < values[1] < values[2]
    problem, cut = begin()
    algorithm.step(cut, problem.stack)
    kept = cut.pack()
    problem, resumed = begin()
    resumed.unpack(kept)
    run(algorithm, resumed, problem.stack)
    assert resumed.history[-1]["bound"] == values[-1]
    for name, value in whole.half.guide.state_dict().items():
        assert resumed.half.guide.state_dict()[name].equal(value), name
    assert resumed.half.model.noise.sigma2.equal(whole.half.model.noise.sigma2)


def test_a_teacher_trains_q_and_the_objective_the_map(problem):
    rotation, shift = tables(problem)
    state = JointState(half(problem, rotation, shift))
    taught = Mock(side_effect=lambda model, guide, volume, batch: rotation.numbers.sum(1))
    algorithm = joint(Elbo(), steps=50, rate=0.01, teacher=taught)
    before = rotation.numbers.detach().clone(), shift.numbers.detach().clone()
    algorithm.step(state, problem.stack)
    assert taught.call_count == 50
    # all numbers of the rotations go up the teacher's slope of 1; the shifts have none
    assert (rotation.numbers.detach() > before[0]).all()
    assert shift.numbers.equal(before[1])
    assert state.half.guide.volume.coefficients.detach().abs().max() > 0


def test_what_is_held_stays_and_then_moves(problem):
    """A phase of q alone: the map to the last bit; then both."""
    rotation, shift = tables(problem)
    state = JointState(half(problem, rotation, shift, problem.volume))
    algorithm = joint(Elbo(), steps=100, rate=0.01, held={"volume": 0.5}, solvent=Solvent("none"))
    algorithm.step(state, problem.stack)
    volume = state.half.guide.volume.coefficients.detach().clone()
    assert volume.equal(problem.volume)
    assert not rotation.numbers.equal(tables(problem)[0].numbers)
    algorithm.step(state, problem.stack)
    assert not state.half.guide.volume.coefficients.detach().equal(volume)
    with pytest.raises(InputError, match="rotation or shift"):
        joint(Elbo(), held={"pose": 1.0})


def test_the_band_grows_and_the_rates_fall(problem):
    state = JointState(half(problem))
    run(joint(Elbo(), steps=200, first_radius=1, radius=3), state, problem.stack)
    assert [record["radius"] for record in state.history] == [1, 2, 3, 3]
    assert state.half.optimizer["param_groups"][1]["lr"] < 1e-3


def test_the_answer_that_won_is_told(problem):
    """A table half a turn away from the truth: its second candidate is the truth."""
    turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0])).double()
    true, moved = problem.stack.rotation, problem.stack.shift.double()
    away = torch.arange(len(true)) % 2 == 0
    start = torch.where(away[:, None, None], turn @ true, true)
    shift = PerImage(DiracShift(5.0), torch.where(away[:, None], -moved, moved))
    state = JointState(half(problem, PerImage(DiracRotation(), start), shift, problem.volume))
    found = finish_joint(state, problem.stack, Symmetric(), 1).posterior
    torch.testing.assert_close(found.rotation.double(), true)
    torch.testing.assert_close(found.shift.double(), moved)
    plain = finish_joint(state, problem.stack, ProfileLogJoint(), 1).posterior
    torch.testing.assert_close(plain.rotation.double(), start)


def test_held_noise_is_annealed(problem):
    """Seen by the objective: 16 times the held spectra, falling to them over half of the steps."""
    held, seen = problem.model.noise.sigma2.clone(), []

    class Watched(Elbo):
        def __call__(self, model, *args):
            seen.append(model.noise.sigma2.detach().clone())
            return super().__call__(model, *args)

    options = {"steps": 40, "noise": False, "anneal": 16.0, "marching": 0.5}
    joint(Watched(), **options).step(JointState(half(problem)), problem.stack)
    for step, factor in ((0, 16.0), (5, 8.0), (10, 4.0), (20, 1.0), (39, 1.0)):
        torch.testing.assert_close(seen[step], factor * held)
    assert problem.model.noise.sigma2.equal(held)
    with pytest.raises(InputError, match="noise held"):
        joint(Elbo(), anneal=16.0)


def test_the_divergence_is_weighed_at_the_start(problem):
    """1/16 of it at first, all of it after half of the steps; a record tells where it began."""
    seen = []

    class Watched(Elbo):
        def __call__(self, *args):
            seen.append(self.beta)
            return super().__call__(*args)

    options = {"steps": 150, "kl_start": 1 / 16, "marching": 0.5}
    state, training = JointState(half(problem)), joint(Watched(2, 0.5), **options)
    kinds = [training.step(state, problem.stack)["kind"] for _ in range(3)]
    expected = [0.5 * (1 / 16) ** max(0.0, 1 - step / 75) for step in range(150)]
    assert seen == pytest.approx(expected)
    words = [kind.partition("full band")[2] for kind in kinds]
    assert words[:2] == [f", divergence times {weight} and more" for weight in ("0.062", "0.4")]
    assert words[2] == ""
    for objective, weight, word in ((Iwae(2), 0.5, "divergence"), (Elbo(), 0.0, "kl_start")):
        with pytest.raises(InputError, match=word):
            joint(objective, kl_start=weight)


def test_what_is_not_finite_is_named(problem):
    rotation = Known(problem.stack.rotation.clone())
    images = problem.stack.images(torch.arange(12)).double()
    stack = ParticleStack.from_arrays(1e200 * images, problem.stack.pixel_size, None)
    with pytest.raises(InputError, match="gradient step 1"):
        joint(Elbo(), steps=50).step(JointState(half(problem, rotation)), stack)
