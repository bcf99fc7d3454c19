"""Classes: evidence by brute force and by Pyro, one class is none, ascent, and separation."""

from dataclasses import replace

import pytest
import torch
from brute_force import BruteForce
from problems import make_problem, some_map
from pyro.infer import TraceEnum_ELBO

from cryoprob.checks import InputError
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.class_e_step import class_e_step
from cryoprob.inference.em import EM, EMState
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.members import members
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.solvent import Solvent
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.local import Local
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.treatments.point import Point
from cryoprob.models.conformations.classes import Classes
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.models.volumes.mixture import Mixture
from cryoprob.particles import ParticleStack

F64 = torch.float64
WEIGHTS = torch.tensor([0.7, 0.3], dtype=F64)


def other_map(problem, seed=31):
    return 2 * some_map(problem.stack.box, torch.Generator().manual_seed(seed))


def classed(problem, volumes, weights=WEIGHTS, poses=None, concentration=1.0):
    """The problem's model with several volumes, and the guide that sums out all."""
    old, box = problem.model, problem.stack.box
    tau2 = old.volume.tau2
    mixture = Mixture([FourierVoxels(box, tau2, dtype=tau2.dtype) for _ in volumes])
    parts = old.rotation, old.shift, old.noise, old.pixel_size, old.contrast
    model = ParticleModel(mixture, *parts, Classes(weights.to(tau2), concentration))
    poses = (Exact(), Exact()) if poses is None else poses
    point = Point(torch.stack(volumes))
    guide = Guide(rotation=poses[0], shift=poses[1], conformation=Exact(), volume=point)
    return model, guide


@pytest.fixture
def problem():
    return make_problem(n=5)


def test_evidence_by_three_routes(problem):
    """Full covariances of all pixels, Pyro's enumeration of class and pose, and the E-step."""
    volumes = [problem.volume, other_map(problem)]
    each = torch.stack([BruteForce(replace(problem, volume=v)).evidence for v in volumes], 1)
    wanted = each + WEIGHTS.log()
    model, guide = classed(problem, volumes)
    found = class_e_step(model, guide, problem.stack)
    torch.testing.assert_close(found.summary.bound, wanted.logsumexp(1), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.shares, wanted.softmax(1), rtol=0, atol=1e-9)
    elbo = -TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, problem.batch)
    prior = float(model.volume.prior().log_prob(torch.stack(volumes)))
    assert elbo - prior == pytest.approx(float(wanted.logsumexp(1).sum()), abs=1e-8)


def test_gradients_are_fishers_identity(problem):
    """What Pyro differentiates is each class's normal equations in its shares: b - A V."""
    volumes = [problem.volume, other_map(problem)]
    model, guide = classed(problem, volumes)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    elbo.differentiable_loss(model, guide, problem.batch).backward()
    free = torch.stack(volumes).requires_grad_()
    model.volume.prior().log_prob(free).backward()
    for k, sums in enumerate(class_e_step(model, guide, problem.stack).parts):
        equations = sums.insertion.equations()
        wanted = equations.right_side() - equations.apply(volumes[k]) + free.grad[k]
        torch.testing.assert_close(
            -guide.volume.coefficients.grad[k], wanted, rtol=1e-8, atol=1e-9
        )


def statistics_of(found):
    return [
        *(part.insertion.equations().right_side() for part in found.parts),
        *(part.insertion.equations().diagonal() for part in found.parts),
        found.parts[0].residual,
        found.parts[0].shift_power,
        found.shares,
        found.summary.bound,
        found.summary.shift,
    ]


@pytest.mark.parametrize("route", ["coarse to fine", "local"])
def test_other_routes_agree_with_the_whole_grid(route):
    problem = make_problem(n=4, order=1, refine=1)
    volumes = [problem.volume, other_map(problem)]
    whole = class_e_step(*classed(problem, volumes), problem.stack)
    rotation, shift = (v.to(F64) for v in (problem.stack.rotation, problem.stack.shift))
    pose = {
        "coarse to fine": (Exact(1.0, coarse_order=0),) * 2,
        "local": (Local(rotation, 180.0), Local(shift, 100.0)),
    }[route]
    found = class_e_step(*classed(problem, volumes, poses=pose), problem.stack)
    pairs = zip(statistics_of(found)[:-1], statistics_of(whole)[:-1], strict=True)
    for one, other in pairs:
        # a local search puts what it sums to 1 - 1e-4 of the mass
        at = {"rtol": 1e-3, "atol": 1e-3 * float(other.abs().max())} if route == "local" else {}
        torch.testing.assert_close(one, other, **at)


def test_known_poses(problem):
    """Evidence ratios at one pose, and sums in their shares."""
    stack, volumes = problem.stack, [problem.volume, other_map(problem)]
    poses = Known(stack.rotation.to(F64)), Known(stack.shift.to(F64))
    model, guide = classed(problem, volumes, poses=poses)
    found = class_e_step(model, guide, stack)
    each = torch.stack(
        [
            part.model.likelihood(v, stack.rotation, stack.shift, problem.batch).log_prob(
                problem.batch.image
            )
            for part, v in zip(members(model, guide), volumes, strict=True)
        ],
        1,
    )
    wanted = each + WEIGHTS.log()
    torch.testing.assert_close(found.shares, wanted.softmax(1), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.summary.bound, wanted.logsumexp(1), rtol=0, atol=1e-9)
    torch.testing.assert_close(found.summary.shift, stack.shift.to(F64))


def test_classes_may_change_places(problem):
    volumes = [problem.volume, other_map(problem)]
    one = class_e_step(*classed(problem, volumes), problem.stack)
    other = class_e_step(*classed(problem, volumes[::-1], WEIGHTS.flip(0)), problem.stack)
    torch.testing.assert_close(one.shares, other.shares.flip(1))
    torch.testing.assert_close(one.summary.bound, other.summary.bound)


def algorithm(**options):
    plan = Schedule(coarse_order=0, max_order=0, shift_extent=1.2, shift_step=1.2, **options)
    return EM(plan, 3, Solvent("none"))


def fitted(problem, model, guide, steps, **options):
    state = EMState([Half(model, guide, torch.arange(len(problem.stack)))])
    state.shell = 3
    for _ in range(steps):
        algorithm(**options).step(state, problem.stack)
    return state


@pytest.mark.parametrize("mass", [None, 1.0])
def test_one_class_is_none(mass):
    """To the last bit: the same map after three steps."""
    runs = []
    for classes in (False, True):
        problem = make_problem(n=6, contrast=False)
        exact = Exact(mass, coarse_order=0)
        model, guide = problem.model, problem.guide
        if classes:
            one = torch.ones(1, dtype=F64)
            model, guide = classed(problem, [problem.volume], one, (exact, exact))
        else:
            guide = Guide(rotation=exact, shift=exact, volume=guide.volume)
        state = fitted(problem, model, guide, 3, max_radius=3)
        runs.append((guide.volume.coefficients.detach().reshape(8, 8, 8), state.history))
    assert runs[0][0].equal(runs[1][0])
    assert [r["bound"] for r in runs[0][1]] == [r["bound"] for r in runs[1][1]]


def test_the_log_posterior_never_falls():
    """Grid, band, noise and priors of the maps fixed; the weights of the classes are updated too."""
    problem = make_problem(n=12, contrast=False)
    volumes = [0.3 * other_map(problem, seed) for seed in (1, 2)]
    model, guide = classed(problem, volumes, concentration=2.0)
    fixed = {"noise": False, "tau2": False, "shift_sigma": False, "turn": False}
    state = EMState([Half(model, guide, torch.arange(12))])
    state.shell, heights = 3, []
    for _ in range(9):
        prior = model.volume.prior().log_prob(guide.volume.coefficients.detach())
        weights = model.conformation.weights.log().sum()  # Dirichlet(2)
        algorithm(max_radius=3, **fixed).step(state, problem.stack)
        heights.append(12 * state.history[-1]["bound"] + float(prior + weights))
    rises = torch.tensor(heights).diff()
    # conjugate gradients stop at 1e-3 of the residual: 1e-6 of the gain of a step
    assert bool((rises > -1e-5 * rises.abs().max()).all()) and float(rises[0]) > 1


def two_states(n=60, seed=5):
    """Images of two maps at known poses, 70 to 30."""
    problem = make_problem(n=n, contrast=False, groups=1, ctf=False, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    volumes = [3 * some_map(8, generator) for _ in range(2)]
    rotation = random_rotations(n, generator, F64)
    state = (torch.arange(n) % 10 < 3).long()
    slices = torch.stack([FourierVoxels(8, dtype=F64).slices(v, rotation) for v in volumes])
    noise = 0.3 * torch.randn(n, 8, 8, generator=generator, dtype=F64)
    clean = problem.model.band.unpack(slices[state, torch.arange(n)])
    nothing = torch.zeros(n, 2, dtype=F64)
    stack = ParticleStack.from_arrays(
        clean + noise, problem.stack.pixel_size, None, rotation, nothing
    )
    return problem, replace(problem, stack=stack), volumes, state


def test_two_states_are_told_apart():
    """From low-passed maps, poses summed out: every image to its state, weights within 3 errors."""
    _, problem, volumes, state = two_states()
    starts = [v + 0.3 * float(v.std()) * other_map(problem, 9) for v in volumes]
    poses = Known(problem.stack.rotation), Known(problem.stack.shift)
    even = torch.ones(2, dtype=F64)
    model, guide = classed(problem, starts, even, poses)
    fitted(problem, model, guide, 6)
    found = class_e_step(model, guide, problem.stack)
    assert found.shares.argmax(1).equal(state)
    weights = model.conformation.weights
    assert abs(float(weights[1]) - 0.3) < 3 * (0.21 / 60) ** 0.5


def test_what_cannot_be_summed_out_is_refused(problem):
    volumes = [problem.volume, other_map(problem)]
    with pytest.raises(InputError, match="Known, Exact, Local"):
        class_e_step(*classed(problem, volumes, poses=(Modal(), Modal())), problem.stack)
    model, guide = classed(problem, volumes)
    guide.conformation = None
    with pytest.raises(InputError, match="classes summed out"):
        class_e_step(model, guide, problem.stack)
    with pytest.raises(InputError, match="as Mixture takes"):
        ParticleModel(
            model.volume, model.rotation, model.shift, model.noise, 5.0, conformation=None
        )
    with pytest.raises(InputError, match="positive numbers"):
        Classes(torch.tensor([1.0, 0.0]))
