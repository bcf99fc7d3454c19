"""The compare command: settings refused before work, taken up again, its table and its figure."""

import json
from dataclasses import replace

import pytest
import torch

from cryoprob.app.compare import Setting, counted, run_compare, setting
from cryoprob.app.memory import peak_bytes, reset_peak
from cryoprob.checks import InputError
from cryoprob.inference.config import FAMILIES, FitConfig
from cryoprob.inference.schedule import Schedule
from cryoprob.models.simulate import simulate
from cryoprob.particles import ParticleStack
from cryoprob.phantoms import bead_walk

QUICK = Schedule(max_iterations=2, max_order=2, coarse_order=1, beam=8, learn_steps=2)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stack")
    generator = torch.Generator().manual_seed(7)
    return simulate(bead_walk(20, 16, 8.0, generator), 8.0, 30, 1.0, generator, out=folder)


def config(experiment):
    reference = str(experiment.truth_map)
    return FitConfig(
        str(experiment.particles), reference=reference, seed=3, threads=1, schedule=QUICK
    )


def test_unknown_families_and_odd_numbers_are_refused(experiment):
    with pytest.raises(InputError, match="--families: expected some of exact-em.*got em"):
        Setting(config(experiment), ("exact-em", "em"))
    with pytest.raises(InputError, match="--images"):
        Setting(config(experiment), ("exact-em",), images=0)
    with pytest.raises(InputError, match="--order"):
        Setting(config(experiment), ("exact-em",), order=6)
    with pytest.raises(
        InputError, match="compare: expected contrasts and defoci as given.*got --c"
    ):
        Setting(replace(config(experiment), contrast_sd=0.2), ("exact-em",))


def test_all_families_by_default_and_the_seed_of_what_was_begun(experiment, tmp_path):
    given = {"particles": experiment.particles, "seed": None}
    chosen = setting(given, [], None, tmp_path, None, 60, 3, None)
    assert chosen.families == FAMILIES
    (tmp_path / "svi").mkdir()
    (tmp_path / "svi" / "config.toml").write_text(replace(config(experiment), seed=11).to_toml())
    assert setting(given, [], None, tmp_path, "svi", 60, 3, None).config.seed == 11


def test_images_are_spread_over_the_stack(experiment):
    stack = ParticleStack.read(experiment.particles)
    assert counted(stack, 4).tolist() == [0, 9, 19, 29]
    assert len(counted(stack, 99)) == 30


@pytest.mark.slow
def test_the_table_twice(experiment, tmp_path, capsys):
    """The second run takes up the fits of the first and prints the same budgets."""
    chosen = Setting(config(experiment), ("exact-em", "modal-em"), 5, 1)
    first = run_compare(chosen, tmp_path)
    before = (tmp_path / "gaps.json").read_text()
    fits = (tmp_path / "exact-em" / "checkpoint.pt").read_bytes()
    run_compare(chosen, tmp_path)
    assert (tmp_path / "gaps.json").read_text() == before
    assert (tmp_path / "exact-em" / "checkpoint.pt").read_bytes() == fits
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("At the common volume, that of exact-em") == 2
    for row in ("keep the best cell", "one width of q", "beta 0.25", "beta 4", "the grid itself"):
        assert out.count(row) == 2, row
    assert (tmp_path / "families.png").stat().st_size > 10_000
    content = json.loads(before)
    assert (
        sorted(content["images"]) == counted(ParticleStack.read(experiment.particles), 5).tolist()
    )
    # exact-em is its own reference: both volumes are one
    one = content["families"]["exact-em"]
    assert one["own"] == one["common"]
    # at one volume there is one evidence, whatever the family
    two = content["families"]["modal-em"]["common"]["evidence"]
    assert one["common"]["evidence"] == pytest.approx(two, abs=1e-9)
    assert [row.family.name for row in first] == ["exact-em", "modal-em"]
    assert "volume_kl" not in before + (tmp_path / "families.csv").read_text()


def test_a_law_of_the_map_has_a_line_of_its_own(experiment, tmp_path, capsys):
    """Its divergence, per image of the fit, in the tables and in both files; none for a point."""
    plan = replace(QUICK, volume="gaussian", max_iterations=1)
    chosen = Setting(replace(config(experiment), schedule=plan), ("exact-em", "modal-em"), 5, 1)
    one, two = run_compare(chosen, tmp_path)
    out = " ".join(capsys.readouterr().out.split())
    assert "less KL V = KL(q(V) || p(V)), here per image" in out and out.count("KL V") >= 3
    for row in (one, two):
        half = row.half
        kl = float(half.guide.volume.kl(half.model.volume.prior()).detach()) / 30
        assert row.own.volume_kl == pytest.approx(kl, rel=1e-6)
    assert one.own.volume_kl == one.common.volume_kl == two.common.volume_kl
    content = json.loads((tmp_path / "gaps.json").read_text())["families"]["modal-em"]
    assert content["own"]["volume_kl_per_image"] == two.own.volume_kl
    # at one law of volumes there is one evidence, whatever the family
    shared = json.loads((tmp_path / "gaps.json").read_text())["families"]["exact-em"]["common"]
    assert shared["evidence"] == pytest.approx(content["common"]["evidence"], abs=1e-9)
    head, first, _ = (tmp_path / "families.csv").read_text().splitlines()
    found = dict(zip(head.split(","), first.split(","), strict=True))
    assert float(found["volume_kl_per_image_own"]) == one.own.volume_kl


def test_the_peak_of_memory():
    """A hundred megabytes are seen while they are there (Linux)."""
    counted_anew, before = reset_peak(), peak_bytes()
    if not counted_anew or before is None:
        pytest.skip("this system does not count the peak of memory anew")
    block = torch.ones(25_000_000)
    assert peak_bytes() - before > 80e6
    del block
