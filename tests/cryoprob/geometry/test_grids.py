import healpix
import numpy as np
import pytest
import starfile
import torch
from scipy import stats
from scipy.spatial.transform import Rotation

from cryoprob.checks import InputError
from cryoprob.geometry.grids import MAX_ORDER, RotationGrid
from cryoprob.geometry.rotations import (
    about_z,
    angle_between,
    check_rotations,
    euler_to_matrix,
    random_rotations,
    viewing_direction,
)

EXACT = 1e-12
"""Double precision with room for a few dozen operations on numbers of order 1."""


def centers(grid, index=None):
    return grid.matrices(index, dtype=torch.float64)


@pytest.mark.parametrize("order", range(5))
def test_counts_and_spacing(order):
    grid = RotationGrid(order)
    assert len(grid) == 72 * 8**order == grid.n_directions * grid.n_psi
    assert grid.spacing_deg == 60 / 2**order
    assert grid.cell_mass * len(grid) == pytest.approx(1)
    assert grid.directions().shape == (12 * 4**order, 3)
    assert grid.psi_deg().shape == (6 * 2**order,)


@pytest.mark.parametrize("order", [-1, MAX_ORDER + 1])
def test_order_out_of_range_is_told(order):
    with pytest.raises(InputError, match=f"order of the rotation grid.*got {order}"):
        RotationGrid(order)


@pytest.mark.parametrize("index", [-1, 72])
def test_index_out_of_range_is_told(index):
    with pytest.raises(InputError, match="order 0: expected integers from 0 to 71"):
        RotationGrid(0).matrices(torch.tensor([3, index]))


@pytest.mark.parametrize("order", range(4))
def test_matrices_are_rotations_toward_the_nested_directions(order):
    grid = RotationGrid(order)
    matrices = centers(grid)
    check_rotations(matrices, tolerance=EXACT)
    xyz = np.stack(healpix.pix2vec(2**order, np.arange(grid.n_directions), nest=True), -1)
    seen = viewing_direction(matrices).reshape(grid.n_directions, grid.n_psi, 3)
    expected = torch.from_numpy(xyz)[:, None].expand_as(seen)
    torch.testing.assert_close(seen, expected, rtol=0, atol=EXACT)
    torch.testing.assert_close(grid.directions(), torch.from_numpy(xyz), rtol=0, atol=EXACT)


def test_neighbors_in_psi_differ_by_one_step_about_laboratory_z():
    grid = RotationGrid(2)
    table = centers(grid).reshape(grid.n_directions, grid.n_psi, 3, 3)
    step = about_z(torch.tensor(grid.spacing_deg, dtype=torch.float64))
    torch.testing.assert_close(table.roll(-1, 1), step @ table, rtol=0, atol=EXACT)


def test_base_pixels_have_relions_in_plane_reference():
    grid = RotationGrid(0)
    x, y, z = grid.directions().unbind(-1)
    rot, tilt = torch.rad2deg(torch.atan2(y, x)), torch.rad2deg(torch.acos(z))
    first = torch.stack([rot, tilt, torch.full_like(rot, -grid.spacing_deg / 2)], -1)
    # psi_0 is half a step counter-clockwise, and RELION's psi runs clockwise
    got = centers(grid)[:: grid.n_psi]
    torch.testing.assert_close(got, euler_to_matrix(first), rtol=0, atol=EXACT)


def test_directions_are_relions(data):
    tables = starfile.read(data / "vectors" / "relion_it002_sampling.star", always_dict=True)
    rot, tilt = tables["sampling_directions"].to_numpy(dtype=float).T
    theirs = Rotation.from_euler("ZY", np.stack([rot, tilt], -1), degrees=True).as_matrix()[..., 2]
    ours = RotationGrid(2).directions().numpy()
    near = np.linalg.norm(ours[:, None] - theirs, axis=-1)
    assert theirs.shape == ours.shape == (192, 3)
    # the file has six decimals of a degree: 1e-8 rad; directions are 0.2 apart
    assert near.min(0).max() < 3e-8 and near.min(1).max() < 3e-8
    assert sorted(near.argmin(0)) == list(range(192))


def test_indexing_dtype_and_shape():
    grid = RotationGrid(1)
    every = grid.matrices()
    assert every.dtype == torch.float32 and every.shape == (576, 3, 3)
    index = torch.tensor([[5, 575, 0], [17, 17, 300]])
    torch.testing.assert_close(grid.matrices(index), every[index], rtol=0, atol=0)
    assert grid.matrices(index[:0]).shape == (0, 3, 3, 3)
    # single precision of the double
    torch.testing.assert_close(every.double(), centers(grid), rtol=0, atol=2e-7)


@pytest.mark.parametrize("order", range(4))
def test_children_are_a_partition_and_know_their_parent(order):
    grid, finer = RotationGrid(order), RotationGrid(order + 1)
    index = torch.arange(len(grid))
    children = grid.children(index)
    assert children.shape == (len(grid), 8)
    assert torch.equal(children.flatten().sort().values, torch.arange(len(finer)))
    assert torch.equal(finer.parent(children), index[:, None].expand(-1, 8))


def test_order_zero_has_no_parent():
    with pytest.raises(InputError, match="parent"):
        RotationGrid(0).parent(torch.tensor([0]))


@pytest.mark.parametrize("order", range(4))
def test_children_lie_close_to_their_parent_everywhere(order):
    grid, finer = RotationGrid(order), RotationGrid(order + 1)
    index = torch.arange(len(grid))
    apart = angle_between(centers(grid)[:, None], centers(finer, grid.children(index)))
    polar = viewing_direction(centers(grid))[:, 2].abs() > 2 / 3
    # a quarter step in psi and a quarter diagonal of the pixel, at most 0.62 steps with the twist
    # of the frame (in RELION's Euler frame 45 degrees at the poles, whatever the step)
    assert apart.max() <= 0.65 * grid.spacing_deg
    assert not polar.any() or apart[polar].max() <= 0.65 * grid.spacing_deg
    assert apart.min() >= 0.25 * grid.spacing_deg  # a quarter step in psi alone


@pytest.mark.parametrize("order", range(4))
def test_centers_and_children_lie_in_their_cell(order):
    grid, finer = RotationGrid(order), RotationGrid(order + 1)
    index = torch.arange(len(grid))
    assert torch.equal(grid.cell(centers(grid)), index)
    inside = grid.cell(centers(finer, grid.children(index)))
    assert torch.equal(inside, index[:, None].expand(-1, 8))


def test_cells_of_any_rotation_are_nested(generator):
    drawn = random_rotations(2000, generator, torch.float64).reshape(40, 50, 3, 3)
    cells = [RotationGrid(order).cell(drawn) for order in range(MAX_ORDER + 1)]
    for order in range(MAX_ORDER):
        assert torch.equal(RotationGrid(order + 1).parent(cells[order + 1]), cells[order])
    # center to corner: half a diagonal of a pixel and half a step in psi, sheared by the frame
    for order in (0, 3, MAX_ORDER):
        grid = RotationGrid(order)
        away = angle_between(centers(grid, cells[order]), drawn)
        assert away.max() < 1.2 * grid.spacing_deg


@pytest.mark.parametrize("order", [0, 1])
def test_cells_have_equal_haar_mass(order, generator, false_alarm):
    grid = RotationGrid(order)
    drawn = random_rotations(100 * len(grid), generator, torch.float64)
    counts = torch.bincount(grid.cell(drawn), minlength=len(grid))
    assert stats.chisquare(counts.numpy()).pvalue > false_alarm


@pytest.mark.parametrize("order", range(4))
def test_grid_integrates_low_orders(order):
    matrices = centers(RotationGrid(order))
    assert matrices.mean(0).abs().max() < EXACT  # first order: exact by symmetry
    eye = torch.eye(3, dtype=torch.float64)
    second = torch.einsum("nij,nkl->ijkl", matrices, matrices) / len(matrices)
    haar = torch.einsum("ik,jl->ijkl", eye, eye) / 3
    # HEALPix's centers integrate second order to (step)^2: 1/27 at order 0, a quarter each order
    assert (second - haar).abs().max() <= 1.1 / 27 / 4**order
    angle = torch.deg2rad(angle_between(matrices, eye))
    for degree in (1, 2, 3):
        character = ((degree + 0.5) * angle).sin() / (angle / 2).sin()
        assert character.mean().abs() <= 1.6 / 27 / 4**order


@pytest.mark.parametrize("order", [0, 1, 2])
def test_grid_covers_all_rotations(order, generator):
    grid = RotationGrid(order)
    drawn = random_rotations(400, generator)
    trace = torch.einsum("qij,nij->nq", grid.matrices(), drawn)
    nearest = torch.rad2deg(torch.acos(((trace.amax(1) - 1) / 2).clamp(-1, 1)))
    # half the diagonals of a pixel and of the step in psi: sqrt(3) / 2 = 0.87 for a cubic lattice
    assert nearest.max() < 0.87 * grid.spacing_deg


def test_nested_refinement_keeps_means():
    grid, finer = RotationGrid(1), RotationGrid(2)
    index = torch.arange(len(grid))
    mean = centers(finer, grid.children(index)).mean(1)
    # the chordal mean of the children points at the parent within the curvature of the cell
    lean = angle_between(torch.linalg.svd(mean)[0] @ torch.linalg.svd(mean)[2], centers(grid))
    assert lean.max() < 0.15 * grid.spacing_deg
    # parts of one mass: the mean over all children is the mean over the finer grid
    torch.testing.assert_close(mean.mean(0), centers(finer).mean(0), rtol=0, atol=EXACT)


@pytest.mark.parametrize(("order", "radius"), [(1, 46.3), (2, 20.1), (3, 9.1), (1, 180.0)])
def test_cells_within_is_the_brute_force_search(order, radius, generator):
    grid = RotationGrid(order)
    every = centers(grid)
    drawn = random_rotations(4, generator, torch.float64)
    poles = euler_to_matrix(torch.tensor([[0.0, 0.0, 10.0], [30.0, 180.0, 0.0]]).double())
    for rotation in torch.cat([drawn, poles, every[:1]]):
        expected = torch.nonzero(angle_between(every, rotation) <= radius).flatten()
        assert torch.equal(grid.cells_within(rotation, radius), expected)
        assert len(expected) > 0


def test_cells_within_of_fine_grids_holds_all_children_in_reach(generator):
    rotation, radius = random_rotations(1, generator, torch.float64)[0], 4.0
    coarse, fine = RotationGrid(5), RotationGrid(6)
    around = coarse.cells_within(rotation, radius + coarse.spacing_deg)
    children = coarse.children(around).flatten()
    within = angle_between(centers(fine, children), rotation) <= radius
    got = fine.cells_within(rotation, radius)
    assert torch.equal(got, children[within].sort().values)
    share = (np.radians(radius) - np.sin(np.radians(radius))) / np.pi  # Haar mass of the ball
    # counting a ball of 13 spacings across: its surface misplaces a few percent
    assert len(got) == pytest.approx(share * len(fine), rel=0.1)


def test_cells_within_can_be_empty():
    grid = RotationGrid(2)
    assert len(grid.cells_within(torch.eye(3), 0.5)) == 0
    assert grid.cells_within(grid.matrices(torch.tensor(77)), 0.5).tolist() == [77]


def test_finest_grid_needs_no_table_of_rotations():
    grid = RotationGrid(MAX_ORDER)
    index = torch.tensor([0, len(grid) // 3, len(grid) - 1])
    up = index
    for order in range(MAX_ORDER, 0, -1):
        up = RotationGrid(order).parent(up)
    apart = angle_between(centers(grid, index), centers(RotationGrid(0), up))
    assert apart.max() < 1.2 * 60
    assert torch.equal(grid.cell(centers(grid, index)), index)
