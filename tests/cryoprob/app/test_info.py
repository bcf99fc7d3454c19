"""What is told of a stack before any work is done."""

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from cryoprob.app.cli import app
from cryoprob.app.estimate import estimate, product_rate
from cryoprob.app.info import contrast_score
from cryoprob.inference.schedule import Schedule
from cryoprob.io.mrc import open_stack, write_stack
from cryoprob.io.tables import read_particles, write_particles
from cryoprob.particles import ParticleStack


def told(*arguments):
    result = CliRunner().invoke(app, ["info", *(str(a) for a in arguments)])
    assert result.exit_code == 0, result.stderr
    return " ".join(result.stdout.split())


def spoiled(simulated, folder, change):
    """A copy of the stack with changed pixels."""
    images = torch.from_numpy(np.array(open_stack(simulated / "particles.mrcs")[0]))
    folder.mkdir()
    write_stack(folder / "particles.mrcs", change(images), 4.0)
    text = (simulated / "particles.star").read_text()
    (folder / "particles.star").write_text(text)
    return folder / "particles.star"


def test_bad_images_are_named(simulated, tmp_path):
    def change(images):
        images[3, 5, 5] = torch.nan
        images[10] = 2.0
        return images

    text = told(spoiled(simulated, tmp_path / "bad", change))
    assert "NaN or infinite pixels: 000004@particles.mrcs." in text
    assert "all pixels equal: 000011@particles.mrcs." in text


def test_dark_particles_are_seen_and_inverted(simulated, tmp_path):
    path = spoiled(simulated, tmp_path / "dark", lambda images: -images)
    assert "Give --invert" in told(path)
    assert "invert" not in told(path, "--invert")
    assert "invert" not in told(simulated / "particles.star")
    assert "Leave out --invert" in told(simulated / "particles.star", "--invert")


def test_contrast_of_noise_is_undecided(false_alarm):
    noise = torch.randn(300, 16, 16, generator=torch.Generator().manual_seed(0))
    assert abs(contrast_score(ParticleStack.from_arrays(noise, 4.0))) < 4  # 4 sd: below 1e-4


@pytest.mark.parametrize("name", ["relion-70s", "adk-path"])
def test_contrast_of_foreign_stacks(data, name):
    stack = ParticleStack.read(data / name / "particles.star")
    assert contrast_score(stack) > 20


def test_what_is_absent_is_said(simulated, tmp_path):
    table = read_particles(simulated / "particles.star")
    for values in table.ctf.values():
        values[:] = np.nan
    lines = (simulated / "particles.star").read_text().splitlines()
    kept = [line for line in lines if "Defocus" not in line]
    assert "not known" in told(simulated / "particles.star")
    assert "rotation and shift known" in told(simulated / "truth.star")
    assert len(kept) < len(lines)
    stack = ParticleStack.from_arrays(torch.randn(9, 8, 8), 2.0)
    from cryoprob.app.info import problems

    found = list(problems(stack, stack.check_all()))
    assert any("No defocus" in text for text in found)
    assert any("Only 9 images" in text for text in found)


def test_oddities_of_the_file_are_listed_once(simulated, tmp_path):
    table = read_particles(simulated / "truth.star")
    write_particles(simulated / "odd.star", table, extra={"rlnBeamTiltX": np.full(80, 0.1)})
    text = told(simulated / "odd.star")
    assert text.count("beam tilt") == 1 and "Note:" not in text
    (simulated / "odd.star").unlink()


def test_the_estimate_grows_as_the_work_does():
    plan = Schedule()
    base = estimate(1000, 64, plan, 1e10)
    assert estimate(2000, 64, plan, 1e10).refine_s == pytest.approx(2 * base.refine_s)
    assert estimate(1000, 64, plan, 2e10).refine_s == pytest.approx(base.refine_s / 2)
    assert estimate(1000, 128, plan, 1e10).memory > base.memory
    # 72 * 8^2 rotations x 9 pi shifts x 1086 numbers of 18 shells, times 3 stages of 15 steps
    assert base.refine_s == pytest.approx(
        15 * 1000 * 3 * 2 * 4608 * 9 * np.pi * 1086 / 1e10, rel=0.1
    )
    assert product_rate(0.02) > 1e8  # any machine of this century
