"""Where settings come from."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cryoprob.app.fit import configure, conformations, refuse_overwriting, run, watched
from cryoprob.app.guard import Interrupted
from cryoprob.checks import InputError, OutputError
from cryoprob.inference.config import FitConfig
from cryoprob.inference.folder import check_folder, open_folder
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.states import States


def test_options_override_the_file_and_set_overrides_both(tmp_path):
    file = tmp_path / "config.toml"
    config = FitConfig("a.star", seed=3, symmetry="C4", low_pass_A=30.0)
    file.write_text(config.to_toml())
    given = {"particles": None, "symmetry": "D2", "seed": None}
    found = configure(given, ["starts=7", "mass = 1"], file, tmp_path, False)
    particles = str(Path("a.star").absolute())
    assert (found.particles, found.seed, found.low_pass_A) == (particles, 3, 30.0)
    assert (found.symmetry, found.schedule.starts, found.schedule.mass) == ("D2", 7, 1.0)


def test_set_is_checked_beside_the_settings_of_the_file(tmp_path):
    file = tmp_path / "config.toml"
    file.write_text(FitConfig("a.star", schedule=Schedule(beta=1.0)).to_toml())
    assert configure({}, ["anneal=4"], file, tmp_path, False).schedule.anneal == 4
    with pytest.raises(InputError, match="^anneal: expected 1, or above 1 beside a beta"):
        configure({"particles": Path("p.star")}, ["anneal=4"], None, tmp_path, False)


def test_without_a_seed_one_is_drawn():
    seeds = {
        configure({"particles": Path("p.star")}, [], None, Path("o"), False).seed for _ in "abc"
    }
    assert len(seeds) == 3  # of 2^31: one false alarm in 10^9


def test_a_resumed_run_takes_its_own_settings(tmp_path):
    config = FitConfig("/data/a.star", seed=5, poses="local")
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert configure({}, [], None, tmp_path, True) == config


def test_files_are_kept_by_their_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mask.mrc").write_text("")
    given = {"particles": Path("p.star"), "reference": Path("sub/m.mrc"), "mask": "mask.mrc"}
    found = configure({**given, "seed": 1}, [], None, Path("out"), False)
    assert found.particles == str(tmp_path / "p.star")
    assert found.reference == str(tmp_path / "sub" / "m.mrc")
    assert found.mask == str(tmp_path / "mask.mrc")
    assert configure({**given, "mask": "auto"}, [], None, Path("out"), False).mask == "auto"


def test_files_of_a_file_of_settings_are_kept_by_their_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mask.mrc").write_text("")
    plan = Schedule(classes=2)
    config = FitConfig("p.star", reference="a.mrc,sub/b.mrc", mask="mask.mrc", schedule=plan)
    Path("config.toml").write_text(config.to_toml())
    found = configure({}, [], Path("config.toml"), Path("out"), False)
    assert found.particles == str(tmp_path / "p.star")
    assert found.references == [str(tmp_path / "a.mrc"), str(tmp_path / "sub" / "b.mrc")]
    assert found.mask == str(tmp_path / "mask.mrc")
    assert found.changes(replace(found, mask="auto")) == [f'--mask "auto" (it was "{found.mask}")']


def begun(out, monkeypatch):
    """A folder that a command has begun a fit in, and that command's options."""
    monkeypatch.chdir(out)
    given = {"particles": Path("p.star"), "preset": "cryodrgn", "box": 16}
    config = configure(given, ["zdim=2"], None, out, False)
    open_folder(out, config)
    return config, given


def test_the_first_command_with_resume_goes_on(tmp_path, monkeypatch):
    config, given = begun(tmp_path, monkeypatch)
    for settings in (["zdim=2"], []):
        assert configure(given, settings, None, tmp_path, True) == config
    more = configure({**given, "threads": 2}, [], None, tmp_path, True)
    assert more == replace(config, threads=2)
    check_folder(tmp_path, more, True)


@pytest.mark.parametrize(
    ("more", "settings", "told"),
    [
        ({"preset": "cryofold"}, [], r'--preset "cryofold" \(it was "cryodrgn"\)'),
        ({"box": 32}, ["zdim=3"], r"--box 32 \(it was 16\), --set zdim=3 \(it was 2\)"),
        ({"reference": [Path("/m.mrc")]}, [], r'--reference "/m.mrc" \(it was none\)'),
        ({"low_pass_A": 9.0}, [], r"--low-pass 9.0 \(it was 40.0\)"),
    ],
)
def test_other_settings_are_named_before_anything_is_said(
    tmp_path, monkeypatch, capsys, more, settings, told
):
    _, given = begun(tmp_path, monkeypatch)
    config = configure({**given, **more}, settings, None, tmp_path, True)
    with pytest.raises(InputError, match=f"got {told}. Resume with the same"):
        run(config, tmp_path, resume=True)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.toml", "checkpoint.pt", "volume.mrc"])
def test_results_are_not_overwritten(tmp_path, name):
    refuse_overwriting(tmp_path, False)
    (tmp_path / name).write_text("")
    refuse_overwriting(tmp_path, True)
    with pytest.raises(InputError, match=f"{name}; nothing was changed"):
        refuse_overwriting(tmp_path, False)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="out: expected a folder, got a file"):
        refuse_overwriting(tmp_path / "out", False)
    with pytest.raises(OutputError):  # of a folder above it, told once the fit begins
        _run_into(tmp_path / "out" / "below")
    assert (tmp_path / "out").read_text() == "mine"


def _run_into(out):
    """A fit that finds only when it writes that it cannot."""
    with pytest.MonkeyPatch.context() as patched:
        error = OutputError(str(out), expected="a folder to write into", got="a file")
        patched.setattr("cryoprob.inference.run.run_fit", lambda *_, **__: _raise(error))
        watched(FitConfig("p.star", seed=1), out)


def _raise(error):
    raise error


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[schedule]\nzdim = "2"', "zdim to be a whole number, got '2'"),
        ("[schedule]\nzdim = 2.5", "zdim to be a whole number, got 2.5"),
        ("[schedule]\nnoise = 1", "noise to be true or false, got 1"),
        ("[schedule]\nbatch = true", "batch to be a whole number, got True"),
        ('beta = 1\n[schedule]\nbeta = "1"', "known settings, got beta"),
        ("poses = 3", "poses to be text in quotes, got 3"),
        ('low_pass_A = "x"', "low_pass_A to be a number, got 'x'"),
        ("schedule = 3", r"a table \[schedule\], got schedule = 3"),
    ],
)
def test_a_file_with_values_of_another_kind(tmp_path, text, told):
    path = tmp_path / "config.toml"
    path.write_text('particles = "p.star"\n' + text)
    with pytest.raises(InputError, match=told):
        FitConfig.from_toml(path)


def test_files_that_are_no_settings(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("seed = 1")
    with pytest.raises(InputError, match="particles"):
        FitConfig.from_toml(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="a TOML file"):
        FitConfig.from_toml(path)
    path.write_text('particles = "p.star"\nlow_pass_A = 30\n[schedule]\nepochs = 3')
    assert FitConfig.from_toml(path).schedule.epochs == 3  # whole numbers are numbers


def failing(error):
    """A run that writes its settings and fails."""

    def run_fit(config, out, **options):
        out.mkdir(exist_ok=True)
        (out / "config.toml").write_text(config.to_toml())
        raise error

    return run_fit


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        InputError("image 3", expected="numbers", got="NaN"),
        OutputError("volume.mrc", expected="room", got="none"),
        MemoryError("no room"),
    ],
    ids=["ctrl-c", "input", "output", "any other"],
)
def test_what_stopped_early_leaves_no_trace_and_what_got_far_is_kept(
    tmp_path, monkeypatch, error, checkpoint
):
    out = tmp_path / "out"
    if checkpoint:
        out.mkdir()
        (out / "checkpoint.pt").write_text("")
    monkeypatch.setattr("cryoprob.inference.run.run_fit", failing(error))
    with pytest.raises((InputError, Interrupted, MemoryError)) as caught:
        watched(FitConfig("p.star", seed=1), out)
    told = str(caught.value)
    assert out.exists() == checkpoint
    if type(error) in (InputError, MemoryError):
        assert caught.value is error
    elif checkpoint:
        assert told.endswith(f"All finished steps are kept. Go on with: {_command(out)}")
    else:
        assert told.endswith("Stopped before the first checkpoint: start again.")


def _command(out):
    return f"cryoprob fit --resume --out {out}"


def test_what_is_said_of_conformations(tmp_path):
    assert conformations(None, tmp_path) == []
    shares = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    ((name, told),) = conformations(States(shares=shares), tmp_path)
    assert name == "Classes" and told.startswith("75.0%, 25.0% of the images")
    states = States(mean=torch.zeros(2, 3), std=torch.ones(2, 3))
    ((name, told),) = conformations(states, tmp_path)
    assert name == "Coordinates" and told == f"3; read them with: cryoprob latent {tmp_path}"
