import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates

from cryoprob.checks import InputError
from cryoprob.geometry.rotations import euler_to_matrix, random_rotations
from cryoprob.metrics import Motion, fsc

BOX, PIXEL = 32, 2.5
TURN = euler_to_matrix(torch.tensor([37.0, 71.0, -112.0]).double())
SHIFT_A = torch.tensor([6.0, -7.5, 8.0]).double()


def projection(volume, rotation, shift):
    """The definition: the map at R^T (x - tx, y - ty, z), in voxels, summed over z."""
    box = volume.shape[-1]
    axis = np.arange(box) - box // 2
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    lab = np.stack([x - float(shift[0]), y - float(shift[1]), z], -1)
    molecule = lab @ rotation.numpy()  # rows R^T lab
    at = np.moveaxis(molecule[..., ::-1], -1, 0) + box // 2
    return torch.from_numpy(map_coordinates(volume.numpy(), at, order=5).sum(0))


def likeness(a, b):
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.parametrize("mirrored", [False, True])
def test_move_map_moves_the_beads(beads, draw, mirrored):
    sign = -1 if mirrored else 1
    moved = Motion(TURN, SHIFT_A, mirrored).move_map(draw(beads, BOX), PIXEL)
    there = sign * beads @ TURN.T + SHIFT_A / (BOX * PIXEL)
    # cubic splines of the padded transform: 0.3 % of the peak (a voxel of error costs over 30 %)
    truth = draw(there, BOX)
    assert (moved - truth).abs().max() < 0.005 * truth.max()


def test_no_motion_is_the_low_passed_map(beads, draw):
    still = Motion(torch.eye(3).double(), torch.zeros(3).double(), False)
    volume = draw(beads, BOX, sd=2.0)
    # on the grid the spline interpolates exactly; what is cut beyond Nyquist is e^-20 of the peak
    torch.testing.assert_close(still.move_map(volume, PIXEL), volume, rtol=0, atol=2e-6)
    assert still.move_map(volume.float(), PIXEL).dtype == torch.float32


def test_mirror_inverts_voxel_by_voxel(beads, draw):
    volume = draw(beads, BOX, sd=2.0)
    inverted = Motion(torch.eye(3).double(), torch.zeros(3).double(), True).move_map(volume, 1.0)
    expected = torch.roll(volume.flip(0, 1, 2), (1, 1, 1), (0, 1, 2))
    torch.testing.assert_close(inverted, expected, rtol=0, atol=2e-6)


def test_move_map_keeps_every_shell(beads, draw):
    moved = Motion(TURN, SHIFT_A, False).move_map(draw(beads, BOX), PIXEL)
    truth = draw(beads @ TURN.T + SHIFT_A / (BOX * PIXEL), BOX)
    # all shells but the last alike; there the beads' own aliases (e^-8 of the peak) begin to show
    assert float(fsc(moved, truth)[1:-2].min()) > 0.995


@pytest.mark.parametrize("mirrored", [False, True])
def test_moved_poses_give_the_same_images(beads, draw, generator, mirrored):
    motion = Motion(TURN, SHIFT_A, mirrored)
    before = draw(beads, BOX, sd=1.6)
    after = draw((-1 if mirrored else 1) * beads @ TURN.T + SHIFT_A / (BOX * PIXEL), BOX, sd=1.6)
    rotations = random_rotations(4, generator, torch.float64)
    shifts = torch.tensor([[3.0, -1.0], [0.0, 4.0], [-5.0, -2.0], [2.5, 2.5]]).double()
    moved = motion.move_poses(rotations, shifts)
    for r, t, r_new, t_new in zip(rotations, shifts, *moved, strict=True):
        image = projection(before, r, t / PIXEL)
        # splines of order 5 in space: 1e-3; every wrong sign costs more than 0.05 (next test)
        assert likeness(projection(after, r_new, t_new / PIXEL), image) > 0.998


@pytest.mark.parametrize("mirrored", [False, True])
def test_wrong_poses_give_other_images(beads, draw, mirrored):
    """The test above can see every sign: half turn, transposes, and the shift's."""
    motion = Motion(TURN, SHIFT_A, mirrored)
    before = draw(beads, BOX, sd=1.6)
    after = draw((-1 if mirrored else 1) * beads @ TURN.T + SHIFT_A / (BOX * PIXEL), BOX, sd=1.6)
    r, t = euler_to_matrix(torch.tensor([20.0, 65.0, 130.0]).double()), torch.zeros(2).double()
    image = projection(before, r, t)
    turned, shift = motion.move_poses(r, t)
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0])).double()
    wrong = [
        (half_turn @ turned, shift),
        (turned @ TURN @ TURN, shift),
        (turned.mT, shift),
        (turned, -shift),
        (turned, 0 * shift),
        (turned, shift.flip(0)),
    ]
    for r_new, t_new in wrong:
        assert likeness(projection(after, r_new, t_new / PIXEL), image) < 0.95


def test_flipping_z_is_an_inversion_and_a_half_turn(beads, draw, generator):
    """A map flipped in z shows the images of the old one at M R M, M = diag(1, 1, -1)."""
    flip = torch.diag(torch.tensor([1.0, 1.0, -1.0])).double()
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0])).double()
    flipped = draw(beads @ flip, BOX)
    motion = Motion(half_turn, torch.zeros(3).double(), True)
    # the error of the splines
    assert (motion.move_map(draw(beads, BOX), 1.0) - flipped).abs().max() < 0.005 * flipped.max()
    rotations = random_rotations(5, generator, torch.float64)
    moved, _ = motion.move_poses(rotations, torch.zeros(5, 2).double())
    torch.testing.assert_close(moved, flip @ rotations @ flip, rtol=0, atol=1e-12)


@pytest.mark.parametrize("bad", [torch.zeros(4, 4, 6), torch.zeros(5, 5, 5), torch.zeros(4, 4)])
def test_only_even_cubes_are_moved(bad):
    still = Motion(torch.eye(3).double(), torch.zeros(3).double(), False)
    with pytest.raises(InputError, match="map to move"):
        still.move_map(bad, 1.0)


def test_a_map_with_nan_is_refused():
    still = Motion(torch.eye(3).double(), torch.zeros(3).double(), False)
    with pytest.raises(InputError, match="NaN"):
        still.move_map(torch.full((4, 4, 4), torch.nan), 1.0)
    with pytest.raises(InputError, match="pixel size"):
        still.move_map(torch.zeros(4, 4, 4), 0.0)
