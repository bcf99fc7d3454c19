"""Contrast and defocus from the command line."""

import pytest
from imaged import make_imaged, write_imaged
from typer.testing import CliRunner

from cryoprob.app.cli import app
from cryoprob.inference.config import FitConfig


@pytest.fixture(scope="module")
def particles(tmp_path_factory):
    imaged = make_imaged(box=16, n=40, power=1e4)
    return write_imaged(imaged, tmp_path_factory.mktemp("imaged"))


def fit(particles, out, *more):
    given = ["fit", particles, "--out", out, "--seed", 1, "--threads", 1]
    given += [] if "--preset" in more else ["--mask", "sphere"]
    return CliRunner().invoke(app, [str(a) for a in [*given, *more]])


def test_both_are_fitted_and_told_of_and_resumed(particles, tmp_path):
    options = "--poses", "known", "--contrast", 0.2, "--defocus", 300, "--defocus-nodes", 7
    found = fit(particles, tmp_path / "fit", *options, "--set", "max_iterations=3")
    assert found.exit_code == 0, found.output
    assert "Contrast: latent, 1 +- 0.2" in found.output
    assert "Defocus: latent, the file's +- 300 A, 7 nodes" in found.output
    text = (tmp_path / "fit" / "particles.star").read_text()
    for name in ("Contrast", "ContrastStd", "DefocusOffset", "DefocusOffsetStd"):
        assert f"_cryoprob{name} " in text
    config = FitConfig.from_toml(tmp_path / "fit" / "config.toml")
    assert (config.contrast_sd, config.defocus_sd_A, config.defocus_nodes) == (0.2, 300.0, 7)
    before = (tmp_path / "fit" / "volume.mrc").read_bytes()
    again = CliRunner().invoke(app, ["fit", "--resume", "--out", str(tmp_path / "fit")])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "fit" / "volume.mrc").read_bytes() == before


@pytest.mark.parametrize("other", ["modal-em", "svi", "amortized-vi", "amortized-local"])
def test_other_families_say_so(particles, tmp_path, other):
    found = fit(particles, tmp_path / "fit", "--family", other, "--contrast", 0.2)
    words = " ".join(found.output.split())
    assert found.exit_code == 2
    assert "--contrast: expected --family exact-em, got --family" in words and "Joint" in words
    assert not (tmp_path / "fit").exists()


def test_presets_say_so(particles, tmp_path):
    found = fit(particles, tmp_path / "fit", "--preset", "3dva", "--defocus", 300)
    words = " ".join(found.output.split())
    assert found.exit_code == 2 and "got --defocus" in words and "exact-em" in words
    found = fit(particles, tmp_path / "fit", "--preset", "e2gmm", "--contrast", 0.2)
    words = " ".join(found.output.split())
    assert found.exit_code == 2 and "got ring_correlation" in words and "another preset" in words


def test_a_preset_that_trains_by_gradients(particles, tmp_path):
    """From the command line to the columns, and once more to the same bytes."""
    options = ["--preset", "cryodrgn", "--contrast", 0.2, "--defocus", 300, "--defocus-nodes", 5]
    for setting in ("zdim=2", "width=8", "layers=1", "batch=10", "epochs=15"):
        options += ["--set", setting]
    found = fit(particles, tmp_path / "fit", *options)
    assert found.exit_code == 0, found.output
    words = " ".join(found.output.split())
    assert "Contrast: latent, 1 +- 0.2" in words and "300 A, 5 nodes" in words
    assert "Contrast spread" in words and "Defocus off by" in words
    text = (tmp_path / "fit" / "particles.star").read_text()
    for name in ("Contrast", "ContrastStd", "DefocusOffset", "DefocusOffsetStd"):
        assert f"_cryoprob{name} " in text
    before = (tmp_path / "fit" / "volume.mrc").read_bytes()
    again = CliRunner().invoke(app, ["fit", "--resume", "--out", str(tmp_path / "fit")])
    assert again.exit_code == 0, again.output
    assert (tmp_path / "fit" / "volume.mrc").read_bytes() == before
    priced = ["latent", str(tmp_path / "fit"), "--centers", "2", "--price", "4"]
    told = CliRunner().invoke(app, priced)
    assert told.exit_code == 2 and "contrast and defocus: expected known" in told.output
    assert CliRunner().invoke(app, priced[:-2]).exit_code == 0
