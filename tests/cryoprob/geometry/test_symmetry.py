import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoprob.checks import InputError
from cryoprob.geometry.grids import RotationGrid
from cryoprob.geometry.rotations import check_rotations, random_rotations
from cryoprob.geometry.symmetry import asymmetric, point_group, symmetrize_map

ORDERS = {
    **{f"C{n}": n for n in (1, 2, 3, 4, 7, 17)},
    **{f"D{n}": 2 * n for n in (1, 2, 3, 4, 7)},
    **{"T": 12, "O": 24, "I": 60, "I1": 60, "I2": 60, "I3": 60, "I4": 60},
}

AXES = [
    # directions printed in RELION's documentation and symmetry library (facts), six digits
    ("C5", 5, (0, 0, 1)),
    ("D5", 5, (0, 0, 1)),
    ("D5", 2, (1, 0, 0)),
    ("T", 3, (0, 0, 1)),
    ("T", 2, (0, 0.816496, 0.577350)),
    ("O", 3, (0.5773502, 0.5773502, 0.5773502)),
    ("O", 4, (0, 0, 1)),
    ("I", 2, (0, 0, 1)),
    ("I", 5, (0.525731114, 0, 0.850650807)),
    ("I", 3, (0, 0.356822076, 0.934172364)),
    ("I1", 2, (1, 0, 0)),
    ("I1", 5, (0.85065080702670, 0, -0.5257311142635)),
    ("I1", 3, (0.9341723640, 0.3568220765, 0)),
    ("I3", 2, (-0.5257311143, 0, 0.8506508070)),
    ("I3", 5, (0, 0, 1)),
    ("I3", 3, (-0.4911234778630044, 0.3568220764705179, 0.7946544753759428)),
    ("I4", 2, (0.5257311143, 0, 0.8506508070)),
    ("I4", 5, (0.8944271932547096, 0, 0.4472135909903704)),
    ("I4", 3, (0.4911234778630044, 0.3568220764705179, 0.7946544753759428)),
]


def member(group, rotation, tolerance=1e-5):
    """Which element of the group a rotation is, or -1; the tables above have six digits."""
    away = (group - rotation).abs().amax((-2, -1))
    return int(away.argmin()) if away.min() < tolerance else -1


@pytest.mark.parametrize("name", ORDERS)
def test_groups_are_groups_of_the_right_order(name):
    group = point_group(name)
    assert len(group) == ORDERS[name]
    check_rotations(group, tolerance=1e-12)
    torch.testing.assert_close(group[0], torch.eye(3).double(), rtol=0, atol=0)
    table = [[member(group, g @ h, 1e-9) for h in group] for g in group]
    # closed, and each row of the multiplication table is a permutation (so inverses exist)
    assert all(sorted(row) == list(range(len(group))) for row in table)


@pytest.mark.parametrize(("name", "order", "axis"), AXES)
def test_axes_are_relions(name, order, axis):
    axis = np.array(axis) / np.linalg.norm(axis)
    turn = torch.from_numpy(Rotation.from_rotvec(2 * np.pi / order * axis).as_matrix())
    assert member(point_group(name), turn) > 0


@pytest.mark.parametrize(("name", "theirs"), [("T", "T"), ("O", "O"), ("I", "I"), ("D5", "D5")])
def test_groups_turn_by_the_angles_of_scipys(name, theirs):
    group = Rotation.from_matrix(point_group(name).numpy())
    expected = np.sort(Rotation.create_group(theirs).magnitude())
    # the cosine of 180 degrees loses half of the digits
    np.testing.assert_allclose(np.sort(group.magnitude()), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["c4", " C4 "])
def test_names_are_read_loosely(name):
    torch.testing.assert_close(point_group(name), point_group("C4"), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["C0", "Cs", "Oh", "I5", "", "4"])
def test_other_names_are_told(name):
    with pytest.raises(InputError, match="symmetry: expected Cn, Dn"):
        point_group(name)


def test_group_cannot_be_changed_from_outside():
    point_group("D2").zero_()
    assert point_group("D2").abs().sum() > 0


@pytest.mark.parametrize("name", ["C1", "C2", "C4", "D2", "D4"])
def test_cell_is_an_exact_share_of_a_grid_with_the_symmetry(name):
    grid = RotationGrid(2)
    group = point_group(name)
    matrices = grid.matrices(dtype=torch.float64)
    kept = asymmetric(matrices, group)
    # these groups map the grid onto itself, with many ties: each orbit keeps exactly one
    assert int(kept.sum()) * len(group) == len(grid)
    kept_in_single = asymmetric(matrices.float(), group)
    assert torch.equal(kept_in_single, kept)


@pytest.mark.parametrize("name", ["C3", "D7", "T", "O", "I", "I3"])
def test_cell_is_its_share_of_a_grid_without_the_symmetry(name):
    grid, group = RotationGrid(3), point_group(name)
    share = asymmetric(grid.matrices(), group).double().mean()
    # the border of the cell misplaces a few percent of the some 600 cells in the smallest of them
    assert float(share) * len(group) == pytest.approx(1, abs=0.04)


@pytest.mark.parametrize("name", ["C3", "D3", "T", "O", "I"])
def test_each_orbit_has_exactly_one_member_and_it_is_nearest_to_the_identity(name, generator):
    group = point_group(name)
    orbits = random_rotations(300, generator, torch.float64)[:, None] @ group
    kept = asymmetric(orbits, group)
    assert torch.equal(kept.sum(1), torch.ones(300, dtype=torch.long))
    trace = orbits.diagonal(dim1=-2, dim2=-1).sum(-1)
    assert torch.equal(kept.long().argmax(1), trace.argmax(1))


@pytest.mark.parametrize("name", ["C2", "C6", "D3", "O", "I"])
def test_ties_keep_exactly_one(name):
    group = point_group(name)
    # turns about a plane's axis by half of a group's turn lie on walls and corners of the cell
    half = Rotation.from_matrix(group.numpy()) ** 0.5
    quarter = Rotation.from_matrix(group.numpy()) ** 0.25
    wall = torch.from_numpy(np.concatenate([half.as_matrix(), quarter.as_matrix()]))
    orbits = wall[:, None] @ group
    trace = orbits.diagonal(dim1=-2, dim2=-1).sum(-1)
    ties = (trace > trace.amax(1, keepdim=True) - 1e-9).sum(1)
    assert ties.max() >= 2  # or this test would test nothing
    for rotations in (orbits, orbits.float()):
        assert torch.equal(asymmetric(rotations, group).sum(1), torch.ones(len(wall)).long())


def test_blocks_do_not_matter(generator, monkeypatch):
    group, rotations = point_group("D3"), random_rotations(500, generator)
    whole = asymmetric(rotations, group)
    monkeypatch.setattr("cryoprob.geometry.symmetry._BLOCK", 60)
    assert torch.equal(asymmetric(rotations, group), whole)
    assert asymmetric(rotations[:0], group).shape == (0,)


def blobs(box, centers, width):
    """Gaussian blobs at ``centers`` (x, y, z), voxels from the origin."""
    axis = torch.arange(-(box // 2), box // 2, dtype=torch.float64)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    volume = torch.zeros(box, box, box, dtype=torch.float64)
    for a, b, c in centers.tolist():
        square = (x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2
        volume += torch.exp(-square / (2 * width**2))
    return volume


POINT = torch.tensor([5.0, 2.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize("name", ["C3", "C4", "D2", "T", "I"])
def test_symmetrized_blob_is_the_blobs_of_its_orbit(name):
    group = point_group(name)
    got = symmetrize_map(blobs(24, POINT[None], 2.0), group)
    expected = blobs(24, group @ POINT, 2.0) / len(group)
    # linear interpolation lowers a peak of width 2 by at most 3 h^2 / (8 width^2) = 9 percent
    assert (got - expected).abs().max() < 0.1 * expected.max()


@pytest.mark.parametrize("name", ["C2", "C4", "D2", "D4", "O"])
def test_symmetrizing_is_idempotent_where_voxels_map_to_voxels(name):
    group = point_group(name)
    once = symmetrize_map(blobs(24, POINT[None], 1.5), group)
    # rounding of the sampling places; the blob is zero where the even box has no counterpart
    torch.testing.assert_close(symmetrize_map(once, group), once, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["C3", "D5", "T", "I"])
def test_symmetrizing_is_idempotent_within_interpolation(name):
    group = point_group(name)
    once = symmetrize_map(blobs(24, POINT[None], 2.5), group)
    again = symmetrize_map(once, group)
    # as above, 3 / (8 * 2.5^2) = 6 percent at the peak
    assert (again - once).abs().max() < 0.06 * once.max()


def test_trivial_group_changes_nothing(generator):
    volume = torch.randn(12, 12, 12, generator=generator)
    got = symmetrize_map(volume, point_group("C1"))
    assert got.dtype == volume.dtype
    torch.testing.assert_close(got, volume, rtol=0, atol=2e-5)  # single-precision sampling places
