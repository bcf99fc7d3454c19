"""The CUDA route gives the CPU's numbers: on a device that pretends, and on one that is there."""

from copy import deepcopy
from dataclasses import astuple, fields
from functools import partial

import numpy as np
import pytest
import torch
from pretend import CUDA, Pretend
from problems import make_problem
from pyro.infer import TraceEnum_ELBO
from torch import nn
from torch.func import grad, vmap

from cryoprob.app.compare import _spread
from cryoprob.app.views import family_views
from cryoprob.checks import InputError
from cryoprob.fourier.normal import Insertion
from cryoprob.fourier.shells import spread
from cryoprob.geometry.grids import RotationGrid
from cryoprob.geometry.rotations import random_rotations
from cryoprob.geometry.shifts import ShiftGrid
from cryoprob.geometry.symmetry import point_group
from cryoprob.inference.ab_initio import AbInitio, AbInitioState
from cryoprob.inference.amplitude import match_amplitude
from cryoprob.inference.build import build_guide, build_model, image_power
from cryoprob.inference.config import FitConfig
from cryoprob.inference.covariance import least_squares_mean
from cryoprob.inference.e_step import e_step
from cryoprob.inference.em import EM, EMState
from cryoprob.inference.families import Recipe, family
from cryoprob.inference.grids import off_grid
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.laws.rotations import ConcentratedLaw
from cryoprob.inference.laws.shifts import NormalShift
from cryoprob.inference.loop import Quiet
from cryoprob.inference.m_step import (
    posterior_std,
    solve_volume,
    tau2_from_fsc,
    update_contrast,
    update_noise,
    update_shift_sigma,
    update_tau2,
)
from cryoprob.inference.natural_learner import NaturalLearner
from cryoprob.inference.run import run_fit
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.solvent import Solvent
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.gaussian_volume import GaussianVolume
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.local import Local
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.models.simulate import simulate
from cryoprob.phantoms import bead_walk

F64 = torch.float64
CPU = torch.device("cpu")
CLOSE = {"rtol": 1e-8, "atol": 1e-9}  # sums of 10^4 terms in float64, in another order
PLAN = Schedule(max_iterations=3, coarse_order=1, max_order=2, contrast=True)


def agree(found, wanted, **tolerance):
    """Assert that a result is on the device, and the CPU's."""
    assert found.device == CUDA and wanted.device == CPU
    torch.testing.assert_close(found.cpu(), wanted, **CLOSE | tolerance)


def agree_all(found, wanted):
    """The same of all tensors of two dataclasses."""
    for item in fields(found):
        agree(getattr(found, item.name), getattr(wanted, item.name))


def agree_statistics(found, wanted):
    agree_all(found.summary, wanted.summary)
    for name in ("residual", "counts", "whitened", "shift_power"):
        agree(getattr(found, name), getattr(wanted, name))
    ours, theirs = found.insertion.equations(), wanted.insertion.equations()
    agree(ours.right, theirs.right)
    agree(ours.stencil, theirs.stencil)


# The pretended device itself: torch's rules, as they are on CUDA


def test_pretended_tensors_say_where_they_are(pretended):
    made = torch.zeros(2, 3, device="cuda"), torch.eye(3, device=CUDA), torch.ones(2).to("cuda")
    assert all(isinstance(v, Pretend) and v.device == CUDA and v.is_cuda for v in made)
    x, y = made[0], torch.ones(2, 3)
    derived = x + 1, x.new_zeros(2), torch.zeros_like(x), x[0], x.T, x.max(1).values, *x, y.to(x)
    derived = *derived, torch.as_tensor(y, device=x.device), y.to("cuda", F64), y.type_as(x)
    assert all(v.device == CUDA for v in derived)
    back = x.cpu(), x.to("cpu"), x.to(device="cpu"), x.to(y), y.to(F64), x.new_zeros(2, device=CPU)
    assert all(type(v) is torch.Tensor and v.device == CPU for v in back)
    assert torch.nn.Parameter(x).device == CUDA


def test_pretended_moves_copy(pretended):
    x = torch.zeros(3, device="cuda")
    there, here = x.cpu().to("cuda"), x.cpu()
    x += 1
    assert x.tolist() == [1, 1, 1] and there.tolist() == here.tolist() == [0, 0, 0]
    assert here.copy_(x).device == CPU and x.copy_(here + 1).tolist() == [2, 2, 2]


MEETINGS = {
    "add": lambda x, y, i: x + y,
    "into a number": lambda x, y, i: y.sum().add_(x.sum()),
    "plus a CUDA number": lambda x, y, i: y + x.sum(),
    "cat": lambda x, y, i: torch.cat([x, y]),
    "matmul": lambda x, y, i: x @ y.T,
    "stack": lambda x, y, i: torch.stack([x.sum(), y.sum()]),
    "gather": lambda x, y, i: x.gather(0, i[None]),
    "index_select": lambda x, y, i: x.index_select(0, i),
    "index_add": lambda x, y, i: x.index_add_(0, i, x[i]),
    "CPU by CUDA index": lambda x, y, i: y[i.to("cuda")],
    "assignment": lambda x, y, i: x.__setitem__(i, y),
    "equal": lambda x, y, i: x.equal(y),
    "generator": lambda x, y, i: torch.rand(2, generator=torch.Generator(), device="cuda"),
    "normal": lambda x, y, i: x.normal_(generator=torch.Generator()),
    "layer": lambda x, y, i: nn.Linear(3, 2)(x),
    "layer there": lambda x, y, i: nn.Linear(3, 2).to(x.device)(y),
    "gradient": lambda x, y, i: setattr(x.requires_grad_(), "grad", y),
    "foreach": lambda x, y, i: torch._foreach_mul_([x, y], 2.0 * x.sum()),
    "vmap": lambda x, y, i: vmap(torch.dot)(x, y),
    "grad": lambda x, y, i: vmap(grad(torch.dot), in_dims=(0, None))(x, y[0]),
}


@pytest.mark.parametrize("name", MEETINGS)
def test_what_torch_refuses(name, device):
    x, y, i = torch.zeros(2, 3, device=device), torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises((RuntimeError, IndexError), match="device"):
        MEETINGS[name](x, y, i)


def test_what_torch_allows(device):
    x, number, i = torch.ones(2, 3, device=device), torch.tensor(2.0), torch.tensor([1, 0])
    found = x * number, number - x, x**number, torch.where(x > number, x, number), x[i]
    assert all(v.device == CUDA for v in found)
    x[i] = number
    x[:, i] = x[:, i] + 1
    assert x.sum().item() == 2 * (3 + 3 + 2)
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()
    with pytest.raises(TypeError, match="numpy"):
        np.asarray(x)


def network(device):
    """Layers with a buffer; their parameters stay the objects that they were."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    before = list(made.parameters())
    made = made.to(device, F64)
    assert all(one is other for one, other in zip(before, made.parameters(), strict=True))
    return made


def test_modules_move_as_they_are(device):
    made, like = network(device), torch.zeros(1, device=device)
    parts = [*made.parameters(), *nn.Linear(2, 2).to(like).parameters(), *made.buffers()]
    assert all(part.device == CUDA for part in parts)
    assert all(isinstance(part, nn.Parameter) for part in parts[:8])
    other = deepcopy(made)
    parts = [*other.parameters(), *other.buffers()]
    assert all(part.device == CUDA for part in parts) and len(list(other.parameters())) == 6
    made.load_state_dict({name: part.cpu() + 1 for name, part in other.state_dict().items()})
    agree(made[0].bias.detach(), other[0].bias.detach().cpu() + 1)
    back = [*made.cpu().parameters(), *made.buffers()]
    assert all(part.device == CPU and not isinstance(part, Pretend) for part in back)
    assert all(isinstance(part, nn.Parameter) for part in back[:6])


@pytest.mark.parametrize("kind", [torch.optim.Adam, partial(torch.optim.AdamW, fused=True)])
def test_training_by_gradients(kind, device):
    given, weights = torch.linspace(-1, 2, 18, dtype=F64).reshape(6, 3), []
    for place in (device, CPU):
        made = network(place)
        optimizer = kind(made.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            made(given.to(place)).square().sum().backward()
            assert all(part.grad.device == part.device for part in made.parameters())
            nn.utils.clip_grad_norm_(made.parameters(), 1.0)
            optimizer.step()
            state = optimizer.state_dict()
            optimizer = kind(made.parameters())
            optimizer.load_state_dict(state)
        weights.append((made[0].weight.detach(), optimizer.state[made[0].weight]["exp_avg"]))
    for found, wanted in zip(*weights, strict=True):
        agree(found, wanted)


def test_gradients_of_many(device):
    x, y = torch.linspace(0, 1, 6, dtype=F64).reshape(2, 3), torch.ones(3, dtype=F64)

    def found(x, y):
        slopes = vmap(grad(lambda own, other: (own.sin() * other).sum()), in_dims=(None, 0))
        return nn.functional.layer_norm(slopes(y, x), (3,))

    agree(found(x.to(device), y.to(device)), found(x, y))


# The package


def test_grids(device):
    index = torch.tensor([3, 70, 41])
    grid, rotation = RotationGrid(1), random_rotations(2, torch.Generator().manual_seed(1), F64)
    agree(grid.children(index.to(device)), grid.children(index))
    agree(grid.parent(index.to(device)), grid.parent(index))
    agree(grid.cell(rotation.to(device)), grid.cell(rotation))
    agree(grid.cells_within(rotation[0].to(device), 40), grid.cells_within(rotation[0], 40))
    agree(grid.matrices(index.to(device), F64, device), grid.matrices(index, F64))
    shifts, some = ShiftGrid(6.0, 3.0).refined(), torch.tensor([[1.0, -2.0]], dtype=F64)
    agree(shifts.children(index.to(device)), shifts.children(index))
    agree(shifts.parent(index.to(device)), shifts.parent(index))
    agree(shifts.nearest(some.to(device)), shifts.nearest(some))
    agree(shifts.cells_within(some[0].to(device), 3.0), shifts.cells_within(some[0], 3.0))


def moved(device, **options):
    """A problem whose model and volume were moved; its stack stays."""
    problem = make_problem(**options)
    problem.model.to(device)
    problem.volume = problem.volume.to(device)
    problem.guide = Guide(rotation=Exact(), shift=Exact(), volume=Point(problem.volume))
    return problem


def pair(device, **options):
    """The same problem there and here."""
    return moved(device, **options), make_problem(**options)


@pytest.mark.parametrize("interpolation", ["linear", "nearest"])
def test_slices_and_their_insertion(interpolation, device):
    rotations = random_rotations(5, torch.Generator().manual_seed(1), F64)
    results = []
    for problem, place in zip(
        pair(device, interpolation=interpolation), (device, CPU), strict=True
    ):
        slicer, turned = problem.model.volume.slicer, rotations.to(place)
        slices = slicer.slices(problem.volume, turned)
        insertion = Insertion(slicer, point_group("C2"))
        insertion.add(slices, slices.abs(), turned)
        equations = insertion.equations() + insertion.equations()
        results.append((slices, equations.right_side(), equations.apply(problem.volume)))
    for found, wanted in zip(*results, strict=True):
        agree(found, wanted)


def guide(problem, route):
    """Treatments of the poses by a name, at the problem's volume."""
    volume, stack = problem.volume, problem.stack
    rotation, shift = stack.rotation.to(volume), stack.shift.to(volume)
    exact = Exact(0.99, coarse_order=0, least=2)
    treatments = {
        "dense": (Exact(), Exact()),
        "pruned": (exact, exact),
        "local": (Local(rotation, 40.0), Local(shift, 6.0)),
        "known": (Known(rotation), Known(shift)),
    }
    rotation, shift = treatments[route]
    return Guide(rotation=rotation, shift=shift, volume=Point(volume))


ROUTES = {
    "dense": ("dense", {}),
    "dense, single group": ("dense", {"groups": 1, "contrast": False}),
    "two levels": ("pruned", {"order": 1, "refine": 1}),
    "three levels": ("pruned", {"order": 2, "refine": 2}),
    "local": ("local", {"order": 1, "refine": 1}),
    "known": ("known", {}),
}


@pytest.mark.parametrize("symmetry", ["C1", "C2"])
@pytest.mark.parametrize("name", ROUTES)
def test_e_step(name, symmetry, device):
    route, options = ROUTES[name]
    found, wanted = (
        e_step(one.model, guide(one, route), one.stack, symmetry=symmetry)
        for one in pair(device, n=5, **options)
    )
    agree_statistics(found, wanted)


def test_laws_raised_by_natural_gradients(device):
    plan, laws = Schedule(coarse_order=1, max_order=2, shift_extent=2.0, learn_steps=3), []
    for problem in pair(device, n=4):
        values = (
            part.to(problem.volume) for part in (problem.stack.rotation, problem.stack.shift)
        )
        turns, moves = map(PerImage, (ConcentratedLaw(), NormalShift(4.0)), values)
        tables = Guide(rotation=turns, shift=moves, volume=Point(problem.volume))
        half = Half(off_grid(problem.model), tables, torch.arange(4))
        for iteration in range(2):
            NaturalLearner(plan, seed=3).learn(half, problem.stack, iteration, 2)
        laws.append((turns.numbers.data, moves.numbers.data))
    for found, wanted in zip(*laws, strict=True):
        agree(found, wanted, rtol=1e-6, atol=1e-6)  # rounding that some steps have made larger


def test_a_symmetric_grid(device):
    for one in (problems := pair(device, n=4, order=1, refine=1)):
        old = one.model.rotation
        one.model.rotation = type(old)(1, symmetry="D2", turn=old.turn, like=old.turn)
    found, wanted = (e_step(one.model, guide(one, "pruned"), one.stack) for one in problems)
    agree_statistics(found, wanted)


@pytest.mark.parametrize("exact", [True, False])
def test_m_step(exact, device):
    results = []
    for problem in pair(device, n=8):
        statistics = e_step(problem.model, problem.guide, problem.stack)
        equations, tau2 = statistics.insertion.equations(), problem.model.volume.tau2
        solution = solve_volume(equations, tau2, problem.volume, exact=exact)
        generator = torch.Generator().manual_seed(4)
        noise = statistics.insertion.noise(2, generator)
        draw = posterior_std(equations, tau2, noise, generator)
        update_noise(problem.model, statistics, rate=0.5)
        update_tau2(problem.model, solution)
        first = tau2.clone()
        tau2_from_fsc(problem.model, solution, torch.linspace(1, 0, 5))
        update_shift_sigma(problem.model, statistics)
        update_contrast(problem.model, statistics)
        buffers = dict(problem.model.named_buffers()).values()
        results.append([solution.volume, solution.weight, draw, first, *buffers])
    for found, wanted in zip(*results, strict=True):
        agree(found, wanted)


@pytest.mark.parametrize("route", ["dense", "pruned", "known"])
def test_a_law_of_the_volume(route, device):
    results = []
    for problem in pair(device, n=3, order=1, refine=1):
        one, tau2 = guide(problem, route), problem.model.volume.tau2
        one.volume = GaussianVolume(problem.volume, spread(tau2 / 9, 8))
        statistics = e_step(problem.model, one, problem.stack)
        one.volume.observe(statistics.insertion.equations())
        one.volume.settle(tau2)
        kl = one.volume.kl(problem.model.volume.prior())
        results.append((statistics, one.volume.variance.detach(), kl.detach()))
    agree_statistics(results[0][0], results[1][0])
    for found, wanted in zip(results[0][1:], results[1][1:], strict=True):
        agree(found, wanted)


def halves(problem, device, count, poses="ignore", name="exact-em"):
    """Halves of a stack, as a run makes them."""
    kind, stack, found = {"dtype": F64, "device": device}, problem.stack, []
    for part in torch.arange(len(stack)).chunk(count):
        model = build_model(stack, PLAN, image_power(stack), radius=2, **kind)
        recipe = Recipe(model, problem.volume, PLAN, len(stack), 0)
        found.append(Half(model, build_guide(recipe, family(name), stack, poses), part))
    return found


WAYS = [("exact-em", "ignore"), ("exact-em", "known"), ("exact-em", "local")]
WAYS += [("modal-em", "ignore")]


@pytest.mark.parametrize(("name", "poses"), WAYS)
@pytest.mark.parametrize("count", [1, 2])
def test_steps_of_em(count, name, poses, device):
    problem, states = make_problem(n=12, signal=6.0), []
    for place in (device, CPU):
        algorithm = EM(PLAN, 3, Solvent("auto"), "C2" if count == 1 else "C1")
        state = EMState(halves(problem, place, count, poses, name), shell=2)
        told = [algorithm.step(state, problem.stack) for _ in range(2)]
        packed = state.pack()
        state.unpack(packed)
        end = algorithm.e_step(state.halves[0], problem.stack, 0).summary
        states.append((state, told, end))
    (ours, our_told, our_end), (theirs, their_told, their_end) = states
    agree_all(our_end, their_end)
    assert [r.get("order") for r in our_told] == [r.get("order") for r in their_told]
    for one, other in zip(ours.halves, theirs.halves, strict=True):
        agree(one.guide.volume.coefficients.data, other.guide.volume.coefficients.data)


def test_the_gray_scale_of_a_reference(device):
    problem, found = make_problem(n=6), []
    for place in (device, CPU):
        half = halves(problem, place, 1)[0]
        words = match_amplitude(half, problem.stack, PLAN, "C1")
        found.append((words, half.guide.volume.coefficients.data))
    assert found[0][0] == found[1][0]
    agree(found[0][1], found[1][1])


@pytest.mark.parametrize(("name", "poses"), [WAYS[0], WAYS[2]])
def test_views(name, poses, device):
    """Masses of viewing directions."""
    problem, found = make_problem(n=4), []
    for place in (device, CPU):
        half = halves(problem, place, 1, poses, name)[0]
        found.append(family_views(half, problem.stack, torch.arange(0, 4, 2), PLAN, "C1"))
    for one, other in zip(*map(astuple, found), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    assert _spread(found[0].mass[0].to(device)) == _spread(found[0].mass[0])


@pytest.mark.parametrize("kind", ["sphere", "auto", "given"])
def test_solvent(kind, device):
    volume, mask = make_problem().volume, torch.rand(8, 8, 8, generator=torch.Generator())
    solvent = Solvent(kind, mask)
    agree(solvent(volume.to(device), 5.0), solvent(volume, 5.0))


def test_starts_from_nothing(device):
    problem, found = make_problem(box=12, n=12, signal=6.0), []
    plan = Schedule(starts=1, start_steps=3, start_images=8, start_radius=4)
    power = image_power(problem.stack)
    for place in (device, CPU):
        algorithm, state = AbInitio(plan, 5, power, "C2", F64, place), AbInitioState()
        for _ in range(2):
            algorithm.step(state, problem.stack)
        state = algorithm.restore(state.pack(), problem.stack)
        while not state.done:
            algorithm.step(state, problem.stack)
        found.append(state)
    agree(found[0].winner.volume, found[1].winner.volume)
    assert found[0].winner.log_evidence == pytest.approx(found[1].winner.log_evidence)


def test_the_pyro_model(device):
    results = []
    for problem, place in zip(pair(device, n=3), (device, CPU), strict=True):
        batch = problem.stack.batch(torch.arange(3), problem.batch.band, F64, place)
        elbo = TraceEnum_ELBO(max_plate_nesting=1)
        loss = elbo.differentiable_loss(problem.model, problem.guide, batch)
        loss.backward()
        results.append((loss.detach(), problem.guide.volume.coefficients.grad))
    for found, wanted in zip(*results, strict=True):
        agree(found, wanted)


def test_draws_of_the_pyro_model(device):
    # random numbers are the CPU's, so that a seed means the same everywhere
    results = []
    for problem, place in zip(pair(device, n=3), (device, CPU), strict=True):
        batch = problem.stack.batch(torch.arange(3), problem.batch.band, F64, place)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            law = problem.model.likelihood(
                problem.model.volume.prior().sample(),
                problem.model.rotation.prior().expand([3]).sample(),
                problem.model.shift.prior().expand([3]).sample(),
                batch,
            )
            results.append((law.mean, law.sample()))
    for found, wanted in zip(*results, strict=True):
        agree(found, wanted)


def test_a_mean_of_which_a_part_is_not_seen(device):
    """It is zero there; what solves full ranks alone has no answer on CUDA."""
    operators = torch.rand(4, 3, 5, dtype=F64, generator=torch.Generator().manual_seed(1))
    operators[..., 4] = 0
    images = operators.sum(-1)
    found = least_squares_mean(operators.to(device), images.to(device))
    agree(found, torch.tensor([1, 1, 1, 1, 0], dtype=F64))


# Whole fits


class Stopper(Quiet):
    """Stops a run at its second step."""

    def step(self, record):
        if record["iteration"] == 2:
            raise KeyboardInterrupt


OUTPUTS = ("volume.mrc", "volume_std.mrc", "posterior.nc", "particles.star", "metrics.jsonl")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Twenty images of a bead walk, 12 pixels of 8 A."""
    generator = torch.Generator().manual_seed(7)
    folder = tmp_path_factory.mktemp("stack")
    return simulate(bead_walk(20, 12, 8.0, generator), 8.0, 20, 3.0, generator, out=folder)


def config(experiment, start, device):
    """A short fit in double precision; ``start`` says from what."""
    plan = Schedule(
        max_iterations=3,
        coarse_order=0,
        max_order=1,
        starts=1,
        start_steps=2,
        start_images=8,
        start_radius=4,
    )
    known = start == "known"
    return FitConfig(
        str(experiment.truth if known else experiment.particles),
        reference=None if start == "nothing" else str(experiment.truth_map),
        poses="known" if known else "ignore",
        half_sets=start == "half sets",
        seed=3,
        threads=1,
        device=device,
        double=True,
        schedule=plan,
    )


def agree_results(ours, theirs):
    """Assert that two fits ended alike, in the CPU's memory: three steps multiply the rounding."""
    loose = {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(ours.volume, theirs.volume, **loose)
    torch.testing.assert_close(ours.volume_std, theirs.volume_std, **loose)
    torch.testing.assert_close(ours.curve, theirs.curve, **loose)
    assert ours.trust == theirs.trust
    for item in fields(ours.posterior):
        values = [getattr(result.posterior, item.name) for result in (ours, theirs)]
        torch.testing.assert_close(*values, **loose, equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["reference", "nothing", "half sets", "known"])
def test_whole_fit(start, experiment, device, tmp_path):
    results = [
        run_fit(config(experiment, start, word), tmp_path / word) for word in ("cuda", "cpu")
    ]
    assert all((tmp_path / "cuda" / name).stat().st_size for name in OUTPUTS)
    agree_results(*results)


def test_resume(experiment, device, tmp_path):
    settings = config(experiment, "reference", "cuda")
    whole = run_fit(settings, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run_fit(settings, tmp_path / "stopped", observer=Stopper())
    agree_results(run_fit(settings, tmp_path / "stopped", resume=True), whole)


@pytest.mark.parametrize("word", ["cuda:99", "gpu", "meta"])
def test_a_device_that_is_not_there(word, experiment, tmp_path):
    with pytest.raises(InputError, match=f"--device {word}.*CUDA device that this machine has"):
        run_fit(config(experiment, "reference", word), tmp_path / "fit")
    assert not (tmp_path / "fit").exists()
