"""The price of one pose and of a law of z, against sums by brute force."""

import pytest
import torch
from moving import moving

from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.inference.conformation_budget import (
    check_priced,
    conformation_budget,
    nodes_of,
)
from cryoprob.inference.grids import pose_grids
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.laws.rotations import DiracRotation
from cryoprob.inference.laws.shifts import DiracShift
from cryoprob.inference.laws.vectors import DiracVector, NormalVector
from cryoprob.inference.learn import seeded
from cryoprob.inference.linear_posterior import latents
from cryoprob.inference.objectives.augmented import Augmented
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.objectives.iwae import Iwae
from cryoprob.inference.objectives.ring_correlation import RingCorrelation
from cryoprob.inference.objectives.symmetric import Symmetric
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.structure_factors import Term

N, SEED = 5, 3
PLAN = Schedule(coarse_order=0, max_order=0, shift_extent=1.0, shift_step=1.0, mass=1.0)


@pytest.fixture(scope="module")
def problem():
    """Images of a molecule that moves along one mode, poses in the file."""
    return moving(n=N, values=(6.0,))


def half_of(problem, law, start):
    stack = problem.stack
    turns = PerImage(DiracRotation(), stack.rotation)
    moves = PerImage(DiracShift(10.0), stack.shift)
    point = Point(problem.truth)
    guide = Guide(rotation=turns, shift=moves, conformation=PerImage(law, start), volume=point)
    return Half(problem.model, guide, torch.arange(N))


def budget_of(problem, half, nodes=60):
    given = {"order": 0, "nodes": nodes, "seed": SEED}
    return conformation_budget(half, problem.stack, half.index, PLAN, **given)


@pytest.fixture(scope="module")
def table(problem):
    """Log p(image, cell, node) of a rule of 60 nodes, [N, Q, T, 60]; and the cells."""
    model, stack = problem.model, problem.stack
    rotation, shift = pose_grids(model, PLAN, 0, seed=SEED)
    batch = stack.batch(torch.arange(N), full_band(stack.box), torch.float64)
    z, weight = nodes_of(model.conformation, 60)
    found = []
    for turn in rotation.matrices():
        for move, mass in zip(shift.points(), shift.log_mass(), strict=True):
            at = turn.expand(N, 3, 3), move.expand(N, 2), batch, z[:, None].expand(60, N, 1)
            score = model.likelihood(problem.truth, *at).log_prob(batch.image)
            found.append((score + weight[:, None] + mass + rotation.log_mass).mT)
    cells = torch.stack(found, 1).reshape(N, len(rotation.matrices()), -1, 60)
    return cells, rotation.matrices(), shift.points()


def own(problem, table):
    """Log p(image, own cell, node), [N, 60]."""
    cells, turns, moves = table
    stack = problem.stack
    turn = torch.cdist(stack.rotation.flatten(1), turns.flatten(1)).argmin(1)
    move = torch.cdist(stack.shift, moves).argmin(1)
    return cells[torch.arange(N), turn, move]


def test_against_sums_over_all_cells_and_nodes(problem, table):
    half = half_of(problem, NormalVector(1, width=0.5), problem.z)
    found = budget_of(problem, half)
    mine = own(problem, table)
    pose = table[0].flatten(1).logsumexp(1) - mine.logsumexp(1)
    # the same nodes; linear modes are maps of the same voxels
    torch.testing.assert_close(found.pose, pose, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.evidence, found.bound + found.conformation + found.pose)
    assert (found.pose > 0).all() and (found.conformation > -1e-9).all()


def test_the_posterior_itself_costs_nothing_and_a_shifted_one_its_divergence(problem, table):
    mine, (z, _) = own(problem, table), nodes_of(problem.model.conformation, 60)
    weight = torch.softmax(mine, 1)
    mean = weight @ z
    width = (weight @ z.square() - mean.square()).sqrt()
    law = NormalVector(1)

    def priced(at):
        half = half_of(problem, law, at)
        half.guide.conformation.numbers.data = law.around(at, width[..., None].square())
        return budget_of(problem, half)

    exact, moved = priced(mean), priced(mean + 2 * width)
    # z's posterior is normal here; 5 images, 5 standard errors as they are told
    assert (exact.conformation.abs() < 5 * exact.error).all()
    assert exact.error.max() < 0.1  # 256 ratios that differ by less than they are
    # KL of normals two widths apart is 2; the ELBO is of 128 draws of a number of deviation 2
    assert ((moved.conformation - 2).abs() < 5 * moved.error).all()
    assert moved.error.max() < 0.4
    torch.testing.assert_close(moved.pose, exact.pose)


def test_a_dirac_of_z_has_no_finite_price(problem):
    found = budget_of(problem, half_of(problem, DiracVector(1), problem.z))
    assert found.bound.isneginf().all() and found.conformation.isposinf().all()
    assert torch.isfinite(found.pose).all() and torch.isfinite(found.evidence).all()


def test_one_site_known_and_the_other_not_is_refused(problem):
    half = half_of(problem, NormalVector(1), problem.z)
    known = problem.guide(problem.truth)
    given = {"rotation": known.rotation, "shift": half.guide.shift}
    half.guide = Guide(conformation=half.guide.conformation, volume=Point(problem.truth), **given)
    with pytest.raises(InputError, match="both known or both Diracs"):
        budget_of(problem, half)


def test_nodes_are_those_of_the_prior():
    prior = GaussianConformation(torch.tensor([1.0, 3.0], dtype=torch.float64))
    z, weight = nodes_of(prior, 4)
    assert z.shape == (16, 2) and float(weight.logsumexp(0)) == pytest.approx(0)
    # polynomials up to degree 7 are exact
    second, fourth = (weight.exp() @ z**k for k in (2, 4))
    torch.testing.assert_close(second, prior.scale**2)
    torch.testing.assert_close(fourth, 3 * prior.scale**4)
    with pytest.raises(InputError, match="at most 200 nodes"):
        nodes_of(prior, 15)


def test_known_poses_cost_nothing(problem):
    """What z's law costs there is what it costs at the cell of a Dirac, were that the pose."""
    half = half_of(problem, NormalVector(1, width=0.5), problem.z)
    known = problem.guide(problem.truth)
    given = {"rotation": known.rotation, "shift": known.shift, "volume": Point(problem.truth)}
    half.guide = Guide(conformation=half.guide.conformation, **given)
    found = budget_of(problem, half)
    assert not found.pose.any()
    law = Elbo(400)
    batch = problem.stack.batch(torch.arange(N), full_band(problem.stack.box), torch.float64)
    with seeded(1), torch.no_grad():
        bound = law(problem.model, half.guide, problem.truth, batch)
    # closed form: the exact posterior's evidence
    exact = latents(problem.model, known, problem.stack).log_evidence
    # 128 and 400 draws: 5 standard errors as they are told, for both
    assert ((found.bound - bound).abs() < 5 * 1.2 * found.error).all()
    assert ((found.evidence - exact).abs() < 5 * found.error).all()


class Pull(Term):
    """A law of z beside its prior: normal around 1.5."""

    def value(self, volume, coefficients, conformation):
        return -2 * (conformation - 1.5).square().sum(-1)


def test_terms_are_part_of_the_joint(problem, table):
    """The posterior under them costs nothing, the one without them its divergence."""
    old, (z, _) = problem.model, nodes_of(problem.model.conformation, 60)
    parts = old.volume, old.rotation, old.shift, old.noise, old.pixel_size, None, old.conformation
    model, law = ParticleModel(*parts, [Pull("pull")]), NormalVector(1)
    bare, pull = own(problem, table), -2 * (z[:, 0] - 1.5).square()
    mine, found = bare + pull, []
    for joint in (mine, bare):
        weight = torch.softmax(joint, 1)
        mean = weight @ z
        width = (weight @ z.square() - mean.square()).sqrt()
        half = half_of(problem, law, mean)
        half.model = model
        half.guide.conformation.numbers.data = law.around(mean, width[..., None].square())
        found.append(budget_of(problem, half))
    exact, other = found
    pose = (table[0] + pull).flatten(1).logsumexp(1) - mine.logsumexp(1)
    torch.testing.assert_close(exact.pose, pose, rtol=0, atol=1e-6)  # the same nodes
    weight = torch.softmax(bare, 1)
    divergence = (weight * (bare.log_softmax(1) - mine.log_softmax(1))).sum(1)
    # both posteriors are normal; 5 images, 5 standard errors as they are told
    assert (exact.conformation.abs() < 5 * exact.error).all() and exact.error.max() < 0.1
    assert ((other.conformation - divergence).abs() < 5 * other.error).all()
    assert float(divergence.max()) > 10 * float(exact.error.max())  # it would be seen


def test_terms_at_known_poses_and_diracs(problem):
    """The evidence is that of the joint, by quadrature."""
    old, known = problem.model, problem.guide(problem.truth)
    parts = old.volume, old.rotation, old.shift, old.noise, old.pixel_size, None, old.conformation
    half = half_of(problem, DiracVector(1), problem.z)
    given = {"rotation": known.rotation, "shift": known.shift, "volume": Point(problem.truth)}
    guide = Guide(conformation=half.guide.conformation, **given)
    found = budget_of(problem, Half(ParticleModel(*parts, [Pull("pull")]), guide, half.index))
    z, log_weight = nodes_of(old.conformation, 60)
    batch = problem.stack.batch(half.index, full_band(problem.stack.box), torch.float64)
    poses = problem.stack.rotation, problem.stack.shift, batch
    score = old.likelihood(problem.truth, *poses, z[:, None].expand(60, N, 1))
    joint = score.log_prob(batch.image) + (log_weight - 2 * (z[:, 0] - 1.5).square())[:, None]
    assert ((found.evidence - joint.logsumexp(0)).abs() < 5 * found.error).all()
    assert found.error.max() < 0.3


def test_what_is_no_density_of_images_has_no_price(problem):
    half = half_of(problem, NormalVector(1), problem.z)
    ring = RingCorrelation(3.0)
    for objective in (ring, Augmented(ring)):
        with pytest.raises(InputError, match="one by the ring_correlation"):
            check_priced(half, 3, objective)
        with pytest.raises(InputError, match="one by the ring_correlation"):
            plan = {"order": 0, "nodes": 3, "seed": SEED}
            conformation_budget(half, problem.stack, half.index, PLAN, objective=objective, **plan)
    for objective in (Elbo(), Iwae(2), Symmetric(), Augmented(Elbo())):
        check_priced(half, 3, objective)


def test_poses_with_densities_are_refused(problem):
    half = half_of(problem, NormalVector(1), problem.z)
    half.guide.rotation.has_density = True
    with pytest.raises(InputError, match="both known or both Diracs"):
        budget_of(problem, half)
