"""Every preset: its file, its words, a small fit of it with outputs, and resuming."""

from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from chains import bead_chain, write_chain
from scenes import trimmed
from typer.testing import CliRunner

from cryoprob.app.cli import app
from cryoprob.app.fit import configure
from cryoprob.checks import InputError
from cryoprob.inference.config import FitConfig
from cryoprob.inference.presets.base import Preset, Row
from cryoprob.inference.presets.menu import PRESETS, load, module_of
from cryoprob.inference.presets.systems import SYSTEMS
from cryoprob.inference.run import run_fit
from cryoprob.inference.schedule import Schedule
from cryoprob.io.mrc import read_map
from cryoprob.io.structures import density, read_structure
from cryoprob.io.tables import read_particles
from cryoprob.models.simulate import simulate

BOX, PIXEL, COUNT = 16, 6.0, 24
QUICK = {
    "max_iterations": 2,
    "coarse_order": 0,
    "max_order": 1,
    "starts": 1,
    "start_steps": 2,
    "start_images": 12,
    "start_box": 16,
    "start_radius": 4,
    "width": 8,
    "layers": 1,
    "epochs": 40.0,
    "batch": 8,
    "learn_steps": 1,
    "gaussians": 20,
}
"""Steps enough to pass through everything, not to find anything."""


STRUCTURES = ("cryofold", "atomvae")
"""Presets that start from an atomic structure."""

NOTHING = ("cryosparc-abinitio", "e2gmm")
"""Presets that start from nothing here."""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A few images of a chain of C-alpha atoms with their poses; beside them its structure."""
    folder = tmp_path_factory.mktemp("stack")
    generator = torch.Generator().manual_seed(7)
    positions = bead_chain(30, generator)
    write_chain(folder / "chain.pdb", positions)
    atoms = read_structure(folder / "chain.pdb")
    volume = density(atoms, BOX, PIXEL, center=False)
    return simulate(volume, PIXEL, COUNT, 1.0, generator, out=folder)


def config(drawn, name, trim=True, **settings):
    """A small fit of a preset, from the table that has the poses."""
    preset = load(name)
    quick = QUICK | ({"zdim": 2} if "zdim" in preset.plan else {})
    quick |= {"max_radius": 3} if name == "covariance" else {}
    plan = Schedule(**{**preset.plan, **quick, **settings})
    given = {"reference": str(drawn.truth_map), "low_pass_A": 30.0, **preset.config}
    if name in STRUCTURES:
        given["reference"] = str(drawn.truth.with_name("chain.pdb"))
    if name in NOTHING:
        del given["reference"]
    fit = FitConfig(str(drawn.truth), preset=name, seed=2, threads=1, schedule=plan, **given)
    return trimmed(fit) if trim else fit


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_short_file_that_says_what_it_is(name):
    preset = load(name)
    lines = Path(str(import_module(module_of(name)).__file__)).read_text().splitlines()
    assert preset.name == name and len(lines) < 60
    assert len(preset.words) > 150 and "20" in preset.paper
    assert name in [row.preset for row in SYSTEMS]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_a_small_fit_and_the_same_one_in_two_parts(name, drawn, tmp_path):
    settings = config(drawn, name)
    whole = run_fit(settings, tmp_path / "whole")
    assert torch.isfinite(whole.volume).all() and torch.isfinite(whole.posterior.bound).all()
    volume, _ = read_map(tmp_path / "whole" / "volume.mrc")
    assert volume.equal(whole.volume.float())
    assert len(read_particles(tmp_path / "whole" / "particles.star")) == COUNT

    class Killed(Exception):
        pass

    class Watch:
        def stage(self, *_):
            pass

        def step(self, record):
            if record["iteration"] == (1 if name == "covariance" else 2):
                raise Killed

        def note(self, text):
            pass

    with pytest.raises(Killed):
        run_fit(settings, tmp_path / "cut", observer=Watch())
    run_fit(settings, tmp_path / "cut", resume=True)
    if name == "covariance":  # last digits of its products depend on where memory lies
        other, _ = read_map(tmp_path / "cut" / "volume.mrc")
        # of six fits 2e-7 at most; fifty times that
        torch.testing.assert_close(other, volume, rtol=0, atol=1e-5 * float(volume.abs().max()))
        return
    for file in ("metrics.jsonl", "particles.star", "volume.mrc", "posterior.nc"):
        parts = (tmp_path / part / file for part in ("cut", "whole"))
        assert len({part.read_bytes() for part in parts}) == 1, file


def test_classes_leave_their_maps_and_shares(drawn, tmp_path):
    result = run_fit(config(drawn, "relion-class3d", classes=3), tmp_path)
    shares = result.states.shares
    assert shares.shape == (COUNT, 3)
    # posteriors add up to 1
    torch.testing.assert_close(shares.sum(1), torch.ones(COUNT, dtype=shares.dtype))
    for k in (1, 2, 3):
        assert read_map(tmp_path / f"class_{k}.mrc")[0].shape == (BOX,) * 3
    words = (tmp_path / "particles.star").read_text()
    assert "_rlnClassNumber" in words and "_cryoprobClassShare3" in words
    stats = result.to_arviz().sample_stats
    assert stats["class_probability"].dims == ("image", "class")


def test_classes_from_nothing(drawn, tmp_path):
    """One map is found first, and split by chance."""
    settings = replace(config(drawn, "relion-class3d", classes=2), reference=None)
    result = run_fit(settings, tmp_path)
    assert result.states.shares.shape == (COUNT, 2)
    first, second = (read_map(tmp_path / f"class_{k}.mrc")[0] for k in (1, 2))
    assert not first.equal(second)


def test_coordinates_leave_a_path_of_maps(drawn, tmp_path):
    result = run_fit(config(drawn, "cryodrgn"), tmp_path)
    states = result.states
    assert states.mean.shape == states.std.shape == (COUNT, 2) and (states.std > 0).all()
    assert len(list(tmp_path.glob("path_*.mrc"))) == len(states.places) == 10
    assert "_cryoprobCoordinate2" in (tmp_path / "particles.star").read_text()
    assert result.to_arviz().sample_stats["conformation"].shape == (COUNT, 2)


@pytest.mark.slow
def test_two_stages(drawn, tmp_path):
    """A larger network at the poses that a search found: they are those of the first fit's table."""
    first = run_fit(config(drawn, "cryodrgn-bnb"), tmp_path / "first")
    second = replace(
        config(drawn, "cryodrgn", width=16), particles=str(tmp_path / "first" / "particles.star")
    )
    result = run_fit(second, tmp_path / "second")
    # a table of angles has six decimals of a degree
    for part in ("rotation", "shift"):
        pair = (getattr(one.posterior, part) for one in (result, first))
        torch.testing.assert_close(*pair, rtol=0, atol=1e-4)


def test_settings_of_the_preset_and_the_users(tmp_path):
    given = {"particles": tmp_path / "p.star", "preset": "relion-class3d", "seed": 1}
    plain = configure(given, [], None, tmp_path, False)
    assert plain.schedule.classes == 4 and plain.preset == "relion-class3d"
    mine = configure(given, ["classes=2"], None, tmp_path, False)
    assert mine.schedule.classes == 2
    known = configure({**given, "preset": "cryodrgn"}, [], None, tmp_path, False)
    assert known.poses == "known"
    assert FitConfig.from_toml(_written(known, tmp_path)) == known
    with pytest.raises(InputError, match="`cryoprob presets` lists"):
        configure({**given, "preset": "relion"}, [], None, tmp_path, False)


def _written(settings, folder):
    path = folder / "config.toml"
    path.write_text(settings.to_toml())
    return path


def test_settings_that_a_system_does_not_have_are_refused(drawn, tmp_path):
    for wrong in ({"half_sets": True}, {"family": "svi"}):
        with pytest.raises(InputError, match="settings that cryofire has"):
            run_fit(replace(config(drawn, "cryofire"), **wrong), tmp_path / next(iter(wrong)))
    with pytest.raises(InputError, match="1 or more coordinates, got 0"):
        run_fit(config(drawn, "cryodrgn", trim=False, zdim=0), tmp_path / "fit")


def test_classes_need_what_sums_them_out(tmp_path):
    plan = Schedule(classes=2)
    for wrong in ({"family": "svi"}, {"half_sets": True}):
        with pytest.raises(InputError, match="summed out together with the poses"):
            FitConfig("p.star", schedule=plan, **wrong)
    with pytest.raises(InputError, match="one map, or 2 for the classes"):
        FitConfig("p.star", schedule=plan, reference="a.mrc,b.mrc,c.mrc")
    with pytest.raises(InputError, match="where there are classes"):
        Schedule(classes=2, volume="gaussian")


def test_the_table_of_all_systems():
    result = CliRunner().invoke(app, ["presets"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert max(len(line) for line in lines) <= 80
    rows = [(row.volume, row.conformation, row.hidden, row.inference) for row in SYSTEMS]
    wanted = {word for row in rows for cell in row for word in cell.split()}
    assert wanted <= {word for line in lines for word in line.split()}  # no word is broken
    assert all(name in result.stdout for name in ("relion-class3d", "CryoBIFE", "3DFlex"))
    ready = sum(row.ready for row in SYSTEMS)
    assert f"{ready} of {len(SYSTEMS)} run here" in result.stdout
    assert {row.preset for row in SYSTEMS if row.ready} == set(PRESETS)
    one = CliRunner().invoke(app, ["presets", "relion-class3d"])
    assert one.exit_code == 0 and "Scheres" in one.stdout and "classes=4" in one.stdout
    assert CliRunner().invoke(app, ["presets", "relion"]).exit_code == 2


def test_a_preset_of_unknown_settings_is_refused():
    row = Row("", "", "", "")
    with pytest.raises(InputError, match="wings"):
        Preset("x", "y", row, "z", plan={"wings": 2})
    assert replace(load("cryodrgn"), name="other").plan["zdim"] == 8
