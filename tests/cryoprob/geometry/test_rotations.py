import numpy as np
import pytest
import torch
from scipy import stats
from scipy.spatial.transform import Rotation

from cryoprob.checks import InputError
from cryoprob.geometry import rotations as rt

EXACT = 1e-12
"""Double precision with room for a dozen operations on numbers of order 1 (angles: 180)."""

POLES = (0.0, 1e-9, 1e-4, 37.0, 180 - 1e-4, 180 - 1e-9, 180.0)


def scipy_matrix(angles):
    """The matrix of the README of the test data, from scipy alone."""
    flat = np.asarray(angles, dtype=float).reshape(-1, 3)
    matrix = Rotation.from_euler("ZYZ", flat, degrees=True).as_matrix().transpose(0, 2, 1)
    return torch.from_numpy(matrix.copy()).reshape(*np.shape(angles)[:-1], 3, 3)


def some_angles(n, generator):
    unit = torch.rand(n, 3, generator=generator, dtype=torch.float64)
    return unit * torch.tensor([360.0, 180.0, 360.0]) - torch.tensor([180.0, 0.0, 180.0])


def test_euler_matrices_are_those_of_scipy(generator):
    angles = some_angles(200, generator).reshape(4, 50, 3)
    torch.testing.assert_close(
        rt.euler_to_matrix(angles), scipy_matrix(angles), rtol=0, atol=EXACT
    )


def test_each_euler_angle_by_hand():
    x, y, z = torch.eye(3)
    # tilt 90 about y: the molecule is seen along its +x axis
    side = rt.euler_to_matrix(torch.tensor([0.0, 90.0, 0.0]))
    torch.testing.assert_close(side @ x, z, rtol=0, atol=1e-6)  # single precision
    # psi turns the image clockwise: what lay along x comes to lie along -y
    plane = rt.euler_to_matrix(torch.tensor([0, 0, 90]))
    torch.testing.assert_close(plane @ x, -y, rtol=0, atol=1e-6)
    torch.testing.assert_close(rt.about_z(torch.tensor(90.0)) @ x, y, rtol=0, atol=1e-6)


def test_viewing_direction_has_longitude_rot_and_colatitude_tilt(generator):
    angles = some_angles(50, generator)
    rot, tilt, _ = torch.deg2rad(angles).unbind(-1)
    expected = torch.stack([tilt.sin() * rot.cos(), tilt.sin() * rot.sin(), tilt.cos()], -1)
    matrices = rt.euler_to_matrix(angles)
    got = rt.viewing_direction(matrices)
    torch.testing.assert_close(got, expected, rtol=0, atol=EXACT)
    up = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(got, matrices.mT @ up, rtol=0, atol=EXACT)


def test_matrix_to_euler_inverts_away_from_the_poles(generator):
    angles = some_angles(200, generator)
    angles[:, 1] = 1 + angles[:, 1] * 178 / 180
    back = rt.matrix_to_euler(scipy_matrix(angles))
    # a degree from a pole, rounding of 1e-16 is amplified 60 times, in units of 57 degrees
    torch.testing.assert_close(back, angles, rtol=0, atol=1e-11)


@pytest.mark.parametrize("tilt", POLES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, EXACT), (torch.float32, 2e-6)])
def test_euler_angles_reproduce_the_matrix_even_at_the_poles(tilt, dtype, tolerance):
    angles = torch.tensor([[25.0, tilt, -130.0], [-170.0, tilt, 60.0]], dtype=torch.float64)
    matrices = rt.euler_to_matrix(angles).to(dtype)
    euler = rt.matrix_to_euler(matrices)
    # the tolerance is some ten roundings of the precision at hand
    torch.testing.assert_close(rt.euler_to_matrix(euler), matrices, rtol=0, atol=tolerance)
    assert (euler[:, 1] >= 0).all() and (euler[:, 1] <= 180).all()


def test_rot_is_zero_where_it_means_nothing():
    assert rt.matrix_to_euler(torch.eye(3)).tolist() == [0, 0, 0]
    flipped = rt.matrix_to_euler(torch.diag(torch.tensor([-1.0, 1.0, -1.0])))
    assert flipped.tolist() == [0, 180, 0]


def test_wrong_shape_of_angles_is_told():
    with pytest.raises(InputError, match=r"expected \[\.\.\., 3\], got shape \[4, 2\]"):
        rt.euler_to_matrix(torch.zeros(4, 2))


def test_quaternions_are_those_of_scipy(generator):
    matrices = scipy_matrix(some_angles(100, generator))
    expected = Rotation.from_matrix(matrices.numpy()).as_quat(canonical=True)
    got = rt.matrix_to_quaternion(matrices)
    torch.testing.assert_close(got, torch.from_numpy(expected), rtol=0, atol=EXACT)
    back = rt.quaternion_to_matrix(7 * got)  # any length
    torch.testing.assert_close(back, matrices, rtol=0, atol=EXACT)


def test_random_rotations_are_haar(generator, false_alarm):
    drawn = rt.random_rotations(20000, generator, torch.float64)
    rt.check_rotations(drawn, tolerance=EXACT)
    away = scipy_matrix([[20.0, 130.0, 77.0]])[0]  # Haar measure looks the same from any rotation
    p_values = []
    for center in (torch.eye(3, dtype=torch.float64), away):
        angle = np.linalg.norm(
            Rotation.from_matrix((drawn @ center.mT).numpy()).as_rotvec(), axis=1
        )
        p_values.append(stats.kstest(angle, lambda t: (t - np.sin(t)) / np.pi).pvalue)
    rot, tilt, psi = Rotation.from_matrix(drawn.numpy()).as_euler("ZYZ").T
    p_values.append(stats.kstest(np.cos(tilt), "uniform", args=(-1, 2)).pvalue)
    p_values += [stats.kstest(a, "uniform", args=(-np.pi, 2 * np.pi)).pvalue for a in (rot, psi)]
    assert min(p_values) > false_alarm / len(p_values)  # Bonferroni


def test_random_rotations_follow_generator_and_dtype():
    first, again = (
        rt.random_rotations(5, torch.Generator().manual_seed(3), torch.float64) for _ in range(2)
    )
    single = rt.random_rotations(5, torch.Generator().manual_seed(3))
    assert torch.equal(first, again)
    assert single.dtype == torch.float32 and single.shape == (5, 3, 3)
    torch.testing.assert_close(single, first.float(), rtol=0, atol=0)  # the same draw, rounded
    other = rt.random_rotations(5, torch.Generator().manual_seed(4), torch.float64)
    assert not torch.equal(first, other)


def test_angle_between_is_the_length_of_scipys_rotation_vector(generator):
    first, second = (scipy_matrix(some_angles(100, generator)) for _ in range(2))
    turn = Rotation.from_matrix((first.mT @ second).numpy())
    expected = torch.rad2deg(torch.from_numpy(turn.magnitude()))
    # near 180 degrees scipy's own conversion loses half of the digits at worst
    torch.testing.assert_close(rt.angle_between(first, second), expected, rtol=0, atol=1e-6)
    everyone = rt.angle_between(first[:, None], second)
    torch.testing.assert_close(everyone.diagonal(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 1e-7, 1e-3, 90.0, 180 - 1e-6, 180.0])
def test_angle_between_is_accurate_at_both_ends(angle):
    start = scipy_matrix([11.0, 67.0, -31.0])
    end = start @ rt.about_z(torch.tensor(angle, dtype=torch.float64))
    assert rt.angle_between(start, end).item() == pytest.approx(angle, rel=0, abs=EXACT)


def test_mean_rotation_is_scipys(generator):
    matrices = scipy_matrix(some_angles(3 * 20, generator)).reshape(3, 20, 3, 3)
    weights = torch.rand(3, 20, generator=generator, dtype=torch.float64)
    for given in (None, weights):
        got = rt.mean_rotation(matrices, given)
        for k in range(3):
            rotation = Rotation.from_matrix(matrices[k].numpy())
            expected = rotation.mean(None if given is None else given[k].numpy()).as_matrix()
            # the mean of widely spread rotations is ill-conditioned: room for a factor 1e4
            np.testing.assert_allclose(got[k].numpy(), expected, rtol=0, atol=1e-8)


def test_mean_rotation_ignores_weightless_ones_and_refuses_bad_weights(generator):
    matrices = rt.random_rotations(3, generator, torch.float64)
    only = rt.mean_rotation(matrices, torch.tensor([0.0, 2.0, 0.0]))
    torch.testing.assert_close(only, matrices[1], rtol=0, atol=1e-8)  # as above
    for weights in ([0.0, 0.0, 0.0], [1.0, -1.0, 1.0], [1.0, float("nan"), 1.0]):
        with pytest.raises(InputError, match="weights"):
            rt.mean_rotation(matrices, torch.tensor(weights))
    with pytest.raises(InputError, match="at least one"):
        rt.mean_rotation(matrices[:0])


def test_check_rotations_names_what_is_wrong(generator):
    good = rt.random_rotations(4, generator)
    rt.check_rotations(good)
    rt.check_rotations(good[:0])
    for bad in (-good, 1.01 * good, good * float("nan")):
        mixed = torch.cat([good, bad[:2]])
        with pytest.raises(InputError, match="poses: expected orthogonal .* got 2 that are not"):
            rt.check_rotations(mixed, "poses")
    with pytest.raises(InputError, match=r"got shape \[4, 3\]"):
        rt.check_rotations(good[..., 0])
