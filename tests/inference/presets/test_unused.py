"""Settings that a preset does not use are refused, and those that it uses are not: all of them."""

from dataclasses import fields, replace

import pytest
import torch
from chains import bead_chain, write_chain
from typer.testing import CliRunner

from cryoprob.app.cli import app
from cryoprob.checks import InputError
from cryoprob.inference.config import FitConfig
from cryoprob.inference.noted import NotedSchedule
from cryoprob.inference.presets.menu import PRESETS, load
from cryoprob.inference.reload import check_settings, sketch_of
from cryoprob.inference.run import run_fit
from cryoprob.inference.schedule import OF_PRESETS, Schedule
from cryoprob.inference.starts import stack_of
from cryoprob.inference.unused import taken
from cryoprob.io.structures import density, read_structure
from cryoprob.models.simulate import simulate

SYSTEMS = [name for name in PRESETS if load(name).build is not None]
FAMILIES = [name for name in PRESETS if name not in SYSTEMS]
STRUCTURES = ("cryofold", "atomvae")

OTHER = {"bound": "cells", "m_step": "diagonal", "interpolation": "nearest", "volume": "gaussian"}
"""Words in the place of the usual ones."""

WITH = {"anneal": {"beta": 1.0}}
"""What a setting is only possible beside."""

KNOWN = {
    "cryodrgn2": "coarse_order max_order turn shift_extent shift_step beam zdim kl_start",
    "cryodrgn-bnb": "coarse_order max_order turn shift_extent shift_step beam bound zdim",
    "cryodrgn": "zdim width layers epochs batch learn_rate beta anneal kl_start max_radius",
    "cryoposenet": "width epochs batch learn_rate max_radius",
    "atomvae": "learn_draws shift_extent width layers zdim",
    "e2gmm": "gaussians zdim width layers",
    "3dva": "max_iterations noise tau2 contrast zdim max_radius",
    "ppca": "max_iterations noise tau2 contrast volume zdim max_radius",
    "covariance": "zdim max_radius",
}
"""Settings that are used, at least."""

UNKNOWN = {
    "cryodrgn2": "m_step classes volume interpolation noise contrast learn_draws bound polish mass",
    "cryodrgn-bnb": "polish max_iterations",
    "cryodrgn": "learn_draws contrast shift_extent coarse_order",
    "cryoposenet": "shift_extent layers zdim",
    "e2gmm": "beta anneal kl_start",
    "ppca": "m_step interpolation beta epochs",
    "covariance": "noise tau2 contrast max_iterations",
}
"""Settings that are not, at least."""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A few images of a chain of C-alpha atoms with their poses; beside them its structure."""
    folder = tmp_path_factory.mktemp("stack")
    generator = torch.Generator().manual_seed(7)
    write_chain(folder / "chain.pdb", bead_chain(12, generator))
    volume = density(read_structure(folder / "chain.pdb"), 12, 8.0, center=False)
    return simulate(volume, 8.0, 6, 1.0, generator, out=folder)


def config(drawn, name, plan=None, **given):
    """A fit of a preset with its own settings and these."""
    preset = load(name)
    if name in STRUCTURES:
        given.setdefault("reference", str(drawn.truth.with_name("chain.pdb")))
    schedule = Schedule(**{**preset.plan, **(plan or {})})
    return FitConfig(
        str(drawn.truth), preset=name, schedule=schedule, **{**preset.config, **given}
    )


def other(plan, name):
    """A value that a setting does not have."""
    value = getattr(plan, name)
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return OTHER[name]
    return 0.5 if name in ("mass", "kl_start") else value + 1


def read_by(drawn, name, **given):
    """Options and settings that a preset reads as it comes."""
    settings = config(drawn, name, **given)
    scene = sketch_of(settings, stack_of(settings))
    load(name).build(scene)
    return taken(scene)


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_setting_is_used_or_refused(drawn, name):
    _, used = read_by(drawn, name)
    assert set(load(name).plan) | set(KNOWN.get(name, "").split()) <= set(used)
    assert not set(UNKNOWN.get(name, "").split()) & set(used)
    stack = stack_of(config(drawn, name))
    for item in fields(Schedule):
        plan = {item.name: other(config(drawn, name).schedule, item.name)}
        settings = config(drawn, name, {**WITH.get(item.name, {}), **plan})
        if item.name not in used:
            with pytest.raises(InputError, match=f"settings that {name} has.*--set {item.name}="):
                check_settings(settings, stack)
        else:
            assert "settings that" not in refusal(settings, stack), item.name


def refusal(settings, stack):
    """What is said against settings; nothing of good ones."""
    try:
        check_settings(settings, stack)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", SYSTEMS)
def test_options_that_are_not_used_are_refused(drawn, name):
    good = config(drawn, name)
    stack, own = stack_of(good), good.poses
    check_settings(good, stack)
    wrong = {"symmetry": "C4", "mask": "none", "low_pass_A": 30.0, "half_sets": True}
    for option, value in wrong.items():
        word = option.removesuffix("_A").replace("_", "-")
        with pytest.raises(InputError, match=f"settings that {name} has, got --{word}"):
            check_settings(replace(good, **{option: value}), stack)
    for poses in {"ignore", "known", "local"} - {own}:
        with pytest.raises(InputError, match=f"--poses {poses}. .*works with --poses {own} only"):
            check_settings(replace(good, poses=poses), stack)


@pytest.mark.parametrize("name", [name for name in SYSTEMS if name not in (*STRUCTURES, "e2gmm")])
def test_the_filter_of_a_map_is_used(drawn, name):
    given = {"reference": str(drawn.truth_map), "low_pass_A": 30.0}
    settings = config(drawn, name, **given)
    check_settings(settings, stack_of(settings))


def test_what_is_used_may_depend_on_the_others(drawn):
    """Gaussians of a start from nothing alone; a beam of bounds that start from its best pose."""
    assert "gaussians" in read_by(drawn, "e2gmm")[1]
    start = str(drawn.truth.with_name("chain.pdb"))
    assert "gaussians" not in read_by(drawn, "e2gmm", reference=start)[1]
    settings = config(drawn, "cryodrgn-bnb", {"bound": "points", "beam": 4})
    with pytest.raises(InputError, match="got --set beam=4. Leave it out"):
        check_settings(settings, stack_of(settings))


@pytest.mark.parametrize("bound", ["points", "cells"])
def test_the_bound_of_a_branch_and_bound(drawn, bound):
    settings = config(drawn, "cryodrgn-bnb", {"bound": bound})
    built = check_settings(settings, stack_of(settings))
    assert type(built.algorithm.modal.bound).__name__.lower() == bound
    wrong = config(drawn, "cryodrgn-bnb", {"bound": "none"})
    with pytest.raises(InputError, match="bound: expected points or probable or cells"):
        check_settings(wrong, stack_of(wrong))


def test_a_search_has_the_settings_that_it_uses(drawn):
    plan = {"max_order": 3, "turn": False, "shift_extent": 4.0, "shift_step": 1.0}
    settings = config(drawn, "cryodrgn2", {**plan, "coarse_order": 1})
    grids = check_settings(settings, stack_of(settings)).algorithm.plan
    assert {name: getattr(grids, name) for name in plan} == plan and grids.coarse_order == 1


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("setting", OF_PRESETS)
def test_settings_that_no_family_has_are_refused(drawn, name, setting):
    plan = {setting: other(Schedule(**load(name).plan), setting)} | WITH.get(setting, {})
    settings = config(drawn, name, plan)
    with pytest.raises(InputError, match=rf"{name}: expected .*--set {setting}=.*cryodrgn"):
        check_settings(settings, stack_of(settings))
    assert check_settings(config(drawn, name), stack_of(settings)) is None


def test_a_fit_refuses_before_it_writes(drawn, tmp_path):
    for name in ("cryodrgn", "relion-refine3d"):
        wrong = {"kl_start": 0.5, "layers": 2} if name in FAMILIES else {"learn_draws": 5}
        settings = config(drawn, name, wrong)
        with pytest.raises(InputError, match="--set"):
            run_fit(settings, tmp_path / name)
        assert not (tmp_path / name).exists()


def test_the_command_says_it_before_anything_else(drawn, tmp_path):
    words = ["fit", str(drawn.truth), "--out", str(tmp_path / "new"), "--preset", "cryodrgn2"]
    words += ["--symmetry", "C4", "--poses", "known", "--set", "contrast=true", "--seed", "1"]
    found = CliRunner().invoke(app, words, env={"COLUMNS": "80"})
    told = " ".join(found.stderr.split())
    assert found.exit_code == 2 and not found.stdout and not (tmp_path / "new").exists()
    assert "got --poses known, --symmetry C4, --set contrast=true." in told
    assert "--poses ignore only" in told and "--contrast SD" in told and "beam, beta" in told


@pytest.mark.parametrize("name", ["cryodrgn", "cryodrgn2", "cryoposenet", "e2gmm", "ppca"])
def test_the_announcement_is_true(drawn, name, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise InputError("stop", expected="no fit", got="one")

    monkeypatch.setattr("cryoprob.app.fit.watched", stop)
    words = ["fit", str(drawn.truth), "--out", str(tmp_path / "new"), "--preset", name]
    told = " ".join(CliRunner().invoke(app, [*words, "--seed", "1"]).stdout.split())
    assert "random starts" not in told and "reconstruction only" not in told
    known = load(name).config.get("poses") == "known"
    assert ("those of the file are taken as exact" in told) == known
    assert ("all are inferred" in told) == (name == "cryodrgn2")
    assert ("images taken as centered" in told) == (name == "cryoposenet")
    assert (f"({load(name).row.volume}) is drawn by chance" in told) == (name != "ppca")


def test_what_is_read_is_noted():
    plan = NotedSchedule(Schedule(zdim=3, turn=False))
    assert plan.read == set() and plan.zdim == 3 and not plan.turn
    assert plan.read == {"zdim", "turn"}
    assert plan.order(3) == 2 and {"coarse_order", "max_order"} <= plan.read
    assert NotedSchedule(plan).read == set()
    found = plan.only("beam", "zdim")
    assert found == Schedule(zdim=3) and "beam" in plan.read
