import csv
import math

import mrcfile
import pytest
import torch
from scipy.stats import chi2

from cryoprob.checks import InputError, OutputError
from cryoprob.fourier.shells import frequency_3d, low_pass, shell_sum
from cryoprob.fourier.transforms import fft3
from cryoprob.masks import sphere
from cryoprob.metrics import (
    corrected_fsc,
    fsc,
    half_map_fsc,
    last_shell,
    randomize_phases,
    resolution,
    write_fsc_csv,
)


def slow_fsc(a, b):
    """Voxel by voxel, with the shell as a rounded length."""
    box = a.shape[-1]
    fa, fb = (torch.fft.fftn(v) for v in (a, b))
    signed = [k if k < box // 2 else k - box for k in range(box)]
    sums = [[0.0, 0.0, 0.0] for _ in range(box)]
    for z in range(box):
        for y in range(box):
            for x in range(box):
                s = round(math.sqrt(signed[z] ** 2 + signed[y] ** 2 + signed[x] ** 2))
                p, q = complex(fa[z, y, x]), complex(fb[z, y, x])
                parts = ((p * q.conjugate()).real, abs(p) ** 2, abs(q) ** 2)
                sums[s] = [t + v for t, v in zip(sums[s], parts, strict=True)]
    return torch.tensor([c / math.sqrt(p * q) for c, p, q in sums[: box // 2 + 1]]).double()


def column(path, name):
    with open(path) as stream:
        return torch.tensor([float(row[name]) for row in csv.DictReader(stream)]).double()


def test_fsc_is_the_slow_one(generator):
    a, b = torch.randn(2, 8, 8, 8, generator=generator, dtype=torch.float64)
    b = a + 0.5 * b
    torch.testing.assert_close(fsc(a, b), slow_fsc(a, b), rtol=0, atol=1e-7)  # its float32 end


def test_fsc_of_a_map_with_itself(generator):
    a = torch.randn(8, 8, 8, generator=generator)
    one = torch.ones(5).double()
    torch.testing.assert_close(fsc(a, 3 * a), one)
    torch.testing.assert_close(fsc(a, -a), -one)


def test_fsc_of_many_maps_and_of_masked_maps(generator):
    a, b = torch.randn(2, 3, 8, 8, 8, generator=generator)
    mask = sphere(8, 2.0, 1.0)
    curves = fsc(a, b, mask)
    assert curves.shape == (3, 5)
    torch.testing.assert_close(curves[1], fsc(a[1] * mask.double(), b[1] * mask.double()))


def test_shells_without_power_have_no_correlation(generator):
    a = low_pass(torch.randn(16, 16, 16, generator=generator).double(), 1.0, 4.0, edge_shells=0)
    curve = fsc(a, torch.zeros_like(a))
    assert curve.abs().max() == 0


def test_fsc_against_the_simulation_program(data):
    """relion_reconstruct's map against the truth; six decimals were written."""
    truth, made = (
        torch.from_numpy(mrcfile.read(data / "relion-70s" / name).copy())
        for name in ("truth.mrc", "relion_reconstruct.mrc")
    )
    expected = column(data / "relion-70s" / "fsc.csv", "fsc")
    curve = fsc(made, truth)
    torch.testing.assert_close(curve, expected, rtol=0, atol=6e-7)
    assert last_shell(curve, 0.5) == 19
    ball = fsc(made, truth, sphere(64, 27.0, 4.0, torch.float64))
    expected = column(data / "relion-70s" / "fsc.csv", "fsc_ball_radius_27px")
    torch.testing.assert_close(ball, expected, rtol=0, atol=6e-7)
    assert last_shell(ball, 0.5) == 20


def test_correction_against_relion(data):
    """RELION's masked and randomized curves give its corrected one."""
    path = data / "vectors" / "relion_postprocess_fsc.csv"
    names = "unmasked", "masked", "phase_randomized_masked", "corrected"
    unmasked, masked, randomized, expected = (column(path, f"fsc_{name}") for name in names)
    first = last_shell(unmasked, 0.8) + 1
    box_A = 720.0
    assert box_A / first == pytest.approx(32.727273)  # rlnRandomiseFrom
    corrected = corrected_fsc(masked, randomized, first)
    # six decimals were written, and 1 / (1 - .62) multiplies their rounding
    torch.testing.assert_close(corrected, expected, rtol=0, atol=1.4e-6)
    assert box_A / last_shell(corrected, 0.143) == pytest.approx(16.363636)  # rlnFinalResolution


def test_last_shell_counts_the_unbroken_run():
    assert last_shell(torch.tensor([1.0, 0.9, 0.6, 0.4, 0.8, 0.1]), 0.5) == 2
    assert last_shell(torch.tensor([1.0, 0.4, 0.6]), 0.5) == 0
    assert last_shell(torch.tensor([0.0, 0.5, 0.9]), 0.5) == 2
    assert last_shell(torch.tensor([1.0, 0.9, float("nan"), 0.9]), 0.5) == 1


def test_resolution_is_interpolated():
    curve = torch.tensor([1.0, 0.9, 0.7, 0.3, 0.6])
    # halfway between shells 2 and 3 of an 8 * 2 A box
    assert resolution(curve, 0.5, 2.0, 8) == pytest.approx(16 / 2.5)
    assert resolution(curve, 0.7, 2.0, 8) == pytest.approx(16 / 2)
    assert resolution(torch.full((5,), 0.9), 0.5, 2.0, 8) == 4.0
    assert resolution(torch.tensor([1.0, 0.2, 0.9, 0.9, 0.9]), 0.5, 2.0, 8) == float("inf")
    with pytest.raises(InputError, match="FSC curve"):
        resolution(curve, 0.5, 2.0, 10)
    with pytest.raises(InputError, match="pixel size"):
        resolution(curve, 0.5, -2.0, 8)


def test_random_phases_keep_amplitudes_and_low_shells(generator):
    volume = torch.randn(16, 16, 16, generator=generator, dtype=torch.float64)
    before, after = fft3(volume), fft3(randomize_phases(volume, 4, generator))
    torch.testing.assert_close(after.abs(), before.abs())
    low = frequency_3d(16) < 4
    torch.testing.assert_close(after[low], before[low])


def test_random_phases_are_independent(generator, false_alarm):
    volume = torch.randn(32, 32, 32, generator=generator)
    once, twice = (randomize_phases(volume, 1, generator) for _ in range(2))
    assert once.dtype == volume.dtype
    power = fft3(volume.double()).abs() ** 2
    # Re exp(i phase) has variance 1/2, and every frequency its conjugate: nearly normal sums
    variance = (shell_sum(power**2) / shell_sum(power) ** 2)[2:-1]
    for other in (volume, twice):
        statistic = float((fsc(once, other)[2:] ** 2 / variance).sum())
        assert chi2.isf(1 - false_alarm / 2, 15) < statistic < chi2.isf(false_alarm / 2, 15)


@pytest.fixture(scope="module")
def halves(beads, draw):
    """Two half maps of a molecule that ends at shell 6, with white noise."""

    def draw_halves(seed):
        signal = low_pass(draw(beads, 32), 1.0, 5.3, edge_shells=0)
        source = torch.Generator().manual_seed(seed)
        noise = torch.randn(2, 32, 32, 32, generator=source, dtype=torch.float64)
        return tuple(signal + 0.1 * signal.std() * noise)

    return draw_halves


def test_a_tight_mask_is_corrected_for(halves, beads, draw, generator):
    """Beyond the signal the mask's sharp edge alone correlates the halves; corrected, nothing."""
    mask = (draw(beads, 32, sd=2.0) > 0.5).double()
    means = []
    for seed in range(8):
        found = half_map_fsc(*halves(seed), 1.0, mask, generator)
        assert found.masked is not None and 7 <= found.randomized_from <= 8
        curves = (found.unmasked, found.masked, found.corrected)
        means.append([float(curve[10:].mean()) for curve in curves])
        low = slice(0, found.randomized_from + 2)
        torch.testing.assert_close(found.corrected[low], found.masked[low])
        assert found.resolution() == resolution(found.corrected, 0.143, 1.0, 32)
    unmasked, masked, corrected = torch.tensor(means).mean(0).tolist()
    assert masked > 0.4
    # one pair of halves has a standard deviation of 0.008 and, under the mask of 2000 voxels and
    # divided by 1 - 0.6, of 0.07 (20 seeds); 8 of them, 4 of theirs
    assert abs(unmasked) < 0.012
    assert abs(corrected) < 0.1


def test_signal_under_a_mask_survives_the_correction(beads, draw, generator):
    """White signal and noise of equal power: FSC 1/2, with or without the mask."""
    mask = sphere(32, 12.0, 4.0).double()
    noise = torch.randn(3, 32, 32, 32, generator=generator, dtype=torch.float64)
    found = half_map_fsc(noise[0] + noise[1], noise[0] + noise[2], 1.0, mask, generator)
    assert found.randomized is not None and found.randomized_from == 1
    # shells 6 to 16: 22000 voxels, a third of them independent under the mask: sd 0.01
    assert float(found.randomized[6:].mean()) == pytest.approx(0.0, abs=0.05)
    assert float(found.corrected[6:].mean()) == pytest.approx(0.5, abs=0.05)


def test_without_a_mask_nothing_is_corrected(halves):
    found = half_map_fsc(*halves(5), 2.0)
    assert list(found.curves()) == ["fsc_corrected", "fsc_unmasked"] and found.box == 32
    torch.testing.assert_close(found.corrected, fsc(*halves(5)))
    with pytest.raises(InputError, match="generator"):
        half_map_fsc(*halves(5), 2.0, torch.ones(32, 32, 32))


def test_the_table_reads_back(tmp_path, halves):
    found = half_map_fsc(*halves(5), 2.0)
    path = tmp_path / "fsc.csv"
    write_fsc_csv(path, found.curves(), found.pixel_size)
    lines = path.read_text().splitlines()
    assert lines[0] == "shell,frequency_1_per_A,resolution_A,fsc_corrected,fsc_unmasked"
    assert lines[1].startswith("0,0.000000,inf,") and lines[17].startswith("16,0.250000,4.0000,")
    read = column(path, "fsc_unmasked")
    torch.testing.assert_close(read, found.unmasked, rtol=0, atol=6e-7)


def test_a_failed_write_leaves_the_old_table(tmp_path):
    curves = {"fsc": torch.ones(5)}
    with pytest.raises(OutputError):
        write_fsc_csv(tmp_path / "no folder" / "fsc.csv", curves, 1.0)
    path = tmp_path / "fsc.csv"
    path.write_text("old")
    with pytest.raises(InputError, match="FSC curves"):
        write_fsc_csv(path, curves | {"other": torch.ones(6)}, 1.0)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("shape", [(8, 8, 6), (10, 10, 10), (8, 8)])
def test_maps_must_agree(shape):
    with pytest.raises(InputError, match="maps to correlate"):
        fsc(torch.zeros(8, 8, 8), torch.zeros(shape))
    with pytest.raises(InputError, match="maps to correlate"):
        fsc(torch.zeros(8, 8, 8), torch.zeros(8, 8, 8), torch.zeros(shape))
