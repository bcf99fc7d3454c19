"""A fit beside the truth, known by construction."""

import json
import shutil

import pytest
import torch
from typer.testing import CliRunner

from cryoprob.app.cli import app
from cryoprob.app.evaluate import compare, evaluate
from cryoprob.checks import InputError
from cryoprob.fourier.shells import low_pass
from cryoprob.geometry.rotations import angle_between, random_rotations
from cryoprob.inference.config import FitConfig
from cryoprob.inference.presets.menu import load
from cryoprob.inference.run import run_fit
from cryoprob.inference.schedule import Schedule
from cryoprob.io.mrc import read_map, write_map
from cryoprob.io.tables import read_particles, write_particles
from cryoprob.metrics.motion import Motion
from cryoprob.phantoms import blobs

PIXEL_SIZE = 4.0


def motion(mirrored):
    generator = torch.Generator().manual_seed(3)
    turn = random_rotations(1, generator, dtype=torch.float64)[0]
    return Motion(turn, torch.tensor([5.0, -3.0, 2.0]).double(), mirrored)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_moved_truth_is_perfect_whatever_its_motion(simulated, tmp_path, mirrored):
    moved, run = motion(mirrored), tmp_path / "run"
    run.mkdir()
    truth, _ = read_map(simulated / "truth.mrc")
    table = read_particles(simulated / "truth.star")
    poses = moved.move_poses(table.rotation(), table.displacement())
    write_map(run / "volume.mrc", moved.move_map(truth, PIXEL_SIZE), PIXEL_SIZE)
    write_particles(run / "particles.star", table, *poses)
    (run / "config.toml").write_text('particles = "p.star"\n')
    found = evaluate(run, simulated)
    numbers = found.numbers()
    assert numbers.mirrored is mirrored
    assert numbers.images == 80
    # a blob map of 16 voxels has hardly any power in its last shells, and is moved twice
    assert min(numbers.fsc[:6]) > 0.99
    assert numbers.mean_rotation_deg < 1.0  # the alignment of so small a map
    assert numbers.mean_shift_A < 0.2 * PIXEL_SIZE
    back = torch.tensor(numbers.turn).double() @ moved.rotation
    assert float(angle_between(back, torch.eye(3).double())) < 1.0


def test_rows_in_another_order_are_matched(simulated, fitted, tmp_path):
    shuffled = tmp_path / "fit"
    shutil.copytree(fitted, shuffled)
    table = read_particles(fitted / "particles.star")
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))[:50].numpy()
    write_particles(shuffled / "particles.star", table[order])
    whole, part = evaluate(fitted, simulated), evaluate(shuffled, simulated)
    assert torch.allclose(part.poses.rotation_deg, whole.poses.rotation_deg[order])
    assert len(part.poses.rotation_deg) == 50


def test_symmetry_forgives_equivalent_poses(tmp_path):
    generator = torch.Generator().manual_seed(2)
    volume = blobs(16, PIXEL_SIZE, generator)
    flipped = volume + volume.roll((-1, -1), (1, 2)).flip((1, 2))  # C2 about z
    table = read_particles_of(tmp_path, generator)
    half_turn = torch.diag(torch.tensor([-1.0, -1.0, 1.0])).double()
    equivalent = table.rotation() @ half_turn
    write_particles(tmp_path / "other.star", table, equivalent, table.displacement())
    tables = read_particles(tmp_path / "other.star"), table
    found = compare(flipped, flipped, PIXEL_SIZE, symmetry="C2", tables=tables)
    assert float(found.poses.rotation_deg.max()) < 1.0


def read_particles_of(folder, generator):
    """A table with poses and no images."""
    from cryoprob.io.tables import new_table

    rotation = random_rotations(9, generator, dtype=torch.float64)
    table = new_table(folder / "p.mrcs", 9, PIXEL_SIZE, rotation=rotation, shift=torch.zeros(9, 2))
    write_particles(folder / "p.star", table)
    return read_particles(folder / "p.star")


def test_the_command_prints_and_writes(simulated, fitted):
    result = CliRunner().invoke(app, ["evaluate", str(fitted), "--truth", str(simulated)])
    assert result.exit_code == 0
    text = " ".join(result.stdout.split())
    written = json.loads((fitted / "evaluation.json").read_text())
    assert f"whole box {written['resolution_05_A']:.1f} A" in text
    assert "error of 80 given poses" in text and "the hand of the truth" in text
    assert "were given (--poses known), not inferred" in text and written["poses_given"]
    assert written["median_rotation_deg"] < 6  # true poses: it is the alignment of noisy maps
    only_map = ["evaluate", str(fitted), "--truth", str(simulated / "truth.mrc")]
    assert "poses" not in CliRunner().invoke(app, only_map).stdout


def test_no_resolution_is_finer_than_the_band(simulated, tmp_path):
    """A map that is the truth to the last shell, of a fit that says it used four."""
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(simulated / "truth.mrc", run / "volume.mrc")
    (run / "config.toml").write_text('particles = "p.star"\n')
    whole = evaluate(run, simulated / "truth.mrc").numbers()
    assert whole.masked_0143_A < 16 and whole.band_A is None
    (run / "metrics.jsonl").write_text('{"radius": 7}\n{"radius": 4}\n')
    text, written = evaluated(run, simulated / "truth.mrc")
    names = ("resolution_05_A", "resolution_0143_A", "masked_05_A", "masked_0143_A", "band_A")
    assert [written[name] for name in names] == [16.0] * 5  # 16 pixels of 4 A / 4
    assert "used shells to 16.0 A: no finer resolution is told" in text
    assert not written["poses_given"] and "given" not in text
    blurred = low_pass(read_map(run / "volume.mrc")[0], PIXEL_SIZE, 32.0)
    noise = torch.randn(16, 16, 16, generator=torch.Generator().manual_seed(5))
    write_map(run / "volume.mrc", blurred + 0.3 * noise * blurred.std(), PIXEL_SIZE)
    text, written = evaluated(run, simulated / "truth.mrc")
    assert written["resolution_05_A"] > 16 and "no finer" not in text


def test_a_larger_truth_is_cropped_and_another_field_of_view_refused(fitted, tmp_path):
    large = blobs(32, PIXEL_SIZE / 2, torch.Generator().manual_seed(1))
    write_map(tmp_path / "large.mrc", large, PIXEL_SIZE / 2)
    assert evaluate(fitted, tmp_path / "large.mrc").truth.shape == (16, 16, 16)
    write_map(tmp_path / "other.mrc", large, PIXEL_SIZE)
    with pytest.raises(InputError, match="64 A along a side.*32 voxels of 4 A"):
        evaluate(fitted, tmp_path / "other.mrc")


def test_other_images_are_refused(simulated, fitted, tmp_path):
    shutil.copytree(simulated, tmp_path / "other")
    with pytest.raises(InputError, match="truth.star.*others"):
        evaluate(fitted, tmp_path / "other")


def with_columns(table, folder, **columns):
    """truth.star of a table with further columns."""
    folder.mkdir()
    write_particles(folder / "truth.star", table, table.rotation(), table.displacement(), columns)
    return folder


def moving_fit(out, truth, **settings):
    """A short fit at known poses, of a preset or with classes."""
    plan = settings.pop("plan")
    given = {"poses": "known", "seed": 2, "threads": 1, **settings}
    run_fit(FitConfig(str(truth / "truth.star"), schedule=plan, **given), out)
    return out


@pytest.fixture(scope="module")
def classes(simulated, tmp_path_factory):
    """A fit with three classes, and what it put the images into."""
    out = tmp_path_factory.mktemp("fits") / "classes"
    moving_fit(out, simulated, plan=Schedule(max_iterations=2, classes=3))
    return out, read_particles(out / "particles.star")


def evaluated(run, truth):
    result = CliRunner().invoke(app, ["evaluate", str(run), "--truth", str(truth)])
    assert result.exit_code == 0, result.stderr
    return " ".join(result.stdout.split()), json.loads((run / "evaluation.json").read_text())


def test_classes_are_held_against_the_true_ones(classes, simulated, tmp_path):
    """A truth of the fit's own classes under other names, but for eight images."""
    run, table = classes
    own = torch.from_numpy(table.columns.numbers("rlnClassNumber")).long()
    truth = torch.tensor([0, 12, 10, 11])[own]
    truth[:8] = torch.where(truth[:8] == 10, 11, 10)
    others = read_particles(simulated / "truth.star")
    folder = with_columns(others, tmp_path / "true", rlnClassNumber=truth)
    shutil.copy(simulated / "truth.mrc", folder)
    text, written = evaluated(run, folder)
    assert written["wrong_class_share"] == pytest.approx(8 / 80)
    assert "conformations of 80 images against rlnClassNumber" in text
    assert "images in the wrong class, % 10.0 0" in text and "true class 10 found, %" in text
    assert written["leading_rank_correlation"] is None
    assert len(written["class_recall"]) == len(truth.unique())


def test_rows_without_a_number_are_named(classes, simulated, tmp_path):
    others = read_particles(simulated / "truth.star")
    number = torch.ones(80)
    number[7] = torch.nan
    folder = with_columns(others, tmp_path / "true", rlnClassNumber=number)
    shutil.copy(simulated / "truth.mrc", folder)
    with pytest.raises(InputError, match="_rlnClassNumber.*1 row without.*000008@"):
        evaluate(classes[0], folder)


def test_a_truth_without_conformations_says_so(classes, simulated, fitted):
    text, written = evaluated(classes[0], simulated)
    assert "classes of the fit are not compared" in text and "_rlnClassNumber" in text
    assert written["wrong_class_share"] is None
    text, _ = evaluated(classes[0], simulated / "truth.mrc")
    assert "not compared: the truth has no table" in text
    assert "compared:" not in evaluated(fitted, simulated)[0]  # this fit has none either


def test_coordinates_are_held_against_the_progress(simulated, tmp_path):
    """Progress that is the fit's own coordinate, by another clock; an earlier fit's left aside."""
    others = read_particles(simulated / "truth.star")
    stale = torch.arange(80.0)
    start = with_columns(others, tmp_path / "start", cryoprobCoordinate1=stale)
    small = {"zdim": 1, "width": 8, "layers": 1, "epochs": 4.0, "batch": 16}
    plan = Schedule(**{**load("cryodrgn").plan, **small})
    run = moving_fit(tmp_path / "fit", start, plan=plan, preset="cryodrgn")
    table = read_particles(run / "particles.star")
    z = torch.from_numpy(table.columns.numbers("cryoprobCoordinate1"))
    assert not z.equal(stale.double())
    true = with_columns(others, tmp_path / "true", frameProgress=(-2 * z).exp())
    shutil.copy(simulated / "truth.mrc", true / "map_mean.mrc")
    text, written = evaluated(run, true)
    assert written["leading_rank_correlation"] == pytest.approx(1)
    assert written["curve_rank_correlation"] == pytest.approx(1)
    assert "80 images against frameProgress" in text
    assert "rank correlation along the principal curve 1.000 1" in text
    part = torch.arange(0, 80, 2).numpy()
    write_particles(run / "particles.star", table[part])
    assert "40 images against frameProgress" in evaluated(run, true)[0]
    homogeneous = tmp_path / "plain"
    moving_fit(homogeneous, start, plan=Schedule(max_iterations=1))
    text, written = evaluated(homogeneous, true)
    assert "frameProgress" not in text and written["leading_rank_correlation"] is None


@pytest.mark.parametrize(
    ("name", "what"), [("a.pdb", "an atomic structure"), ("a.star", "a STAR")]
)
def test_a_truth_that_is_no_map(fitted, tmp_path, name, what):
    (tmp_path / name).write_text("ATOM\n" * 9)  # less than a header is long
    with pytest.raises(InputError, match=rf"{name}: expected an MRC file .*, got {what}"):
        evaluate(fitted, tmp_path / name)
