import pytest
import roma
import torch

from cryoprob.checks import InputError
from cryoprob.geometry.rotations import angle_between, random_rotations
from cryoprob.geometry.symmetry import point_group
from cryoprob.metrics import Motion, align_maps, align_poses, pose_error

STILL = torch.zeros(3).double()


def jitter(n, degrees, generator):
    """Rotations about random axes by normal angles of ``degrees`` a component."""
    vector = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    return roma.rotvec_to_rotmat(torch.deg2rad(vector * degrees))


@pytest.fixture
def truth(generator):
    shifts = 5 * torch.randn(300, 2, generator=generator, dtype=torch.float64)
    return random_rotations(300, generator, torch.float64), shifts


@pytest.fixture
def motion(generator):
    shift_A = torch.tensor([4.0, -7.0, 2.0]).double()
    return lambda hand: Motion(random_rotations(1, generator, torch.float64)[0], shift_A, hand)


def estimates(truth, motion):
    """Poses for a map of which the true one is ``motion``: the inverse of move_poses."""
    rotations, shifts = truth
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0])).double()
    own = rotations @ motion.rotation
    own = half_turn @ own if motion.mirrored else own
    return own, shifts + (rotations @ motion.shift_A)[:, :2]


def test_equal_poses_have_no_error(truth):
    error = pose_error(*truth, *truth)
    assert float(error.rotation_deg.max()) < 1e-5 and error.mean_shift_A == 0


def test_known_errors_are_reported(truth, generator):
    rotations, shifts = truth
    turn = roma.rotvec_to_rotmat(torch.deg2rad(torch.tensor([0.0, 3.0, 4.0]).double()))
    error = pose_error(turn @ rotations, shifts + torch.tensor([3.0, 4.0]), rotations, shifts)
    torch.testing.assert_close(error.rotation_deg, torch.full((300,), 5.0).double())
    torch.testing.assert_close(error.shift_A, torch.full((300,), 5.0).double())
    assert error.median_rotation_deg == pytest.approx(5.0) == error.mean_rotation_deg
    assert error.median_shift_A == pytest.approx(5.0) == error.mean_shift_A
    without = pose_error(rotations, None, rotations, shifts)
    assert without.shift_A is None and without.median_shift_A is None


def test_random_poses_average_as_haar(truth, generator):
    """The mean angle of Haar is pi / 2 + 2 / pi = 126.5 degrees, its sd 37 degrees."""
    other = random_rotations(300, generator, torch.float64)
    error = pose_error(other, None, truth[0], None)
    assert error.mean_rotation_deg == pytest.approx(126.5, abs=4 * 37 / 300**0.5)


def test_means_and_medians_differ(truth):
    rotations, _ = truth
    off = rotations.clone()
    off[0] = rotations[0] @ torch.diag(torch.tensor([-1.0, -1.0, 1.0])).double()
    error = pose_error(off, None, rotations, None)
    assert error.mean_rotation_deg == pytest.approx(180 / 300)
    assert error.median_rotation_deg < 1e-5


def test_the_median_lies_in_the_middle(truth):
    rotations = truth[0][:5]
    angles = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0]).double()
    turn = roma.rotvec_to_rotmat(torch.deg2rad(angles)[:, None] * torch.eye(3).double()[0])
    error = pose_error(turn @ rotations, None, rotations, None)
    assert error.median_rotation_deg == pytest.approx(4.0)
    assert error.mean_rotation_deg == pytest.approx(6.2)


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_map_s_motion_is_taken_out(truth, motion, mirrored):
    chosen = motion(mirrored)
    own = estimates(truth, chosen)
    error = pose_error(*own, *truth, chosen)
    assert float(error.rotation_deg.max()) < 1e-5
    assert error.shift_A is not None and float(error.shift_A.max()) < 1e-9
    naive = pose_error(*own, *truth)
    assert naive.median_rotation_deg > 20 and (naive.median_shift_A or 0) > 2


def test_symmetric_poses_are_equal(truth, generator):
    group = point_group("D2")
    rotations, _ = truth
    element = group[torch.randint(4, (300,), generator=generator)]
    error = pose_error(rotations @ element, None, rotations, None, group=group)
    assert float(error.rotation_deg.max()) < 1e-5
    # on the wrong side of R an element is a turn in the laboratory, no symmetry
    wrong = pose_error(element @ rotations, None, rotations, None, group=group)
    assert wrong.mean_rotation_deg > 20


def test_maps_and_poses_agree(beads, draw, truth):
    """A map flipped in z: its poses are M R M with the same shifts, M = diag(1, 1, -1)."""
    flip = torch.diag(torch.tensor([1.0, 1.0, -1.0])).double()
    rotations, shifts = truth
    alignment = align_maps(draw(beads @ flip, 32), draw(beads, 32), pixel_size=2.0)
    error = pose_error(flip @ rotations @ flip, shifts, rotations, shifts, alignment)
    # the accuracy of the maps' alignment
    assert error.median_rotation_deg < 0.1 and (error.median_shift_A or 0) < 0.05
    without = align_poses(flip @ rotations @ flip, rotations)
    assert without.mirrored
    assert float(angle_between(without.rotation, alignment.rotation)) < 0.1


@pytest.mark.parametrize("mirrored", [False, True])
def test_poses_are_aligned_without_maps(truth, motion, generator, mirrored):
    """Two poses of five wrong altogether, the others off by 3 degrees and 1 A a component."""
    chosen = motion(mirrored)
    rotations, shifts = estimates(truth, chosen)
    rotations = jitter(300, 3.0, generator) @ rotations
    shifts = shifts + torch.randn(300, 2, generator=generator, dtype=torch.float64)
    rotations[:120] = random_rotations(120, generator, torch.float64)
    shifts[:120] = 20 * torch.randn(120, 2, generator=generator, dtype=torch.float64)
    found = align_poses(rotations, truth[0], shifts, truth[1])
    assert found.mirrored == mirrored and found.aligned is None
    assert found.other_hand is not None and found.score > found.other_hand + 20
    # medians of 180: 3 degrees * sqrt(3) / sqrt(180) = 0.4 degrees, twice that for the wrong ones;
    # a component of s is seen by 180 * 2 / 3 numbers of sd 1: 0.16 A
    assert float(angle_between(found.rotation, chosen.rotation)) < 1.6
    assert float((found.shift_A - chosen.shift_A).norm()) < 1.0
    error = pose_error(rotations, shifts, *truth, found)
    assert float(error.rotation_deg[120:].median()) < 7.0
    assert (error.median_shift_A or 99) < 4.0


def test_exact_poses_are_aligned_exactly(truth, motion):
    chosen = motion(True)
    found = align_poses(*(estimates(truth, chosen)[0], truth[0]))
    assert float(angle_between(found.rotation, chosen.rotation)) < 1e-4
    assert found.score == pytest.approx(0.0, abs=1e-4)
    torch.testing.assert_close(found.shift_A, STILL)


def test_one_hand_on_demand(truth, motion):
    found = align_poses(estimates(truth, motion(True))[0], truth[0], hands=False)
    assert not found.mirrored and found.other_hand is None and found.score < -60


def test_symmetric_poses_are_aligned(truth, motion, generator):
    chosen, group = motion(False), point_group("D2")
    element = group[torch.randint(4, (300,), generator=generator)]
    rotations = jitter(300, 1.0, generator) @ truth[0] @ element @ chosen.rotation
    found = align_poses(rotations, truth[0], group=group)
    assert float(angle_between(found.rotation, group @ chosen.rotation).min()) < 0.5
    error = pose_error(rotations, None, truth[0], None, found, group)
    assert found.score == pytest.approx(-error.mean_rotation_deg)
    assert error.median_rotation_deg < 3.0  # chi of 3 components: median 1.54 degrees


def test_bad_poses_are_refused(truth):
    rotations, shifts = truth
    with pytest.raises(InputError, match="true rotations"):
        pose_error(rotations, None, -rotations, None)
    with pytest.raises(InputError, match="twice"):
        pose_error(rotations[:5], None, rotations, None)
    with pytest.raises(InputError, match="estimated shifts"):
        pose_error(rotations, shifts[:5], rotations, shifts)
    with pytest.raises(InputError, match="n > 0"):
        align_poses(rotations[:0], rotations[:0])
