import math

import pytest
import torch

from cryoprob.checks import InputError
from cryoprob.geometry.shifts import ShiftGrid


def brute_force(extent, step):
    """Points of the lattice in the disk by a double loop in integers."""
    reach = math.ceil(extent / step) + 1
    both = range(-reach, reach + 1)
    return {(i, j) for i in both for j in both if math.hypot(i, j) <= extent / step + 1e-9}


@pytest.mark.parametrize(
    ("extent", "step"), [(0, 1), (3, 1), (5, 1), (10, 2.5), (0.3, 0.1), (1, 3)]
)
def test_points_are_the_lattice_in_the_disk(extent, step):
    grid = ShiftGrid(extent, step)
    found = {(round(x / step), round(y / step)) for x, y in grid.points.tolist()}
    assert len(grid) == len(grid.points) == len(found)
    assert found == brute_force(extent, step)
    lattice = (grid.points / step).round() * step
    torch.testing.assert_close(grid.points, lattice, rtol=0, atol=1e-12)  # rounding alone


def test_points_are_sorted_by_length_and_begin_with_no_shift():
    grid = ShiftGrid(7.0, 1.5)
    length = torch.linalg.vector_norm(grid.points, dim=-1)
    assert grid.points[0].tolist() == [0, 0]
    assert (length.diff() >= -1e-12).all()  # rounding of equal lengths
    smaller = ShiftGrid(4.0, 1.5)
    torch.testing.assert_close(grid.points[: len(smaller)], smaller.points, rtol=0, atol=0)


def test_grid_is_symmetric():
    points = {tuple(p) for p in ShiftGrid(4, 1).points.tolist()}
    assert points == {(-x, -y) for x, y in points} == {(y, -x) for x, y in points}


def test_children_quarter_the_cells():
    grid = ShiftGrid(6.0, 2.0)
    finer = grid.refined()
    index = torch.arange(len(grid))
    children = grid.children(index)
    assert finer.step_A == 1.0 and len(finer) == 4 * len(grid)
    assert torch.equal(children.flatten().sort().values, torch.arange(len(finer)))
    assert torch.equal(finer.parent(children), index[:, None].expand(-1, 4))
    offset = finer.points[children] - grid.points[:, None]
    torch.testing.assert_close(offset.abs(), torch.full_like(offset, 0.5), rtol=0, atol=1e-12)
    assert {tuple(o) for o in offset[0].tolist()} == {
        (a, b) for a in (-0.5, 0.5) for b in (-0.5, 0.5)
    }
    # quarters around the point: their mean is the point
    torch.testing.assert_close(finer.points[children].mean(1), grid.points, rtol=0, atol=1e-12)


def test_refining_twice_leaves_a_lattice_without_doubles():
    grid = ShiftGrid(3.0, 2.0)
    twice = grid.refined().refined()
    assert twice.level == 2 and len(twice) == 16 * len(grid)
    steps = twice.points / twice.step_A
    # 16 quarters of quarters: odd eighths of the first step, halves of the last
    torch.testing.assert_close((steps - 0.5).round() + 0.5, steps, rtol=0, atol=1e-12)
    assert len({tuple(s) for s in steps.tolist()}) == len(twice)
    reach = (twice.points[:, None] - grid.points).abs().amax(-1).amin(-1)
    assert reach.max() < grid.step_A / 2  # inside the cells of the first grid


def test_nearest_is_the_point_itself_and_the_cell_around_it(generator):
    grid = ShiftGrid(5.0, 1.0)
    inner = ShiftGrid(3.0, 1.0)  # a prefix, away from the edge
    assert torch.equal(grid.nearest(grid.points), torch.arange(len(grid)))
    jitter = torch.rand(len(inner), 2, generator=generator, dtype=torch.float64) - 0.5
    got = grid.nearest((inner.points + 0.99 * jitter).reshape(-1, 1, 2))
    assert torch.equal(got.flatten(), torch.arange(len(inner)))


def test_cells_within_is_the_brute_force_search():
    grid = ShiftGrid(5.0, 1.0)
    center = torch.tensor([1.2, -2.0], dtype=torch.float64)
    expected = [
        t for t, (x, y) in enumerate(grid.points.tolist()) if math.hypot(x - 1.2, y + 2) <= 1.5
    ]
    assert grid.cells_within(center, 1.5).tolist() == expected
    assert len(expected) == 7  # columns x = 0, 1, 2 hold 1, 3, 3 of them
    assert grid.cells_within(torch.zeros(2), 5.0).tolist() == list(range(len(grid)))


def test_points_cannot_be_changed_from_outside():
    ShiftGrid(2.0, 1.0).points.zero_()
    assert ShiftGrid(2.0, 1.0).points.abs().max() == 2.0


@pytest.mark.parametrize(
    ("extent", "step"), [(-1, 1), (1, 0), (1, -2), (math.nan, 1), (math.inf, 1)]
)
def test_impossible_grids_are_told(extent, step):
    with pytest.raises(InputError, match="shift grid: expected an extent >= 0"):
        ShiftGrid(extent, step)


def test_unrefined_grid_has_no_parent():
    with pytest.raises(InputError, match="refined"):
        ShiftGrid(2.0, 1.0).parent(torch.tensor([0]))
