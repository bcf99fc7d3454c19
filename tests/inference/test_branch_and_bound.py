"""Branch and bound: the arg max of the whole grid, what it costs, and that nothing else changes."""

from dataclasses import replace

import pytest
import torch
from brute_force import BruteForce
from problems import make_problem

from cryoprob.checks import InputError
from cryoprob.fourier.gaussian_map import GaussianMap
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference import branch_and_bound
from cryoprob.inference.bounds import BOUNDS
from cryoprob.inference.branch_and_bound import Best, BranchAndBound, Ladder
from cryoprob.inference.config import FitConfig
from cryoprob.inference.e_step import e_step
from cryoprob.inference.filtered import filter_images
from cryoprob.inference.guide import Guide
from cryoprob.inference.loop import Quiet
from cryoprob.inference.run import run_fit
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.search import best_poses
from cryoprob.inference.treatments.bounded import Bounded
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.treatments.point import Point
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.simulate import simulate
from cryoprob.particles import ParticleStack
from cryoprob.phantoms import bead_walk

F64 = torch.float64
GRIDS = [(0, 0), (1, 0), (2, 1), (2, 0)]
"""Orders of the finest grid and of the coarsest."""


def modal(problem, kind=Bounded, *args, **options):
    rotation, shift = kind(*args, **options), kind(*args, **options)
    return Guide(rotation=rotation, shift=shift, volume=Point(problem.volume))


def search(problem, bound, coarse=0, **options):
    """Poses of all images (one optics group), and scores worked out per pose of the grid."""
    model, volume = problem.model, problem.volume
    images = filter_images(model, problem.stack, torch.arange(len(problem.stack)))
    ladder, start = Ladder.of(model, volume, BOUNDS[bound], coarse), None
    found = BranchAndBound(ladder, images, 2**23)
    if BOUNDS[bound].inside and ladder.coarser:
        beam = Modal(8, coarse_order=coarse)
        start = Best(*best_poses(model, volume, beam, images))
    best = found.search(start)
    poses = len(model.rotation.cells()) * len(model.shift.points())
    return best, found.scored / poses


def whole(problem):
    """The arg max by the dense search."""
    model = problem.model
    images = filter_images(model, problem.stack, torch.arange(len(problem.stack)))
    return Best(*best_poses(model, problem.volume, Modal(), images))


def same(one, other):
    """Assert equal poses and log joints, to rounding of sums of 1000 nats in float64."""
    for name in ("value", "rotation", "shift"):
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), rtol=1e-10, atol=1e-10
        )


def noiseless(problem):
    """The problem with images of its own grid, without noise."""
    model, stack, generator = problem.model, problem.stack, torch.Generator().manual_seed(2)
    rotations, shifts = model.rotation.matrices(), model.shift.points()
    cells = torch.randint(len(rotations), (len(stack),), generator=generator)
    moves = torch.randint(len(shifts), (len(stack),), generator=generator)
    batch = problem.batch
    slices = model.volume.slices(problem.volume, rotations[cells])
    clean = slices * shift_phase(model.band, shifts[moves], stack.pixel_size)
    clean = clean * batch.ctf[:, : len(model.band)]
    poses = stack.optics, rotations[cells], shifts[moves]
    problem.stack = ParticleStack.from_arrays(model.band.unpack(clean), stack.pixel_size, *poses)
    return problem


@pytest.mark.parametrize("signal", [0.01, 2.0, 30.0])
@pytest.mark.parametrize(("order", "coarse"), GRIDS)
def test_the_sure_bound_finds_the_arg_max_always(order, coarse, signal):
    # with shifts so far apart that the prior is not the same all over a coarse cell
    options = {"order": order, "refine": order - coarse, "signal": signal, "step": 12.0}
    problem = make_problem(n=4, groups=1, **options)
    same(search(problem, "cells", coarse)[0], whole(problem))


def test_by_brute_force_through_the_e_step():
    problem = make_problem(order=1, refine=1)
    brute = BruteForce(problem)
    guide = modal(problem, Bounded, "cells", coarse_order=0)
    assert guide.kind == "elbo"
    found = e_step(problem.model, guide, problem.stack).summary
    best, place = brute.joint.flatten(1).max(1)
    torch.testing.assert_close(found.bound, best, rtol=1e-10, atol=1e-10)
    count = brute.joint.shape[2]
    torch.testing.assert_close(found.rotation, brute.rotations[place // count])
    torch.testing.assert_close(found.shift, brute.shifts[place % count])


NOISELESS = [(*grids, bound) for grids in GRIDS for bound in BOUNDS]
NOISELESS.remove((2, 0, "points"))  # centers 60 degrees apart speak for nothing


@pytest.mark.parametrize(("order", "coarse", "bound"), NOISELESS)
def test_noiseless_images_are_found(order, coarse, bound):
    settings = {"order": order, "refine": order - coarse, "contrast": False, "groups": 1}
    problem = noiseless(make_problem(n=4, signal=5.0, **settings))
    best = search(problem, bound, coarse)[0]
    same(best, whole(problem))
    torch.testing.assert_close(best.rotation, problem.stack.rotation)
    torch.testing.assert_close(best.shift, problem.stack.shift)


@pytest.mark.parametrize("signal", [0.5, 3.0, 30.0])
def test_points_are_sure_on_one_grid(signal):
    problem = make_problem(box=12, n=8, order=1, groups=1, signal=signal)
    same(search(problem, "points", 1)[0], whole(problem))


@pytest.mark.parametrize(
    ("bound", "signal"), [("probable", 3.0), ("probable", 30.0), ("points", 3.0)]
)
def test_the_other_bounds_find_what_a_strong_signal_shows(bound, signal):
    problem = make_problem(box=16, n=15, order=2, refine=1, groups=1, signal=signal)
    same(search(problem, bound, 1)[0], whole(problem))


def test_points_give_up_cells_for_their_centers_sake():
    # far from the finest grid centers say little, and a strong signal lets nothing pass for noise
    problem = make_problem(box=16, n=15, order=2, refine=2, groups=1, signal=30.0)
    best, wanted = search(problem, "points", 0)[0], whole(problem)
    lost = wanted.value - best.value
    assert float(lost.min()) > -1e-7 and float(lost.max()) > 1
    same(search(problem, "cells", 0)[0], wanted)


@pytest.mark.parametrize("bound", BOUNDS)
def test_most_of_the_grid_is_never_looked_at(bound):
    problem = make_problem(box=12, n=4, order=3, refine=2, groups=1, signal=30.0)
    scored = search(problem, bound, 1)[1]
    assert float(scored.max()) < 0.2


def test_noise_leaves_points_nothing_to_give_up():
    # every pose is scored in both bands, of which the first has 36 % of the numbers
    problem = make_problem(box=12, n=5, order=2, refine=1, groups=1, signal=0.5)
    assert float(search(problem, "points", 1)[1].min()) > 1.35


@pytest.mark.parametrize("bound", BOUNDS)
def test_an_image_does_not_depend_on_its_neighbors(bound, monkeypatch):
    problem = make_problem(n=6, order=1, refine=1, signal=6.0)
    guide = modal(problem, Bounded, bound, coarse_order=0, beam=1)
    together = e_step(problem.model, guide, problem.stack).summary
    order = torch.tensor([5, 2, 4])
    some = e_step(problem.model, guide, problem.stack, order).summary
    torch.testing.assert_close(some.bound[order], together.bound[order], rtol=0, atol=1e-10)
    assert torch.equal(some.rotation[order], together.rotation[order])
    # nor on how much is held at once
    monkeypatch.setattr(branch_and_bound, "_FAMILIES", 200)
    small = modal(problem, Bounded, bound, coarse_order=0, beam=1, block_bytes=2**14)
    parts = e_step(problem.model, small, problem.stack).summary
    torch.testing.assert_close(parts.bound, together.bound, rtol=0, atol=1e-10)
    assert torch.equal(parts.rotation, together.rotation)


@pytest.mark.parametrize("bound", ["probable", "cells"])
def test_single_precision(bound):
    wide, narrow = (
        make_problem(n=8, order=2, refine=1, groups=1, signal=5.0, dtype=kind)
        for kind in (F64, torch.float32)
    )
    best, found = whole(wide), search(narrow, bound, 1)[0]
    # 100 nats to 6e-8
    assert float((best.value - found.value).abs().max()) < 1e-3
    torch.testing.assert_close(found.rotation.double(), best.rotation, rtol=0, atol=1e-6)


@pytest.mark.parametrize("symmetry", ["C1", "C4", "D2"])
def test_a_turned_grid_of_one_asymmetric_unit(symmetry):
    problem = make_problem(n=4, order=2, refine=1, groups=1, signal=3.0)
    turn = random_rotations(1, torch.Generator().manual_seed(2), F64)[0]
    old = problem.model.rotation
    problem.model.rotation = type(old)(2, symmetry=symmetry, turn=turn, like=turn)
    same(search(problem, "cells", 1)[0], whole(problem))
    same(search(problem, "points", 2)[0], whole(problem))


def test_under_a_law_of_volumes():
    problem = make_problem(n=4, order=2, refine=1, groups=1, signal=3.0)
    generator = torch.Generator().manual_seed(4)
    spectrum = torch.rand(8, 8, 8, generator=generator, dtype=F64)
    spectrum = spectrum + torch.roll(spectrum.flip(0, 1, 2), (1, 1, 1), (0, 1, 2))
    plain = whole(problem)
    problem.volume = GaussianMap(problem.volume, spectrum)
    assert float((whole(problem).value - plain.value).abs().min()) > 0.1
    same(search(problem, "cells", 1)[0], whole(problem))
    same(search(problem, "points", 2)[0], whole(problem))


def test_polishing_goes_on_from_there():
    problem = make_problem(n=6, order=1, refine=1, signal=6.0)
    guide = modal(problem, Bounded, coarse_order=0, polish=4)
    assert guide.kind == "profile_log_joint"
    found = e_step(problem.model, guide, problem.stack).summary
    plain = e_step(problem.model, modal(problem, Modal, polish=4), problem.stack).summary
    torch.testing.assert_close(found.bound, plain.bound, rtol=1e-9, atol=1e-9)


def test_senseless_settings_are_refused():
    with pytest.raises(InputError, match="bound: expected points or probable or cells, got 'all'"):
        Bounded("all")
    with pytest.raises(InputError, match="beam"):
        Bounded(beam=0)
    for bound in ("none", *BOUNDS):
        assert Schedule.parse({"bound": bound}).bound == bound
    with pytest.raises(InputError, match="bound: expected none or points or probable or cells"):
        Schedule(bound="all")
    problem = make_problem(order=2)
    with pytest.raises(InputError, match="expected 2 or more, got 0 refinements"):
        e_step(problem.model, modal(problem, coarse_order=0), problem.stack)


class Stopped(Exception):
    """Raised by an observer in the middle of a fit."""


class Stopper(Quiet):
    def __init__(self):
        self.left = 1

    def step(self, record):
        if not self.left:
            raise Stopped
        self.left -= 1


def test_a_fit_by_branch_and_bound_resumes_to_the_same_bytes(tmp_path):
    generator = torch.Generator().manual_seed(7)
    drawn = simulate(bead_walk(20, 16, 8.0, generator), 8.0, 12, 0.5, generator, out=tmp_path)
    plan = Schedule(max_iterations=2, max_order=1, coarse_order=0, beam=2, bound="probable")
    reference = str(drawn.truth_map)
    settings = {"seed": 3, "threads": 1, "mask": "sphere", "schedule": plan}
    config = FitConfig(str(drawn.particles), "modal-em", reference, 30.0, **settings)
    whole = run_fit(config, tmp_path / "whole")
    assert whole.history[-1]["kind"].startswith("elbo")
    with pytest.raises(Stopped):
        run_fit(config, tmp_path / "cut", observer=Stopper())
    run_fit(config, tmp_path / "cut", resume=True)
    for name in ("metrics.jsonl", "particles.star", "volume.mrc"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    beam = run_fit(replace(config, schedule=replace(plan, bound="none")), tmp_path / "beam")
    assert beam.history[0]["bound"] < whole.history[0]["bound"]
