"""The demo, small, and (slow) as it is."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cryoprob.app import demo
from cryoprob.inference.config import FAMILIES

PARTS = ("evidence", "bound", "approximation", "remainder")

FIGURES = ("maps.png", "fsc.png", "evidence.png", "posteriors.png", "families.png")


@pytest.mark.slow
def test_a_small_demo_leaves_every_file_and_says_what_to_look_at(tmp_path, monkeypatch, capsys):
    steps = {"starts": 1, "start_steps": 2, "start_radius": 4, "max_iterations": 1, "max_order": 2}
    steps |= {"warm_steps": 3, "learn_steps": 1, "batch": 8}
    monkeypatch.setattr(demo, "SCHEDULE", replace(demo.SCHEDULE, start_images=20, **steps))
    for name, value in {
        "IMAGES": 40,
        "BOX": 16,
        "PIXEL_SIZE": 6.0,
        "_LOOKED_AT": 6,
        "COUNTED": 4,
        "ORDER": 1,
    }.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.chdir(tmp_path)
    demo.run_demo(Path("demo"), 3, 1)
    out = " ".join(capsys.readouterr().out.split())
    for name in (*FIGURES, "exact-em/volume.mrc", "exact-em/particles.star"):
        assert (tmp_path / "demo" / name).stat().st_size > 1000
        assert name in out
    assert "At the common volume" in out and "What to look at" in out
    for name in FAMILIES:
        assert name in out and (tmp_path / "demo" / name / "volume.mrc").exists()
    rows = (tmp_path / "demo" / "families.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["family", *FAMILIES]
    gaps = json.loads((tmp_path / "demo" / "gaps.json").read_text())
    evidence = [family["common"]["evidence"] for family in gaps["families"].values()]
    assert all(one == evidence[0] for one in evidence)  # one volume, one noise
    for family in gaps["families"].values():
        for where in ("common", "own"):
            rest = zip(*(family[where][n] for n in PARTS), strict=True)
            # rows add up to the evidence, to the rounding of sums in float64
            assert all(abs(e - b - a - r) < 1e-9 for e, b, a, r in rest)
    assert (
        json.loads((tmp_path / "demo" / "exact-em" / "evaluation.json").read_text())["images"]
        == 40
    )


def test_each_demo_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(demo._new_folder()) == "cryoprob-demo"
    for name in ("cryoprob-demo", "cryoprob-demo-2"):
        (tmp_path / name).mkdir()
    assert str(demo._new_folder()) == "cryoprob-demo-3"


@pytest.mark.slow
def test_the_demo_finds_the_map(tmp_path):
    # one thread: two that wait for each other on busy cores take several times as long
    command = [sys.executable, "-m", "cryoprob", "demo", "--out", str(tmp_path / "demo")]
    subprocess.run([*command, "--seed", "1", "--threads", "1"], check=True)
    found = json.loads((tmp_path / "demo" / "exact-em" / "evaluation.json").read_text())
    assert found["resolution_05_A"] < 12  # 10.6 A with seeds 1 and 7
    assert found["median_rotation_deg"] < 10  # 6.5 degrees
