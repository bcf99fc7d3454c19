"""Climbing off the grid: derivatives by differences, never downhill, the optimum of a clean image."""

import pytest
import torch
from problems import make_problem

from cryoprob.geometry.rotations import angle_between, random_rotations
from cryoprob.inference.filtered import filter_images
from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.rotations import DiracRotation
from cryoprob.inference.laws.shifts import DiracShift
from cryoprob.inference.local_search import _linearized, _moved, climb
from cryoprob.inference.objectives.profile_log_joint import ProfileLogJoint
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point


@pytest.fixture
def problem():
    return make_problem(box=16, n=6, signal=20.0, groups=1).continuous()


def images(problem):
    return filter_images(problem.model, problem.stack, torch.arange(len(problem.stack)))


def test_gradient_by_central_differences(problem):
    pose = problem.stack.rotation, problem.stack.shift
    system = _linearized(problem.model, problem.volume, images(problem), *pose)
    step = 2e-3  # the linearization's own; slices are piecewise linear below it
    for axis in range(5):
        move = torch.zeros(6, 5, dtype=torch.float64)
        move[:, axis] = step
        there, back = (
            _linearized(problem.model, problem.volume, images(problem), *_moved(*pose, s * move))
            for s in (1, -1)
        )
        slope = (there.value - back.value) / (2 * step)
        # forward against central differences: half a step's curvature
        curvature = (there.value + back.value - 2 * system.value).abs() / step**2
        assert ((system.gradient[:, axis] - slope).abs() <= 2 * step * curvature + 1e-3).all()


def test_it_never_goes_down_and_agrees_with_the_objective(problem):
    generator = torch.Generator().manual_seed(1)
    rotation = random_rotations(6, generator, torch.float64)
    shift = problem.stack.shift + 1
    found = images(problem)
    values = [
        climb(problem.model, problem.volume, found, rotation, shift, steps).log_joint
        for steps in range(5)
    ]
    assert all((b >= a).all() for a, b in zip(values, values[1:], strict=False))
    end = climb(problem.model, problem.volume, found, rotation, shift, 4)
    laws = PerImage(DiracRotation(), end.rotation), PerImage(DiracShift(3.0), end.shift)
    guide = Guide(rotation=laws[0], shift=laws[1], volume=Point(problem.volume))
    whole = ProfileLogJoint()(problem.model, guide, problem.volume, problem.batch)
    sigma = problem.model.shift.sigma
    ours = found.noise_only + end.log_joint - torch.log(2 * torch.pi * sigma**2)
    torch.testing.assert_close(whole.detach(), ours, rtol=1e-9, atol=1e-9)


def test_a_sharp_image_leads_back_to_its_pose(problem):
    generator = torch.Generator().manual_seed(2)
    away = 0.05 * torch.randn(6, 5, generator=generator, dtype=torch.float64)
    start = _moved(problem.stack.rotation, problem.stack.shift, away)
    end = climb(problem.model, problem.volume, images(problem), *start, 8)
    true = climb(problem.model, problem.volume, images(problem), *problem_pose(problem), 8)
    # both starts end in one optimum, to the kinks of trilinear interpolation
    torch.testing.assert_close(end.log_joint, true.log_joint, rtol=0, atol=0.05)
    sd = torch.rad2deg(end.covariance.diagonal(dim1=1, dim2=2)[:, :3].sum(1).sqrt())
    error = angle_between(end.rotation, problem.stack.rotation)
    # the error of a maximum likelihood pose, within five of its own standard deviations
    assert (error < 5 * sd + 0.2).all()


def problem_pose(problem):
    return problem.stack.rotation, problem.stack.shift
