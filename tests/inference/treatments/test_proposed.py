import pytest
import torch
from problems import make_problem

from cryoprob.checks import InputError
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.e_step import e_step
from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.heads import Heads
from cryoprob.inference.laws.rotations import DiracRotation
from cryoprob.inference.laws.shifts import DiracShift
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.local import Local
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.inference.treatments.proposed import Proposed

F64 = torch.float64


def proposing(problem, rotation, shift, reach=(40.0, 6.0)):
    """The search near tables of hypotheses, [M, N, 3, 3] rotations and [N, 2] shifts."""
    law, values = DiracRotation(), rotation[0]
    if len(rotation) > 1:
        law, values = Heads(law, len(rotation)), rotation[0]
    turns = PerImage(law, values)
    if len(rotation) > 1:
        own = torch.stack([law.law.numbers(one) for one in rotation], 1).flatten(1)
        turns.numbers.data = torch.cat([own.new_zeros(len(own), len(rotation)), own], 1)
    moves = PerImage(DiracShift(1.0), shift)
    volume = Point(problem.volume)
    pair = (*(Proposed(p, r, mass=None) for p, r in zip((turns, moves), reach, strict=True)),)
    return Guide(rotation=pair[0], shift=pair[1], volume=volume)


def bound(problem, guide):
    return e_step(problem.model, guide, problem.stack).summary.bound


@pytest.fixture(scope="module")
def problem():
    return make_problem(n=5, order=1, refine=1, signal=4.0)


def test_everywhere_it_is_the_whole_grid(problem):
    rotation, shift = problem.stack.rotation[None], problem.stack.shift
    found = bound(problem, proposing(problem, rotation, shift, (180.0, 100.0)))
    torch.testing.assert_close(found, bound(problem, problem.guide), rtol=0, atol=1e-9)


def test_one_hypothesis_is_the_local_search_around_it(problem):
    rotation, shift = problem.stack.rotation, problem.stack.shift
    near = Local(rotation, 40.0), Local(shift, 6.0)
    local = Guide(rotation=near[0], shift=near[1], volume=Point(problem.volume))
    found = bound(problem, proposing(problem, rotation[None], shift))
    assert found.equal(bound(problem, local))


def test_hypotheses_are_joined_and_each_cell_counts_once(problem):
    generator = torch.Generator().manual_seed(3)
    other = random_rotations(len(problem.stack), generator, F64)
    true, shift = problem.stack.rotation, problem.stack.shift
    both = bound(problem, proposing(problem, torch.stack([other, true]), shift))
    alone = [bound(problem, proposing(problem, one[None], shift)) for one in (other, true)]
    exact = bound(problem, problem.guide)
    assert (both <= exact + 1e-9).all() and (both < exact - 1e-6).any()
    assert (both >= torch.maximum(*alone) - 1e-9).all()
    assert (both <= torch.logaddexp(*alone) + 1e-9).all()
    twice = bound(problem, proposing(problem, torch.stack([true, true]), shift))
    torch.testing.assert_close(twice, alone[1], rtol=0, atol=1e-9)


def test_a_descent_loses_next_to_nothing():
    problem = make_problem(n=5, order=2, refine=2, signal=20.0, contrast=False)
    turns, moves = problem.stack.rotation[None], problem.stack.shift
    near = proposing(problem, turns, moves)
    for part in (near.rotation, near.shift):
        part.keep, part.coarse_order = Exact(0.999).keep, 0
    found, whole = bound(problem, near), bound(problem, problem.guide)
    # of sharp posteriors, at poses near: what a pruned search of the whole grid loses
    assert (found <= whole + 1e-9).all() and float((whole - found).max()) < 0.05


def test_a_grid_with_nothing_coarser_is_searched_itself():
    problem = make_problem(n=4, order=0)
    found = bound(problem, proposing(problem, problem.stack.rotation[None], problem.stack.shift))
    exact = bound(problem, problem.guide)
    assert (found <= exact + 1e-9).all() and torch.isfinite(found).all()


def test_its_law_learns_and_its_posterior_sums(problem):
    guide = proposing(problem, problem.stack.rotation[None], problem.stack.shift)
    assert guide.kind == "log_evidence" and guide.rotation.lawful is guide.rotation.proposal
    value = problem.stack.rotation, problem.stack.shift
    score = guide.log_score(problem.batch, *value)
    # Diracs at the values themselves: no squared distance
    torch.testing.assert_close(score, torch.zeros(5, dtype=F64), rtol=0, atol=1e-12)


def test_both_sites_or_neither(problem):
    guide = proposing(problem, problem.stack.rotation[None], problem.stack.shift)
    with pytest.raises(InputError, match="Proposed"):
        Guide(rotation=guide.rotation, shift=Exact(), volume=guide.volume)
    with pytest.raises(InputError, match="radius"):
        Proposed(guide.rotation.proposal, 0.0)
