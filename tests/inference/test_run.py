"""Whole fits: outputs, resume after kill -9, bad folders, half sets, known and local poses."""

import os
import random
import resource
import signal
import subprocess
import sys
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import torch

import cryoprob as cp
from cryoprob.checks import InputError, OutputError
from cryoprob.inference.build import build_guide, build_model, image_power
from cryoprob.inference.config import FitConfig
from cryoprob.inference.families import Recipe, family
from cryoprob.inference.loop import Quiet
from cryoprob.inference.presets.menu import load
from cryoprob.inference.run import run_fit
from cryoprob.inference.schedule import Schedule
from cryoprob.io.mrc import read_map
from cryoprob.io.mrc_writer import write_map
from cryoprob.io.tables import read_particles
from cryoprob.metrics.fsc import fsc
from cryoprob.metrics.pose_error import pose_error
from cryoprob.models.simulate import simulate
from cryoprob.particles import ParticleStack
from cryoprob.phantoms import bead_walk

BOX, PIXEL, COUNT = 16, 8.0, 60
QUICK = Schedule(max_iterations=4, max_order=3, starts=2, start_steps=4, start_images=20)
SAME = ("config.toml", "metrics.jsonl", "particles.star", "volume.mrc", "volume_std.mrc")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Sixty images of a bead walk at SNR 1, 16 pixels of 8 A."""
    folder = tmp_path_factory.mktemp("stack")
    generator = torch.Generator().manual_seed(7)
    volume = bead_walk(20, BOX, PIXEL, generator)
    return simulate(volume, PIXEL, COUNT, 1.0, generator, out=folder)


def config(experiment, **settings):
    settings = {"seed": 3, "threads": 1, "mask": "sphere", "schedule": QUICK} | settings
    return FitConfig(str(experiment.particles), **settings)


def contents(folder):
    """Every output that must be the same byte for byte (log.txt and the checkpoint hold times)."""
    return {name: (folder / name).read_bytes() for name in (*SAME, "posterior.nc")}


def test_outputs(experiment, tmp_path):
    result = run_fit(config(experiment, reference=str(experiment.truth_map)), tmp_path / "fit")
    assert all((tmp_path / "fit" / name).stat().st_size for name in (*SAME, "posterior.nc"))
    volume, pixel_size = read_map(tmp_path / "fit" / "volume.mrc")
    assert pixel_size == pytest.approx(PIXEL) and torch.equal(volume, result.volume)
    table = read_particles(tmp_path / "fit" / "particles.star", need=("rotation", "shift"))
    assert len(table) == COUNT
    assert FitConfig.from_toml(tmp_path / "fit" / "config.toml").seed == 3
    assert result.to_arviz().sample_stats["rotation"].shape == (COUNT, 3, 3)


def test_classes_that_begin_alike_are_refused(experiment, tmp_path):
    twice = f"{experiment.truth_map},{experiment.truth_map}"
    settings = config(experiment, reference=twice, schedule=replace(QUICK, classes=2))
    with pytest.raises(InputError, match="the same twice"):
        run_fit(settings, tmp_path / "fit")


@pytest.mark.slow
def test_a_low_pass_start_finds_the_poses(tmp_path):
    """At SNR 3 a map of 20 A decides the poses: the median error (7.2 to 7.7 degrees were seen) is
    within the coarsest cell of 15 degrees."""
    generator = torch.Generator().manual_seed(7)
    drawn = simulate(
        bead_walk(20, BOX, PIXEL, generator), PIXEL, 150, 3.0, generator, out=tmp_path
    )
    settings = replace(QUICK, max_iterations=10, max_order=4)
    start = config(drawn, schedule=settings, reference=str(drawn.truth_map), low_pass_A=20.0)
    result = run_fit(start, tmp_path / "fit")
    truth = read_particles(drawn.truth, need=("rotation", "shift"))
    error = pose_error(
        result.posterior.rotation.double(),
        result.posterior.shift.double(),
        truth.rotation(),
        truth.displacement(),
    )
    assert error.median_rotation_deg < 15


RUN = """
import os, signal, sys
from cryoprob.inference.config import FitConfig
from cryoprob.inference.run import run_fit
from cryoprob.inference.loop import Quiet
steps = int(sys.argv[3])
class Killer(Quiet):
    def step(self, record):
        global steps
        steps -= 1
        if steps == 0:
            os.kill(os.getpid(), signal.SIGKILL)
run_fit(FitConfig.from_toml(sys.argv[1]), sys.argv[2], resume=sys.argv[4] == "1", observer=Killer())
"""


def run_and_kill(settings, folder, steps, resume):
    """A fit in a process of its own, killed when its ``steps``-th step is told."""
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-c",
        RUN,
        settings,
        folder,
        str(steps),
        str(int(resume)),
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=env).returncode


@pytest.mark.slow
def test_resume_after_kill_gives_the_same_bytes(experiment, tmp_path):
    """Killed twice at random steps, in the starts and in the refinement: nothing differs."""
    (tmp_path / "fit.toml").write_text(config(experiment).to_toml())
    run_fit(config(experiment), tmp_path / "whole")
    total = 2 * (QUICK.start_steps + 8)
    first, second = random.randint(1, total - 1), random.randint(1, QUICK.max_iterations)
    arguments = tmp_path / "fit.toml", tmp_path / "killed"
    assert run_and_kill(*arguments, first, resume=False) == -signal.SIGKILL
    assert run_and_kill(*arguments, total - first + second, resume=True) in (-signal.SIGKILL, 0)
    if not (tmp_path / "killed" / "volume.mrc").exists():
        run_fit(config(experiment), tmp_path / "killed", resume=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole"), (first, second)


def test_same_seed_same_bytes_other_seed_other_map(experiment, tmp_path):
    known = config(experiment, reference=str(experiment.truth_map))
    runs = [known, known, replace(known, seed=4)]
    for number, one in enumerate(runs):
        run_fit(one, tmp_path / str(number))
    first, second, third = (contents(tmp_path / str(n)) for n in range(3))
    assert first == second
    assert first["volume.mrc"] != third["volume.mrc"]


def test_known_poses_give_the_map_back(experiment, tmp_path):
    truth = replace(config(experiment, poses="known"), particles=str(experiment.truth))
    result = run_fit(truth, tmp_path / "fit")
    volume, _ = read_map(experiment.truth_map)
    curve = fsc(result.volume, volume)
    assert curve[1:4].min() > 0.9  # 60 images at SNR 1 decide the first shells


def test_local_search_stays_near(experiment, tmp_path):
    truth = config(
        experiment,
        poses="local",
        reference=str(experiment.truth_map),
        schedule=replace(QUICK, coarse_order=3, max_order=4, max_iterations=2),
    )
    result = run_fit(replace(truth, particles=str(experiment.truth)), tmp_path / "fit")
    known = read_particles(experiment.truth, need=("rotation",)).rotation()
    error = pose_error(result.posterior.rotation.double(), None, known, None)
    # the search reaches 12 degrees and a cell of 7.5
    assert error.rotation_deg.max() < 12 + 7.5


def test_half_sets(experiment, tmp_path):
    settings = config(experiment, reference=str(experiment.truth_map), half_sets=True)
    result = run_fit(settings, tmp_path / "fit")
    assert len(result.halves) == 2 and not torch.equal(*result.halves)
    assert (tmp_path / "fit" / "half2.mrc").exists() and (tmp_path / "fit" / "fsc.csv").exists()
    assert torch.isfinite(result.posterior.bound).all()
    assert torch.allclose(result.curve, fsc(*result.halves), atol=1e-6)


def test_symmetry_gives_a_symmetric_map(experiment, tmp_path):
    """C2 about z: the map equals itself turned by 180 degrees, to interpolation."""
    settings = config(experiment, reference=str(experiment.truth_map), symmetry="C2")
    volume = run_fit(settings, tmp_path / "fit").volume
    turned = torch.zeros_like(volume)
    turned[:, 1:, 1:] = volume[:, 1:, 1:].flip(1, 2)
    assert fsc(volume, turned)[1:6].min() > 0.98


def test_a_folder_with_a_fit_is_not_overwritten(experiment, tmp_path):
    settings = config(experiment, reference=str(experiment.truth_map))
    run_fit(settings, tmp_path / "fit")
    before = contents(tmp_path / "fit")
    with pytest.raises(InputError, match="--resume"):
        run_fit(settings, tmp_path / "fit")
    with pytest.raises(InputError, match=r"got --seed 9 \(it was 3\)"):
        run_fit(replace(settings, seed=9), tmp_path / "fit", resume=True)
    assert contents(tmp_path / "fit") == before


@pytest.mark.parametrize(
    "content", [{"other": {}}, {"system": {}, "refine": {}, "starts": {}}, [3]]
)
@pytest.mark.parametrize("kind", ["from nothing", "reference", "preset"])
def test_a_checkpoint_of_another_fit_is_refused_in_words(experiment, tmp_path, kind, content):
    small = {"zdim": 2, "width": 8, "layers": 1}
    settings = {
        "from nothing": {},
        "reference": {"reference": str(experiment.truth_map)},
        "preset": {"preset": "cryodrgn", "poses": "known", "mask": "auto"}
        | {"schedule": Schedule(**{**load("cryodrgn").plan, **small})},
    }[kind]
    begun = replace(config(experiment, **settings), particles=str(experiment.truth))
    (tmp_path / "config.toml").write_text(begun.to_toml())
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt: expected .*again\."):
        run_fit(begun, tmp_path, resume=True)


def test_what_is_the_same_for_both_halves_is_said_once(experiment, tmp_path, monkeypatch):
    class Stop(Quiet):
        def __init__(self):
            self.notes = []

        def note(self, text):
            self.notes.append(text)

        def step(self, record):
            raise KeyboardInterrupt

    halved = config(experiment, reference=str(experiment.truth_map), half_sets=True)
    for said, told in ((["a", "a"], ["a"]), (["a", "b"], ["a", "b"])):
        calls = iter(said)
        name = "cryoprob.inference.run.match_amplitude"
        monkeypatch.setattr(name, lambda *_, calls=calls: next(calls))
        watcher = Stop()
        with pytest.raises(KeyboardInterrupt):
            run_fit(halved, tmp_path / "".join(said), observer=watcher)
        assert watcher.notes == told


def test_nothing_to_resume(experiment, tmp_path):
    with pytest.raises(InputError, match="no config.toml"):
        run_fit(config(experiment), tmp_path / "none", resume=True)


def test_a_place_that_cannot_be_written(experiment, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError):
        run_fit(config(experiment), tmp_path / "file" / "fit")


def test_a_disk_that_fills_up_leaves_earlier_results(experiment, tmp_path, monkeypatch):
    """The writing of a checkpoint fails: a clear error, and the checkpoint before it is whole."""
    settings = config(experiment, reference=str(experiment.truth_map))
    import cryoprob.inference.run as run

    real, calls = run.save_checkpoint, []

    def full(path, content):
        calls.append(path)
        if len(calls) == 3:
            monkeypatch.setattr(type(path), "write_bytes", _no_space)
        real(path, content)

    monkeypatch.setattr(run, "save_checkpoint", full)
    with pytest.raises(OutputError, match="No space left"):
        run_fit(settings, tmp_path / "fit")
    monkeypatch.undo()
    assert not list((tmp_path / "fit").glob(".*part"))
    result = run_fit(settings, tmp_path / "fit", resume=True)
    assert len(result.history) == QUICK.max_iterations


def test_settings_that_cannot_work_are_refused_before_work(experiment, tmp_path):
    plan = replace(QUICK, start_radius=8)
    with pytest.raises(InputError, match="start_radius: expected at most 7 shells"):
        run_fit(config(experiment, schedule=plan), tmp_path / "fit")
    with pytest.raises(InputError, match="coarse_order: expected 1 or more with --poses local"):
        config(experiment, poses="local", schedule=replace(QUICK, coarse_order=0))


def test_a_disk_that_fills_up_at_the_last_file(experiment, tmp_path):
    """posterior.nc does not fit any more: HDF5 would crash; the earlier one stays as it was."""
    result = run_fit(config(experiment, reference=str(experiment.truth_map)), tmp_path)
    stack = ParticleStack.read(experiment.particles)
    earlier = (tmp_path / "posterior.nc").read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    sizes = [(tmp_path / name).stat().st_size for name in SAME]
    assert max(sizes) < len(earlier), "posterior.nc is meant to be the largest file"
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(earlier) - 1, before[1]))
    try:
        with pytest.raises(OutputError, match="posterior.nc: expected a place to write"):
            result.save(tmp_path, stack)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "posterior.nc").read_bytes() == earlier
    assert not list(tmp_path.glob(".*part"))


def _no_space(self, data):
    raise OSError(28, "No space left on device")


def test_a_reference_of_another_size_is_refused(experiment, tmp_path):
    write_map(tmp_path / "big.mrc", torch.rand(20, 20, 20), PIXEL)
    with pytest.raises(InputError, match="field of view"):
        run_fit(config(experiment, reference=str(tmp_path / "big.mrc")), tmp_path / "fit")


def test_the_gray_scale_of_a_reference_is_found(experiment, tmp_path):
    """A reference a hundred times too strong ends at the same evidence, within a nat per image."""
    volume, _ = read_map(experiment.truth_map)
    write_map(tmp_path / "strong.mrc", 100 * volume, PIXEL)
    paths = experiment.truth_map, tmp_path / "strong.mrc"
    results = [
        run_fit(config(experiment, reference=str(path)), tmp_path / f"fit{n}")
        for n, path in enumerate(paths)
    ]
    first, second = (float(r.posterior.bound.mean()) for r in results)
    assert abs(first - second) < 1.0


def test_maps_have_no_time_stamp(experiment, tmp_path):
    run_fit(config(experiment, reference=str(experiment.truth_map)), tmp_path / "fit")
    with mrcfile.open(tmp_path / "fit" / "volume.mrc") as opened:
        assert opened.header.map == b"MAP "
        assert b"20" not in np.asarray(opened.header.label)[0]


def test_the_same_fit_without_files(experiment):
    """A model and guide of one's own, through ``cp.fit``: the evidence rises, the result is whole."""
    stack = cp.ParticleStack.read(experiment.particles)
    volume, _ = read_map(experiment.truth_map)
    model = build_model(stack, QUICK, image_power(stack), radius=3)
    recipe = Recipe(model, volume, QUICK, len(stack), 0)
    guide = build_guide(recipe, family("exact-em"), stack, "ignore")
    result = cp.fit(model, guide, stack, seed=1, schedule=QUICK)
    evidence = [record["bound"] for record in result.history]
    assert evidence[-1] > evidence[0]
    assert result.posterior.rotation.shape == (COUNT, 3, 3)


def test_the_log_tells_every_step(experiment, tmp_path):
    settings = config(experiment, reference=str(experiment.truth_map))
    run_fit(settings, tmp_path / "fit")
    lines = (tmp_path / "fit" / "log.txt").read_text().splitlines()
    assert sum("bound" in line for line in lines) == QUICK.max_iterations


def test_bad_input_leaves_no_folder(experiment, tmp_path):
    with pytest.raises(InputError, match="rlnAngle|pose|rotation"):
        run_fit(config(experiment, poses="known"), tmp_path / "fit")
    assert not (tmp_path / "fit").exists()
