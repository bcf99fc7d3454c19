"""Search and gradients in turn: where poses are searched, when, and what is refused."""

import pytest
import torch
from problems import make_problem

from cryoprob.checks import InputError
from cryoprob.inference.alternating import Alternating, search_poses
from cryoprob.inference.grids import off_grid, on_grid, pose_grids
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.joint import Joint, JointState
from cryoprob.inference.laws.rotations import DiracRotation
from cryoprob.inference.laws.shifts import DiracShift
from cryoprob.inference.laws.vectors import NormalVector
from cryoprob.inference.objectives.profile_log_joint import ProfileLogJoint
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.search import best_poses
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.volumes.linear_modes import LinearModes

F64 = torch.float64
PLAN = Schedule(coarse_order=0, max_order=1, shift_extent=2.0, shift_step=1.0, turn=False)


@pytest.fixture
def problem():
    return make_problem(n=8, groups=1, contrast=False, signal=3.0).continuous()


def tables(problem):
    nowhere = torch.eye(3, dtype=F64).expand(8, 3, 3)
    return PerImage(DiracRotation(), nowhere), PerImage(
        DiracShift(2.0), torch.zeros(8, 2, dtype=F64)
    )


def searched(problem, model, volume):
    """Poses of all images by the search itself, at a map."""
    from cryoprob.inference.filtered import filter_images

    gridded = on_grid(model, *pose_grids(model, PLAN, PLAN.order(model.band.radius), seed=5))
    images = filter_images(gridded, problem.stack, torch.arange(8))
    _, turn, move = best_poses(gridded, volume, Modal(), images)
    return turn, move


def test_one_map_is_searched_as_ever(problem):
    turns, moves = tables(problem)
    guide = Guide(rotation=turns, shift=moves, volume=Point(problem.volume))
    half = Half(problem.model, guide, torch.arange(8))
    search_poses(half, problem.stack, PLAN, Modal(), seed=5, states=3)
    wanted = searched(problem, problem.model, problem.volume)
    found = (part.mode(problem.batch) for part in (turns, moves))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.detach(), other)


def test_each_image_is_searched_at_the_map_of_its_conformation(problem):
    """Two conformations far apart, two centers: each image as if that were the only map."""
    old, mode = problem.model, torch.flip(problem.volume, (0,))
    volume = LinearModes(8, 1, 0.5, 0.5, dtype=F64)
    prior = GaussianConformation(torch.ones(1, dtype=F64))
    parts = old.rotation, old.shift, old.noise, old.pixel_size, old.contrast
    model = ParticleModel(volume, *parts, prior)
    turns, moves = tables(problem)
    z = torch.tensor([-2.0, 2.0] * 4, dtype=F64)[:, None]
    point = Point(torch.stack([problem.volume, mode]))
    state = PerImage(NormalVector(1, width=0.1), z)
    guide = Guide(rotation=turns, shift=moves, conformation=state, volume=point)
    half = Half(model, guide, torch.arange(8))
    search_poses(half, problem.stack, PLAN, Modal(), seed=5, states=2)
    for sign in (-2.0, 2.0):
        wanted, _ = searched(problem, off_grid(problem.model), problem.volume + sign * mode)
        own = z[:, 0] == sign
        torch.testing.assert_close(turns.mode(problem.batch)[own].detach(), wanted[own])


def test_poses_are_random_first_and_searched_when_due(problem, monkeypatch):
    turns, moves = tables(problem)
    guide = Guide(rotation=turns, shift=moves, volume=Point(problem.volume))
    state = JointState(Half(problem.model, guide, torch.arange(8)))
    held = {"rotation": 1.0, "shift": 1.0}
    joint = Joint(ProfileLogJoint(), 3, steps=300, batch=8, first_radius=3, radius=3, held=held)
    calls = []
    monkeypatch.setattr(
        "cryoprob.inference.alternating.search_poses",
        lambda *a, **k: calls.append(state.iteration),
    )
    algorithm = Alternating(joint, PLAN, Modal(), first=1, every=2)
    before = turns.mode(problem.batch).detach()
    algorithm.step(state, problem.stack)
    scattered = turns.mode(problem.batch).detach()
    assert not scattered.equal(before) and not scattered[0].equal(scattered[1])
    while not state.done:
        algorithm.step(state, problem.stack)
    assert calls == [1, 3, 5, 6]  # a last one after the last steps
    # the steps in between hold the poses
    assert turns.mode(problem.batch).detach().equal(scattered)


@pytest.mark.parametrize(("start_radius", "wanted"), [(0, 1), (2, 2)])
def test_a_search_before_the_first_step_is_in_its_own_band(
    problem, monkeypatch, start_radius, wanted
):
    turns, moves = tables(problem)
    guide = Guide(rotation=turns, shift=moves, volume=Point(problem.volume))
    half = Half(problem.model, guide, torch.arange(8))
    held = {"rotation": 1.0, "shift": 1.0}
    joint = Joint(ProfileLogJoint(), 3, steps=100, batch=8, first_radius=1, radius=3, held=held)
    bands = []
    monkeypatch.setattr(
        "cryoprob.inference.alternating.search_poses",
        lambda half, *a, **k: bands.append(half.model.band.radius),
    )
    algorithm = Alternating(joint, PLAN, Modal(), first=0, every=1, start_radius=start_radius)
    state = JointState(half)
    while not state.done:
        algorithm.step(state, problem.stack)
    assert bands[0] == wanted and bands[-1] == 3
    assert [record["radius"] for record in state.history] == [2, 3]


def test_poses_that_no_search_can_fill_are_refused(problem):
    known = Known(problem.stack.rotation), Known(problem.stack.shift)
    guide = Guide(rotation=known[0], shift=known[1], volume=Point(problem.volume))
    half = Half(problem.model, guide, torch.arange(8))
    with pytest.raises(InputError, match="tables of Diracs"):
        search_poses(half, problem.stack, PLAN, Modal(), seed=1, states=1)
