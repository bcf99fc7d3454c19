"""Where settings come from."""

from pathlib import Path

import pytest
import torch

from cryoprob.app.fit import configure, conformations, refuse_overwriting, watched
from cryoprob.app.guard import Interrupted
from cryoprob.checks import InputError, OutputError
from cryoprob.inference.config import FitConfig
from cryoprob.inference.states import States


def test_options_override_the_file_and_set_overrides_both(tmp_path):
    file = tmp_path / "config.toml"
    config = FitConfig("a.star", seed=3, symmetry="C4", low_pass_A=30.0)
    file.write_text(config.to_toml())
    given = {"particles": None, "symmetry": "D2", "seed": None}
    found = configure(given, ["starts=7", "mass = 1"], file, tmp_path, False)
    assert (found.particles, found.seed, found.low_pass_A) == ("a.star", 3, 30.0)
    assert (found.symmetry, found.schedule.starts, found.schedule.mass) == ("D2", 7, 1.0)


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


@pytest.mark.parametrize("name", ["config.toml", "checkpoint.pt", "volume.mrc"])
def test_results_are_not_overwritten(tmp_path, name):
    refuse_overwriting(tmp_path, False)
    (tmp_path / name).write_text("")
    refuse_overwriting(tmp_path, True)
    with pytest.raises(InputError, match=f"{name}; nothing was changed"):
        refuse_overwriting(tmp_path, False)


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
    ],
    ids=["ctrl-c", "input", "output"],
)
def test_what_stopped_early_leaves_no_trace_and_what_got_far_is_kept(
    tmp_path, monkeypatch, error, checkpoint
):
    out = tmp_path / "out"
    if checkpoint:
        out.mkdir()
        (out / "checkpoint.pt").write_text("")
    monkeypatch.setattr("cryoprob.inference.run.run_fit", failing(error))
    with pytest.raises((InputError, Interrupted)) as caught:
        watched(FitConfig("p.star", seed=1), out)
    told = str(caught.value)
    assert out.exists() == checkpoint
    if type(error) is InputError:
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
