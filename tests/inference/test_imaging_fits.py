"""Whole fits whose contrast and defocus are latent: what they find, leave and refuse."""

import pytest
import torch
from imaged import make_imaged, write_imaged
from pretend import PretendCuda
from scipy import stats

from cryoprob.checks import InputError
from cryoprob.inference.config import FitConfig
from cryoprob.inference.imaging import Imaging, Latent
from cryoprob.inference.loop import Quiet
from cryoprob.inference.run import run_fit
from cryoprob.inference.schedule import Schedule
from cryoprob.io.mrc_writer import write_map
from cryoprob.io.star import read_star
from cryoprob.models.gaussian_defocus import GaussianDefocus
from cryoprob.particles import ParticleStack

GAUSS_90 = 1.6448536269514722
COUNT, SPREAD, ERROR_A = 400, 0.3, 400.0
SAME = ("config.toml", "metrics.jsonl", "particles.star", "volume.mrc", "posterior.nc")
STAR = "particles.star"
BOTH = {"contrast_sd": SPREAD, "defocus_sd_A": ERROR_A}


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Images of unlike contrasts and wrong defoci, 24 pixels of 3 A, in files; and the truth."""
    folder = tmp_path_factory.mktemp("imaged")
    imaged = make_imaged(box=24, n=COUNT, power=1e4, spread=SPREAD, error_A=ERROR_A)
    return imaged, write_imaged(imaged, folder), folder


def fit(star, out, observer=None, resume=False, plan=None, **settings):
    plan = plan or Schedule(max_iterations=12)
    given = {"poses": "known", "mask": "sphere", "seed": 1, "threads": 1} | settings
    return run_fit(
        FitConfig(str(star), schedule=plan, **given), out, resume=resume, observer=observer
    )


@pytest.fixture(scope="module")
def fitted(scene):
    """Fits by name, at the poses of the file."""
    _, star, folder = scene
    named = {"none": {}, "contrast": {"contrast_sd": SPREAD}, "both": BOTH}
    return {name: fit(star, folder / name, **given) for name, given in named.items()}


def evidence(result):
    return float(result.posterior.bound.mean())


def test_the_evidence_rises_with_each_site(fitted):
    # 10 % of the signal's power after the CTF (0.3^2 of 5000) is unexplained without contrasts,
    # of which the noise's own spectrum can take up a part; 50 and 1.5 nats were seen
    assert evidence(fitted["contrast"]) > evidence(fitted["none"]) + 20
    assert evidence(fitted["both"]) > evidence(fitted["contrast"]) + 0.5


def test_posteriors_are_calibrated(scene, fitted, false_alarm):
    """90 % intervals hold 90 % of the truth; one-sided binomial test at the false-alarm rate."""
    imaged, _, _ = scene
    found = fitted["both"].imaging
    # map and contrasts can trade a factor, which the data do not tell: the truth has mean 1, too
    contrast = imaged.contrast * found.contrast.mean() / imaged.contrast.mean()
    for site, truth, least in (("contrast", contrast, 0.99), ("defocus", imaged.defocus, 0.85)):
        mean, std = getattr(found, site), getattr(found, f"{site}_std")
        assert float(torch.corrcoef(torch.stack([mean, truth]))[0, 1]) > least
        inside = int(((truth - mean).abs() < GAUSS_90 * std).sum())
        test = stats.binomtest(inside, COUNT, 0.9, alternative="less")
        assert test.pvalue > false_alarm, (site, inside)
        wide = int(((truth - mean).abs() < 0.5 * GAUSS_90 * std).sum())  # 59 % at half the width
        test = stats.binomtest(wide, COUNT, 0.589, alternative="greater")
        assert test.pvalue > false_alarm, (site, wide)  # nor are they too wide
    assert float(found.defocus_std.median()) < 0.5 * ERROR_A  # the prior alone would not do
    # the mean of 400 contrasts is 1 to 0.3 / 20; the map's factor settles in few steps
    assert float(found.contrast.mean()) == pytest.approx(1, abs=0.06)


def test_what_a_fit_leaves(scene, fitted):
    _, star, folder = scene
    found = fitted["both"].imaging
    before, after, plain = (
        read_star(path)[-1] for path in (star, folder / "both" / STAR, folder / "none" / STAR)
    )
    for label, values in {
        "cryoprobContrast": found.contrast,
        "cryoprobContrastStd": found.contrast_std,
        "cryoprobDefocusOffset": found.defocus,
        "cryoprobDefocusOffsetStd": found.defocus_std,
    }.items():
        written = torch.from_numpy(after.numbers(label))
        torch.testing.assert_close(written, values, rtol=1e-8, atol=0)  # nine digits
    for label in ("rlnDefocusU", "rlnDefocusV"):
        assert after.texts(label) == before.texts(label)
    stats_ = fitted["both"].to_arviz().sample_stats
    for name in ("contrast", "contrast_std", "defocus_offset", "defocus_offset_std"):
        assert stats_[name].shape == (COUNT,)
    assert stats_["defocus_offset"].units == "A"
    new = set(after.labels) - set(plain.labels)
    assert len(new) == 4 and all(name.startswith("cryoprob") for name in new)
    assert fitted["none"].imaging is None
    text = (folder / "none" / "config.toml").read_text()
    assert "contrast_sd" not in text and "defocus" not in text
    assert FitConfig.from_toml(folder / "both" / "config.toml").latent == Latent(SPREAD, ERROR_A)


class Stop(Quiet):
    """Stops a run at its ``left``-th step."""

    def __init__(self, left):
        self.left = left

    def step(self, record):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def test_a_stopped_fit_goes_on_to_the_same_bytes(scene, fitted):
    _, star, folder = scene
    with pytest.raises(KeyboardInterrupt):
        fit(star, folder / "stopped", Stop(3), **BOTH)
    fit(star, folder / "stopped", resume=True, **BOTH)
    for name in SAME:
        one, other = ((folder / which / name).read_bytes() for which in ("stopped", "both"))
        assert one == other, name


def test_a_plain_fit_of_its_particles_leaves_its_columns_out(scene, fitted, tmp_path):
    """They are of another map; and poses have no widths here that a file could have stale."""
    _, _, folder = scene
    plain = fit(folder / "both" / STAR, tmp_path / "fit", plan=Schedule(max_iterations=1))
    assert plain.imaging is None
    labels = read_star(tmp_path / "fit" / STAR)[-1].labels
    assert not [label for label in labels if label.startswith("cryoprob")]


def test_half_sets(scene):
    imaged, star, folder = scene
    result = fit(star, folder / "halves", half_sets=True, plan=Schedule(max_iterations=4), **BOTH)
    found = result.imaging
    for site in ("contrast", "defocus"):
        truth = getattr(imaged, site)
        mean, std = getattr(found, site), getattr(found, f"{site}_std")
        assert bool(mean.isfinite().all()) and bool((std > 0).all())
        assert float(torch.corrcoef(torch.stack([mean, truth]))[0, 1]) > 0.8


@pytest.mark.parametrize("poses", ["ignore", "local"])
def test_searched_poses(tmp_path, poses):
    """From the true map at 12 A: poses, contrasts and defoci of sixty images together."""
    imaged = make_imaged(box=16, n=60, power=4000.0, spread=SPREAD, error_A=ERROR_A)
    star = write_imaged(imaged, tmp_path)
    write_map(tmp_path / "map.mrc", imaged.volume.float(), imaged.model.pixel_size)
    start = {"reference": str(tmp_path / "map.mrc"), "low_pass_A": 12.0, "poses": poses}
    plan = Schedule(max_iterations=3, max_order=2, coarse_order=1, shift_extent=2.0)
    latent = {"contrast_sd": SPREAD, "defocus_sd_A": ERROR_A, "defocus_nodes": 5}
    found = fit(star, tmp_path / "both", plan=plan, **start, **latent)
    plain = fit(star, tmp_path / "none", plan=plan, **start)
    assert evidence(found) > evidence(plain) + 3  # 10 to 17 nats were seen
    # 0.98 to 0.99, and 0.9 (on a grid of 15 degrees less)
    for site, least in (("contrast", 0.9), ("defocus", 0.3)):
        pair = torch.stack([getattr(found.imaging, site), getattr(imaged, site)])
        assert float(torch.corrcoef(pair)[0, 1]) > least


@pytest.mark.parametrize("poses", ["known", "local"])
def test_the_cuda_route_gives_the_same(tmp_path, poses):
    """On a device that pretends: nothing meets a tensor of another device."""
    imaged = make_imaged(box=12, n=12, power=2000.0)
    star = write_imaged(imaged, tmp_path)
    plan = Schedule(max_iterations=2, coarse_order=1, max_order=1, shift_extent=2.0)
    latent = {"contrast_sd": 0.2, "defocus_sd_A": 300.0, "defocus_nodes": 3, "double": True}
    settings = {"poses": poses, "plan": plan, **latent}
    if poses == "local":
        write_map(tmp_path / "map.mrc", imaged.volume.float(), imaged.model.pixel_size)
        settings |= {"reference": str(tmp_path / "map.mrc"), "low_pass_A": 12.0}
    wanted = fit(star, tmp_path / "cpu", **settings)
    with PretendCuda():
        found = fit(star, tmp_path / "cuda", device="cuda", **settings)
    for site in ("contrast", "contrast_std", "defocus", "defocus_std"):
        one, other = (getattr(result.imaging, site) for result in (found, wanted))
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # rounding, two steps
    torch.testing.assert_close(found.volume, wanted.volume, rtol=1e-6, atol=1e-6)


REFUSED = {
    "family": (
        {"family": "svi", "poses": "ignore"},
        "--contrast and --defocus: expected --family",
    ),
    "classes": ({"schedule": Schedule(classes=2)}, "expected one class"),
    "estimated": (
        {"schedule": Schedule(contrast=True)},
        "expected contrast=false.*Use --contrast SD beside --defocus, which",
    ),
    "estimated, contrast": (
        {"schedule": Schedule(contrast=True), "defocus_sd_A": None},
        "Use --contrast SD alone, which",
    ),
    "estimated, defocus": (
        {"schedule": Schedule(contrast=True), "contrast_sd": None},
        "Use --contrast SD beside --defocus, which",
    ),
    "zero": ({"contrast_sd": 0.0}, "--contrast: expected a positive number, got 0"),
    "negative": ({"defocus_sd_A": -300.0}, "--defocus: expected a positive number, got -300"),
    "alone": (
        {"defocus_sd_A": None, "defocus_nodes": 9},
        "--defocus-nodes: expected --defocus too",
    ),
    "one": ({"defocus_nodes": 1}, "--defocus-nodes: expected 2 to 64, got 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case):
    given, words = REFUSED[case]
    with pytest.raises(InputError, match=words):
        FitConfig("p.star", **{"poses": "known", **BOTH, **given})


def test_particles_without_optics_refuse():
    stack = ParticleStack.from_arrays(torch.randn(2, 8, 8), 3.0)
    Latent(contrast_sd=0.2).check(stack)
    with pytest.raises(InputError, match="--defocus: expected particles with the columns"):
        Latent(defocus_sd_A=300.0).check(stack)


def test_draws_of_poses_refuse(scene, fitted):
    imaged, _, _ = scene
    with pytest.raises(InputError, match=r"contrast and def.* as given.*FitResult.imaging"):
        fitted["both"].to_arviz(imaged.stack, seed=1)


def test_nodes_too_far_apart_are_told():
    found = Imaging(defocus=torch.zeros(5), defocus_std=torch.full((5,), 80.0))
    prior = GaussianDefocus(400.0, 13, even=True)
    assert prior.spacing == pytest.approx(200)
    assert "expected" not in found.doubt(prior)
    assert "200 A apart" in found.doubt(prior) and "--defocus-nodes" in found.doubt(prior)
    assert found.doubt(GaussianDefocus(400.0, 25, even=True)) == ""
    assert found.doubt(None) == Imaging().doubt(prior) == ""


def test_a_prior_of_the_defocus_that_is_too_narrow_is_told(tmp_path):
    """Errors of 400 A where 100 were expected, and where 400 were."""
    imaged = make_imaged(n=40, power=2e4, error_A=400.0)
    star, told = write_imaged(imaged, tmp_path), {}
    for scale in (100.0, 400.0):
        plan = Schedule(max_iterations=3)
        latent = {"defocus_sd_A": scale, "defocus_nodes": 25}
        told[scale] = fit(star, tmp_path / f"{scale:.0f}", plan=plan, **latent).trust
    assert "100 A were expected: give more (--defocus" in told[100.0]
    assert "expected" not in told[400.0]
