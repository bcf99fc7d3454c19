import mrcfile
import pytest
import torch

from cryoprob.checks import InputError
from cryoprob.fourier.transforms import crop_map, fft3
from cryoprob.geometry.rotations import angle_between, euler_to_matrix, random_rotations
from cryoprob.geometry.symmetry import point_group
from cryoprob.metrics import Motion, align_maps, fsc, last_shell
from cryoprob.metrics.alignment import _Candidates, _smallest
from cryoprob.metrics.matching import BandMatch

BOX, PIXEL = 32, 2.0
SIDE = BOX * PIXEL


def moved(points, rotation, shift_A, mirrored):
    return (-1 if mirrored else 1) * points @ rotation.T + shift_A / SIDE


def with_noise(volume, shell, generator):
    """White noise that leaves an FSC of 1/2 with the clean map in ``shell``."""
    axis = torch.arange(BOX) - BOX // 2
    k = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    power = (fft3(volume).abs() ** 2)[(k - shell).abs() < 0.5].mean()
    noise = torch.randn(volume.shape, generator=generator, dtype=torch.float64)
    return volume + noise * (3 * power).sqrt()


@pytest.mark.parametrize("seed", range(6))
def test_a_known_motion_is_found(beads, draw, seed):
    generator = torch.Generator().manual_seed(seed)
    rotation = random_rotations(1, generator, torch.float64)[0]
    shift_A = 3 * torch.randn(3, generator=generator).double()
    mirrored = seed % 2 == 1
    reference = draw(moved(beads, rotation, shift_A, mirrored), BOX)
    found = align_maps(draw(beads, BOX), reference, pixel_size=PIXEL)
    assert found.mirrored == mirrored
    # trilinear sampling of the padded transform leaves some 0.01 degrees and 0.002 voxels
    assert float(angle_between(found.rotation, rotation)) < 0.1
    assert float((found.shift_A - shift_A).norm()) < 0.02 * PIXEL
    assert found.other_hand is not None and found.score > found.other_hand + 100
    assert found.aligned is not None
    assert float(fsc(found.aligned, reference)[1:13].min()) > 0.99


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_noisy_map_is_found(beads, draw, generator, mirrored):
    rotation = euler_to_matrix(torch.tensor([130.0, 50.0, -77.0]).double())
    shift_A = torch.tensor([-3.1, 4.2, 1.3]).double()
    noisy = with_noise(draw(beads, BOX), 9, generator)
    reference = draw(moved(beads, rotation, shift_A, mirrored), BOX)
    found = align_maps(noisy, reference, pixel_size=PIXEL)
    assert found.mirrored == mirrored
    # Fisher's information of the shells gives 0.2 degrees and 0.03 voxels here
    assert float(angle_between(found.rotation, rotation)) < 0.75
    assert float((found.shift_A - shift_A).norm()) < 0.1 * PIXEL


def test_a_map_of_few_shells_is_found(beads, draw, generator):
    """Agreement to shell 4 alone, as after a bad start, still gives the hand and the rotation."""
    rotation = euler_to_matrix(torch.tensor([-20.0, 110.0, 65.0]).double())
    noisy = with_noise(draw(beads, BOX), 4, generator)
    reference = draw(moved(beads, rotation, torch.zeros(3).double(), True), BOX)
    found = align_maps(noisy, reference, pixel_size=PIXEL)
    assert found.mirrored
    assert float(angle_between(found.rotation, rotation)) < 6.0  # 2 degrees of Fisher's


def test_a_map_lies_on_itself(beads, draw):
    volume = draw(beads, BOX)
    found = align_maps(volume, volume, pixel_size=PIXEL)
    assert not found.mirrored
    assert float(angle_between(found.rotation, torch.eye(3).double())) < 0.02
    assert float(found.shift_A.norm()) < 0.002 * PIXEL


def test_one_hand_on_demand(beads, draw):
    volume, mirror = draw(beads, BOX), draw(-beads, BOX)
    found = align_maps(volume, mirror, pixel_size=PIXEL, hands=False)
    assert not found.mirrored and found.other_hand is None
    # the wrong hand is told by its score
    assert found.score < 0.5 * align_maps(volume, mirror, pixel_size=PIXEL).score


def test_a_symmetric_map_is_found_up_to_its_group(beads, draw):
    group = point_group("C4")
    orbit = torch.cat([(beads + torch.tensor([0.08, 0, 0])) * 0.8 @ g.T for g in group])
    rotation = euler_to_matrix(torch.tensor([80.0, 35.0, 10.0]).double())
    shift_A = torch.tensor([2.0, -3.0, 1.0]).double()
    moving, reference = draw(moved(orbit, rotation, shift_A, False), BOX), draw(orbit, BOX)
    found = align_maps(moving, reference, pixel_size=PIXEL, group="C4")
    assert not found.mirrored
    back = group @ rotation.mT
    # as without symmetry
    assert float(angle_between(found.rotation, back).min()) < 0.1
    assert float((found.shift_A + found.rotation @ shift_A).norm()) < 0.02 * PIXEL
    traces = (group @ found.rotation).diagonal(dim1=1, dim2=2).sum(-1)
    assert traces.argmax() == 0  # of the four, the smallest rotation


def test_an_equivalent_alignment_turns_the_shift_too():
    """Turning the aligned map by g takes its shift s to g s."""
    group = point_group("C4")
    rotation = euler_to_matrix(torch.tensor([-88.0, 4.0, -3.0]).double())
    shift = torch.tensor([0.1, 0.02, -0.03]).double()
    found = _Candidates(rotation[None], shift[None], torch.tensor([False]), torch.ones(1))
    motion = _smallest(found, group, 10.0)
    turn = motion.rotation @ rotation.mT
    assert float(angle_between(motion.rotation, torch.eye(3).double())) < 10
    assert float(angle_between(turn, torch.eye(3).double())) == pytest.approx(90.0)
    torch.testing.assert_close(motion.shift_A, 10 * turn @ shift)


def test_the_hand_of_a_ribosome(data):
    """RELION's reconstruction, turned, displaced and mirrored, goes back on the truth."""
    folder = data / "relion-70s"
    truth, made = (
        torch.from_numpy(mrcfile.read(folder / name).copy())
        for name in ("truth.mrc", "relion_reconstruct.mrc")
    )
    rotation = euler_to_matrix(torch.tensor([100.0, 140.0, 20.0]).double())
    shift_A = torch.tensor([7.0, -11.0, 4.0]).double()
    away = Motion(rotation, shift_A, True).move_map(made, 5.0)
    found = align_maps(away, truth, pixel_size=5.0)
    assert found.mirrored
    # V(-A^T (r - s)) is undone by V'(-A (r + A^T s))... : rotation A^T, shift A^T s
    assert float(angle_between(found.rotation, rotation.mT)) < 0.5
    assert float((found.shift_A - rotation.mT @ shift_A).norm()) < 0.1 * 5.0
    assert found.aligned is not None
    # what it was before: shell 19 (fsc.csv)
    assert abs(last_shell(fsc(found.aligned, truth), 0.5) - 19) <= 1


def test_a_larger_box_takes_the_same_path(beads, draw):
    rotation = euler_to_matrix(torch.tensor([10.0, 80.0, 170.0]).double())
    reference = draw(beads @ rotation.T, 64, sd=2.0)
    found = align_maps(draw(-beads, 64, sd=2.0), reference, pixel_size=1.0, radius=20)
    assert found.mirrored and float(angle_between(found.rotation, rotation)) < 0.05


def test_samples_are_the_map_s_transform(beads, draw, generator):
    """Between grid points, against the sum over the beads."""
    sd = 1.5
    rotation = random_rotations(3, generator, torch.float64)
    match = BandMatch.of(draw(beads, 48, sd), draw(beads, 48, sd), 10)
    at = match.frequency.double() @ rotation
    wave = torch.exp(-2j * torch.pi * (at @ beads.T)).sum(-1)
    blur = torch.exp(-2 * (torch.pi * sd / 48) ** 2 * (at**2).sum(-1))
    truth = wave * blur
    made = match.sample(rotation)[:, 0] / match.gain
    scale = (made.conj() * truth).real.sum() / (made.abs() ** 2).sum()
    # measured: 0.8 % with the gridding correction, 1.6 % without
    assert (scale * made - truth).norm() < 0.012 * truth.norm()


def test_the_slopes_are_derivatives(beads, draw, generator):
    """Against differences of the values, for both hands."""
    match = BandMatch.of(draw(beads, 24), draw(beads, 24), 5)
    rotation = random_rotations(2, generator, torch.float64)
    shift, mirrored = torch.full((2, 3), 0.02).double(), torch.tensor([False, True])

    def values(turn, shift):
        found = match.sample(torch.linalg.matrix_exp(turn) @ rotation)[:, 0]
        handed = torch.where(mirrored[:, None], found.conj(), found) * match.shift_phase(shift)
        power = match.shell_sum(handed.abs() ** 2) / match.count
        return handed / power.sqrt()[:, match.shell]

    _, slopes = match._moved_and_slopes(rotation, shift, mirrored)
    h = 0.1
    generators = torch.zeros(3, 3, 3).double()
    for i, j, k in ((0, 1, 2), (1, 2, 0), (2, 0, 1)):
        generators[i, k, j], generators[i, j, k] = h, -h
    for i in range(3):
        still, nudge = torch.zeros(3, 3).double(), h / 5 * torch.eye(3)[i]
        by_turn = (values(generators[i], shift) - values(-generators[i], shift)) / (2 * h)
        by_shift = (values(still, shift + nudge) - values(still, shift - nudge)) / (0.4 * h)
        for slope, difference in ((slopes[:, i], by_turn), (slopes[:, 3 + i], by_shift)):
            # trilinear values at half a shell's distance; a wrong sign is off by 2
            assert (slope - difference).norm() < 0.15 * slope.norm()


def test_cropping_does_not_move_the_answer(beads, draw):
    """Maps resampled to a smaller box keep rotation and shift in Angstrom."""
    rotation = euler_to_matrix(torch.tensor([10.0, 20.0, 30.0]).double())
    shift_A = torch.tensor([1.0, 2.0, -3.0]).double()
    reference = draw(beads @ rotation.T + shift_A / 48, 48, sd=2.0)
    small = align_maps(
        crop_map(draw(beads, 48, sd=2.0), 24), crop_map(reference, 24), pixel_size=2.0
    )
    assert float((small.shift_A - shift_A).norm()) < 0.05
    assert float(angle_between(small.rotation, rotation)) < 0.2


def test_bad_maps_are_refused(beads, draw):
    volume = draw(beads, 16)
    with pytest.raises(InputError, match="constant"):
        align_maps(torch.zeros(16, 16, 16), volume, pixel_size=1.0)
    with pytest.raises(InputError, match="Resample"):
        align_maps(draw(beads, 18), volume, pixel_size=1.0)
    with pytest.raises(InputError, match="NaN"):
        align_maps(volume, volume * torch.nan, pixel_size=1.0)
    with pytest.raises(InputError, match="radius"):
        align_maps(volume, volume, pixel_size=1.0, radius=8)
