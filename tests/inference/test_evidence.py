"""The gap budget: rows that add up, gaps that are never negative, prices by brute force."""

import pytest
import torch
from brute_force import BruteForce
from problems import make_problem

from cryoprob.fourier.transforms import crop_map
from cryoprob.inference.build import build_model, image_power
from cryoprob.inference.cells import CellMasses, law_masses
from cryoprob.inference.compare import gridded
from cryoprob.inference.config import FAMILIES, HYBRIDS
from cryoprob.inference.e_step import e_step
from cryoprob.inference.evidence import (
    GridScores,
    budget,
    discretization,
    prices,
    scores,
    tempering,
)
from cryoprob.inference.families import Recipe, family
from cryoprob.inference.fixed_width import fixed_width
from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.heads import Heads
from cryoprob.inference.laws.rotations import ConcentratedLaw, DiracRotation
from cryoprob.inference.laws.shifts import DiracShift, NormalShift
from cryoprob.inference.levels import Level
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.io.mrc import read_map
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.simulate import Microscope, draw_images, draw_optics, draw_poses
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.particles import ParticleStack
from cryoprob.phantoms import PHANTOMS

EVERY = torch.arange(6)


@pytest.fixture(scope="module")
def problem():
    return make_problem(order=1, refine=1, signal=3.0, contrast=False)


def law_guide(problem, rotation, shift):
    turns = PerImage(rotation, problem.stack.rotation)
    moves = PerImage(shift, problem.stack.shift)
    return Guide(rotation=turns, shift=moves, volume=Point(problem.volume))


def guides(problem):
    point = Point(problem.volume)
    found = {
        "exact": Guide(rotation=Exact(), shift=Exact(), volume=point),
        "pruned": Guide(rotation=Exact(0.9, least=1, coarse_order=0), shift=Exact(), volume=point),
        "modal": Guide(rotation=Modal(), shift=Modal(), volume=point),
        "beam": Guide(
            rotation=Modal(1, coarse_order=0), shift=Modal(1, coarse_order=0), volume=point
        ),
        "svi": law_guide(problem, ConcentratedLaw(40.0), NormalShift(3.0)),
        "fixed": law_guide(
            problem, ConcentratedLaw(40.0, fixed=True), NormalShift(3.0, fixed=True)
        ),
        "heads": law_guide(problem, Heads(ConcentratedLaw(40.0), 3), NormalShift(3.0)),
        "dirac": law_guide(problem, DiracRotation(), DiracShift(3.0)),
        "dirac heads": law_guide(problem, Heads(DiracRotation(), 3), DiracShift(3.0)),
    }
    for name in ("modal", "beam"):
        e_step(problem.model, found[name], problem.stack)
    return found


@pytest.fixture(scope="module")
def budgets(problem):
    free = problem.continuous().model
    found = {}
    for name, guide in guides(problem).items():
        found[name] = budget(free, problem.model, guide, problem.stack, EVERY)
    return found


def by_image(found):
    """In the order of the stack (optics groups come one after the other)."""
    return found.index.argsort()


def test_the_evidence_by_brute_force(problem, budgets):
    wanted = BruteForce(problem).evidence
    for found in budgets.values():
        torch.testing.assert_close(found.evidence[by_image(found)], wanted, rtol=1e-9, atol=1e-9)


def test_rows_add_up_and_no_gap_is_negative(budgets):
    for name, found in budgets.items():
        total = found.bound + found.approximation + found.remainder
        torch.testing.assert_close(total, found.evidence, rtol=0, atol=1e-9, msg=name)
        assert (found.approximation > -1e-9).all() and (found.remainder > -1e-9).all(), name


def test_exact_has_no_gap_and_pruning_costs_at_most_its_mass(problem, budgets):
    assert float(budgets["exact"].gap.abs().max()) < 1e-9
    assert (budgets["pruned"].gap > 0).any()
    point = Point(problem.volume)
    whole = Exact(1.0, coarse_order=0)
    all_mass = Guide(rotation=whole, shift=Exact(), volume=point)
    found = budget(problem.model, problem.model, all_mass, problem.stack, EVERY)
    assert float(found.gap.abs().max()) < 1e-6


def test_a_dirac_costs_minus_the_log_of_its_cell(problem, budgets):
    mass = BruteForce(problem).weights.flatten(1).amax(1)
    for name in ("modal", "beam", "dirac"):
        found = budgets[name]
        wanted = -mass.log()[found.index]
        torch.testing.assert_close(found.approximation, wanted, rtol=1e-8, atol=1e-8)
    assert float(budgets["modal"].remainder.abs().max()) < 1e-9
    assert float(budgets["beam"].remainder.max()) > 1e-3


def test_a_bound_by_a_plain_sum(problem):
    """Sum over cells of q (log p(x, h) - log q), with q made cell by cell in Python."""
    guide = guides(problem)["heads"]
    brute = BruteForce(problem)
    found = budget(problem.continuous().model, problem.model, guide, problem.stack, EVERY)
    law_r, law_t = guide.rotation.law, guide.shift.law
    turns, moves = brute.rotations, brute.shifts
    for n in range(6):
        density = law_r(guide.rotation.numbers[n]).log_prob(turns)
        mass_r = density.exp() / density.exp().sum()
        density = law_t(guide.shift.numbers[n]).log_prob(moves)
        mass_t = density.exp() / density.exp().sum()
        q = mass_r[:, None] * mass_t
        wanted = (q * (brute.joint[n] - torch.log(q.clamp(min=1e-300)))).sum()
        at = int((found.index == n).nonzero())
        assert float(found.bound[at]) == pytest.approx(float(wanted.detach()), abs=1e-8)


def test_a_wider_family_has_the_smaller_approximation_gap(budgets):
    """More free numbers, and more heads, to what the optimizer leaves over (0.02 nats)."""
    chain = [("fixed", "svi"), ("dirac", "dirac heads"), ("dirac", "svi")]
    for narrow, wide in chain:
        assert (budgets[wide].approximation <= budgets[narrow].approximation + 0.02).all()
    more = float(budgets["heads"].approximation.mean())
    assert more < float(budgets["svi"].approximation.mean()) + 0.02


@pytest.mark.parametrize("width", [25.0, 60.0])
def test_cell_masses_by_counting(problem, width, false_alarm):
    """Draws of a law fall into the cells as often as their masses say (cells of 30 degrees)."""
    from scipy.stats import chi2

    law = ConcentratedLaw(width)
    numbers = law.numbers(problem.stack.rotation[:1])
    level = Level.of(problem.model)
    turns = level.rotation.matrices()
    mass = law_masses(law, numbers, turns, 2).exp()[0]
    torch.manual_seed(1)
    drawn = law(numbers).sample((4000,))[:, 0]
    cells = torch.cdist(drawn.flatten(1), turns.flatten(1)).argmin(1)
    counts = torch.bincount(cells, minlength=len(turns)).double()
    order = mass.argsort(descending=True)
    expected = 4000 * mass[order]
    big = expected > 20
    # the midpoint rule is off by a few percent where a cell is as wide as the law
    slack = 0.12 * expected
    away = ((counts[order] - expected).abs() - slack).clamp(min=0)[big]
    statistic = float((away**2 / expected[big]).sum())
    assert statistic < chi2.isf(false_alarm, int(big.sum()))
    assert float(mass.sum()) == pytest.approx(1, abs=1e-12)


def test_the_grids_own_error(problem):
    finer = make_problem(order=2, refine=2, signal=3.0, contrast=False)
    wanted = BruteForce(finer).evidence - BruteForce(problem).evidence
    found = discretization(problem.model, problem.volume, problem.stack, EVERY)
    order = torch.cat(
        [p.index for p in scores(problem.model, problem.volume, problem.stack, EVERY)]
    )
    torch.testing.assert_close(found, wanted[order], rtol=1e-8, atol=1e-8)


def test_prices_by_brute_force(problem):
    brute = BruteForce(problem)
    log_p = brute.weights.flatten(1).log()
    for found in scores(problem.model, problem.volume, problem.stack, EVERY):
        cost = prices(found, mass=0.9, factor=3.0)
        for row, n in enumerate(found.index.tolist()):
            ranked = brute.weights[n].flatten().sort(descending=True).values
            count = int((ranked.cumsum(0) < 0.9).sum()) + 1
            wanted = -torch.log(ranked[:count].sum())
            assert float(cost["pruning"][row]) == pytest.approx(float(wanted), abs=1e-9)
            assert float(cost["one cell"][row]) == pytest.approx(-float(log_p[n].max()), abs=1e-9)
            likelihood = (brute.joint[n] - brute.log_prior).flatten()
            flat_prior = brute.log_prior.expand_as(brute.joint[n]).flatten()
            hot = (flat_prior + 3 * likelihood).log_softmax(0)
            wanted = (hot.exp() * (hot - log_p[n])).sum()
            assert float(cost["tempering"][row]) == pytest.approx(float(wanted), abs=1e-7)


@pytest.mark.parametrize("beta", [0.25, 4.0])
def test_a_beta_elbo_ends_at_the_tempered_posterior(beta):
    """Free weights of all cells, raised by exponentiated gradients from autograd."""
    small = make_problem(contrast=False)
    brute = BruteForce(small)
    prior = brute.log_prior.expand_as(brute.joint).flatten(1)
    likelihood = brute.joint.flatten(1) - prior
    posterior = brute.weights.flatten(1).log()

    def value(q):
        return (q * (likelihood - beta * (q.clamp(min=1e-300).log() - prior))).sum(1)

    log_q = prior
    for _ in range(60):  # each leaves half of what is missing
        q = log_q.exp().requires_grad_()
        (slope,) = torch.autograd.grad(value(q).sum(), q)
        log_q = (log_q + slope / (2 * beta)).log_softmax(1)
    gap = (log_q.exp() * (log_q - posterior)).sum(1)
    for found in scores(small.model, small.volume, small.stack, EVERY):
        cost = tempering(found, 1 / beta)
        # 2^-60 of some hundred nats is left, and what float64 rounds
        torch.testing.assert_close(cost, gap[found.index], rtol=1e-9, atol=1e-9)
        assert (cost > 0.01).all()
        torch.testing.assert_close(tempering(found, 1.0), torch.zeros_like(cost))
        assert prices(found, mass=0.9, factor=1 / beta)["tempering"].equal(cost)
    # a top: less mass on any one cell of the heaviest, or more, has the smaller beta-ELBO
    best = log_q.argmax(1, keepdim=True)
    for step in (-0.1, 0.1):
        moved = log_q.scatter_add(1, best, torch.full_like(log_q[:, :1], step)).softmax(1)
        assert (value(moved) < value(log_q.exp())).all()


def best_of_width(brute, degrees, length):
    """Least divergence of a law of one width: climbs over all cells, from the best four."""
    turning = ConcentratedLaw(degrees, fixed=True)
    moving = NormalShift(3.0, length, fixed=True)
    log_p = brute.weights.log()
    found = []
    for n in range(3):
        best = log_p[n].flatten().topk(4).indices
        turn, move = best // len(brute.shifts), best % len(brute.shifts)
        numbers = [turning.numbers(brute.rotations[turn]), moving.numbers(brute.shifts[move])]
        free = [part.clone().requires_grad_() for part in numbers]
        ascent, kept = torch.optim.Adam(free, lr=0.05), torch.inf
        for _ in range(100):
            turned = turning(free[0][:, None]).log_prob(brute.rotations).log_softmax(1)
            moved = moving(free[1][:, None]).log_prob(brute.shifts).log_softmax(1)
            log_q = turned[:, :, None] + moved[:, None]
            gap = (log_q.exp() * (log_q - log_p[n])).sum((1, 2))
            kept = min(kept, float(gap.detach().min()))
            ascent.zero_grad()
            gap.sum().backward()
            ascent.step()
        found.append(kept)
    return torch.tensor(found, dtype=torch.float64)


def test_the_price_of_one_width_by_brute_force(problem):
    found = fixed_width(problem.model, problem.volume, problem.stack, EVERY[:3])
    assert (found.price >= 0).all() and (found.free > 0).all()
    assert found.index.sort().values.equal(EVERY[:3])
    brute = BruteForce(problem)
    wanted = best_of_width(brute, found.rotation_deg, found.shift_A)[found.index]
    # what the steps of either leave, as for the other laws
    torch.testing.assert_close(found.price + found.free, wanted, rtol=0, atol=0.02)
    assert float(found.price.max()) > 0.05


def laws_as_posteriors(problem, widths):
    """Scores whose posteriors are laws of isotropic widths (degrees), about the true poses."""
    level = Level.of(problem.model)
    turns, moves = level.rotation.matrices(), level.shift.points()
    rows = []
    for n, width in enumerate(widths):
        turning, moving = ConcentratedLaw(width, fixed=True), NormalShift(3.0, 4.0, fixed=True)
        pose = problem.stack.rotation[n : n + 1], problem.stack.shift[n : n + 1]
        turned = law_masses(turning, turning.numbers(pose[0]), turns, 2)
        moved = law_masses(moving, moving.numbers(pose[1]), moves, 1)
        rows.append(moved[:, :, None] + turned[:, None])
    nothing = torch.zeros(len(widths), dtype=torch.float64)
    joint = 7.0 + torch.cat(rows)
    return GridScores(torch.arange(len(widths)), joint, nothing, torch.zeros_like(joint[0]))


def test_one_width_costs_nothing_where_the_images_have_it(problem, monkeypatch):
    given = laws_as_posteriors(problem, [30.0, 30.0, 60.0])
    monkeypatch.setattr("cryoprob.inference.fixed_width.scores", lambda *_: iter([given]))
    found = fixed_width(problem.model, problem.volume, problem.stack, EVERY[:3])
    # 60 steps of Adam at a rate of 0.05 end that near
    assert float(found.free.max()) < 0.01
    assert found.rotation_deg == pytest.approx(30, rel=0.05)
    assert found.shift_A == pytest.approx(4, rel=0.05)
    assert float(found.price[:2].max()) < 0.02
    assert float(found.price[2]) > 0.3


def test_entropy_of_empty_cells():
    nothing = torch.tensor([[0.0, -torch.inf, -torch.inf]], dtype=torch.float64)
    masses = CellMasses(nothing, torch.tensor([[0.5, 0.5]], dtype=torch.float64).log())
    assert float(masses.entropy()) == pytest.approx(float(torch.tensor(2.0).log()))


def adk():
    """Twelve images of the embedded molecule, 16 pixels of 6 A, and its map."""
    generator = torch.Generator().manual_seed(3)
    volume = PHANTOMS["adk-open"](16, 6.0, generator).double()
    truth = ParticleModel(
        FourierVoxels(16, dtype=torch.float64),
        UniformRotation(dtype=torch.float64),
        GaussianShift(6.0, dtype=torch.float64),
        RadialNoise(torch.ones(1, 10, dtype=torch.float64)),
        6.0,
    )
    optics = draw_optics(12, generator, Microscope())
    drawn, variance = draw_poses(truth, volume, optics, 12, 4)
    images = torch.cat(list(draw_images(truth, volume, optics, drawn, 5)))
    assert float(variance.mean()) > 0
    return ParticleStack.from_arrays(images, 6.0, optics), volume


def ribosome(data):
    """Twelve real-size RELION images of the 70S set, cropped to 16 pixels, and the true map."""
    folder = data / "relion-70s"
    stack = ParticleStack.read(folder / "particles.star", box=16).subset(torch.arange(12))
    volume, _ = read_map(folder / "truth.mrc")
    return stack, crop_map(volume, 16).double()


@pytest.mark.parametrize("name", FAMILIES + HYBRIDS)
@pytest.mark.parametrize("source", ["adk", "ribosome"])
def test_the_identity_for_every_family(source, name, request):
    """evidence = bound + approximation + remainder, to 1e-4 nats and far below, trained or not."""
    stack, volume = adk() if source == "adk" else ribosome(request.getfixturevalue("data"))
    plan = Schedule(coarse_order=0, max_order=1, shift_extent=2.0, mass=1.0)
    power = image_power(stack)
    model = build_model(stack, plan, power, radius=5, dtype=torch.float64)
    row = family(name)
    guide = row.guide(Recipe(model, volume, row.settle(plan), len(stack), 3))
    grid = gridded(model, plan, 1, "C1")
    index = torch.arange(len(stack))
    if guide.rotation.searches:
        e_step(grid, guide, stack)
    found = budget(model, grid, guide, stack, index)
    dense = Guide(rotation=Exact(), shift=Exact(), volume=Point(volume))
    wanted = e_step(grid, dense, stack).summary.bound[found.index]
    torch.testing.assert_close(found.evidence, wanted, rtol=0, atol=1e-8)
    total = found.bound + found.approximation + found.remainder
    torch.testing.assert_close(total, found.evidence, rtol=0, atol=1e-8)
    assert (found.approximation > -1e-8).all() and (found.remainder > -1e-8).all()
    if name == "exact-em":
        assert float(found.gap.abs().max()) < 1e-4
    else:
        assert float(found.gap.max()) > 1e-3
