"""Modal searches: the arg max by brute force, beams, and what the M-step gets."""

import pytest
import torch
from brute_force import BruteForce
from problems import make_problem

from cryoprob.checks import InputError
from cryoprob.inference.e_step import e_step
from cryoprob.inference.guide import Guide
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.treatments.point import Point


def modal(problem, **options):
    rotation, shift = Modal(**options), Modal(**options)
    return Guide(rotation=rotation, shift=shift, volume=Point(problem.volume))


def test_the_arg_max_by_brute_force():
    problem = make_problem()
    brute = BruteForce(problem)
    guide = modal(problem)
    found = e_step(problem.model, guide, problem.stack).summary
    best, place = brute.joint.flatten(1).max(1)
    torch.testing.assert_close(found.bound, best, rtol=1e-10, atol=1e-10)
    count = brute.joint.shape[2]
    torch.testing.assert_close(found.rotation, brute.rotations[place // count])
    torch.testing.assert_close(found.shift, brute.shifts[place % count])
    # on a grid the Dirac is an ELBO: its gap is minus the log of the cell's posterior mass
    mass = brute.weights.flatten(1).amax(1)
    torch.testing.assert_close(brute.evidence - found.bound, -mass.log(), rtol=1e-9, atol=1e-9)


def test_what_was_found_goes_into_the_map():
    problem = make_problem(groups=1)
    guide = modal(problem)
    ours = e_step(problem.model, guide, problem.stack).insertion.equations()
    known = Known(guide.rotation.values), Known(guide.shift.values)
    given = Guide(rotation=known[0], shift=known[1], volume=Point(problem.volume))
    theirs = e_step(problem.model, given, problem.stack).insertion.equations()
    torch.testing.assert_close(ours.right, theirs.right)
    torch.testing.assert_close(ours.stencil, theirs.stencil)


@pytest.mark.parametrize("signal", [2.0, 8.0])
def test_a_wide_beam_is_the_whole_grid_and_a_narrow_one_no_better(signal):
    problem = make_problem(n=8, order=1, refine=1, signal=signal)
    whole = e_step(problem.model, modal(problem), problem.stack).summary
    wide = e_step(problem.model, modal(problem, beam=200, coarse_order=0), problem.stack).summary
    torch.testing.assert_close(wide.bound, whole.bound, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(wide.rotation, whole.rotation)
    narrow = e_step(problem.model, modal(problem, beam=1, coarse_order=0), problem.stack).summary
    assert (narrow.bound <= whole.bound + 1e-9).all()
    assert (narrow.bound < whole.bound - 1e-9).any()


def test_polishing_leaves_the_grid_and_raises_the_log_joint():
    problem = make_problem(signal=6.0)
    from cryoprob.inference.filtered import filter_images
    from cryoprob.inference.local_search import climb

    guide = modal(problem)
    e_step(problem.model, guide, problem.stack)
    for group in (0, 1):
        index = (problem.stack.group == group).nonzero()[:, 0]
        images = filter_images(problem.model, problem.stack, index)
        pose = guide.rotation.values[index], guide.shift.values[index]
        at = climb(problem.model, problem.volume, images, *pose, 0)
        up = climb(problem.model, problem.volume, images, *pose, 5)
        assert (up.log_joint >= at.log_joint).all() and (up.log_joint > at.log_joint).any()
    polished = modal(problem, polish=5)
    assert polished.kind == "profile_log_joint"
    found = e_step(problem.model, polished, problem.stack).summary
    assert not torch.equal(found.rotation, guide.rotation.values)


def test_senseless_settings_are_refused():
    with pytest.raises(InputError, match="beam"):
        Modal(0)
    with pytest.raises(InputError, match="polish"):
        Modal(polish=-1)
