"""The demo, small, and (slow) as it is."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cryoprob.app import demo

FIGURES = ("maps.png", "fsc.png", "evidence.png", "posteriors.png")


def test_a_small_demo_leaves_every_file_and_says_what_to_look_at(tmp_path, monkeypatch, capsys):
    steps = {"starts": 1, "start_steps": 2, "start_radius": 4, "max_iterations": 1, "max_order": 2}
    monkeypatch.setattr(demo, "SCHEDULE", replace(demo.SCHEDULE, start_images=20, **steps))
    for name, value in {"IMAGES": 40, "BOX": 16, "PIXEL_SIZE": 6.0, "_LOOKED_AT": 6}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.chdir(tmp_path)
    demo.run_demo(Path("demo"), 3, 1)
    out = " ".join(capsys.readouterr().out.split())
    for name in (*FIGURES, "fit/volume.mrc", "fit/particles.star"):
        assert (tmp_path / "demo" / name).stat().st_size > 1000
        assert name in out
    assert "FSC with the truth" in out and "What to look at" in out
    assert json.loads((tmp_path / "demo" / "fit" / "evaluation.json").read_text())["images"] == 40


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
    found = json.loads((tmp_path / "demo" / "fit" / "evaluation.json").read_text())
    assert found["resolution_05_A"] < 12  # 10.6 A with seeds 1 and 7
    assert found["median_rotation_deg"] < 10  # 6.5 degrees
