"""Every family under one contract: it fits, resumes to the same bytes, follows dtype, guards NaN."""

from dataclasses import replace

import pytest
import torch

from cryoprob.checks import InputError
from cryoprob.inference.config import FAMILIES, HYBRIDS, FitConfig
from cryoprob.inference.families import families, family
from cryoprob.inference.loop import Quiet, load_checkpoint
from cryoprob.inference.natural_gradient import NaturalAscent
from cryoprob.inference.objectives.sleep import Sleep
from cryoprob.inference.run import run_fit
from cryoprob.inference.schedule import Schedule
from cryoprob.models.simulate import simulate
from cryoprob.phantoms import bead_walk

BOX, PIXEL, COUNT = 16, 8.0, 40
QUICK = Schedule(
    max_iterations=3, max_order=2, coarse_order=1, warm_steps=12, learn_steps=4, batch=16, beam=8
)
SAME = ("metrics.jsonl", "particles.star", "volume.mrc", "volume_std.mrc", "posterior.nc")
KINDS = {
    "exact-em": "log_evidence",
    "modal-em": "elbo",
    "amortized-modal": "profile_log_joint",
    "svi": "elbo",
    "amortized-vi": "elbo",
    "amortized-local": "log_evidence",
}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Forty images of a bead walk at SNR 1, 16 pixels of 8 A."""
    folder = tmp_path_factory.mktemp("stack")
    generator = torch.Generator().manual_seed(7)
    volume = bead_walk(20, BOX, PIXEL, generator)
    return simulate(volume, PIXEL, COUNT, 1.0, generator, out=folder)


def config(experiment, name, **settings):
    reference = str(experiment.truth_map)
    settings = {"seed": 3, "threads": 1, "mask": "sphere", "schedule": QUICK} | settings
    return FitConfig(str(experiment.particles), name, reference, 30.0, **settings)


def contents(folder):
    return {name: (folder / name).read_bytes() for name in SAME}


class Stopped(Exception):
    """Raised by an observer in the middle of a fit."""


class Stopper(Quiet):
    def __init__(self, steps):
        self.left = steps

    def step(self, record):
        self.left -= 1
        if not self.left:
            raise Stopped


def test_the_menu_is_the_list():
    assert tuple(families()) == FAMILIES + HYBRIDS
    assert all(row.name == name for name, row in families().items())


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES + HYBRIDS)
def test_a_resumed_fit_gives_the_same_bytes(experiment, tmp_path, name):
    settings = config(experiment, name)
    whole = run_fit(settings, tmp_path / "whole")
    assert whole.history[-1]["kind"].startswith(KINDS[name])
    assert ("order" in whole.history[-1]) == (name not in ("amortized-modal", "amortized-vi"))
    assert torch.isfinite(whole.posterior.bound).all()
    # an orthogonal matrix to single precision
    rotation = whole.posterior.rotation
    torch.testing.assert_close(
        rotation @ rotation.mT, torch.eye(3).expand(COUNT, 3, 3), rtol=0, atol=1e-5
    )
    with pytest.raises(Stopped):
        run_fit(settings, tmp_path / "cut", observer=Stopper(2))
    run_fit(settings, tmp_path / "cut", resume=True)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    # what is finished is only finished again
    run_fit(settings, tmp_path / "cut", resume=True)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name", ["exact-em", "svi"])
def test_a_law_of_the_map_in_any_family(experiment, tmp_path, name):
    """Resumed to the same bytes, its divergence in the metrics, its numbers in the checkpoint."""
    plan = replace(QUICK, volume="gaussian")
    settings = config(experiment, name, schedule=plan, mask="none")
    if name == "exact-em":
        known = {"particles": str(experiment.truth), "poses": "known", "reference": None}
        settings = replace(settings, half_sets=True, **known)
    whole = run_fit(settings, tmp_path / "whole")
    with pytest.raises(Stopped):
        run_fit(settings, tmp_path / "cut", observer=Stopper(2))
    run_fit(settings, tmp_path / "cut", resume=True)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    kept = load_checkpoint(tmp_path / "cut" / "checkpoint.pt")["refine"]["halves"][0]["guide"]
    volume = whole.fitted.guide.volume
    assert kept["volume.log_variance"].equal(volume.log_variance)
    for record in whole.history:
        words = "full band, expected under q(volume); volume_kl in nats, total"
        assert record["kind"].endswith(words) and record["volume_kl"] > 0
    # the bound of all data gains by what the map's law is fitted to
    elbo = [record["images"] * record["bound"] - record["volume_kl"] for record in whole.history]
    # (the prior of half sets is no part of one objective)
    assert name == "exact-em" or elbo[1] > elbo[0] + 100
    prior = whole.fitted.model.volume.prior()
    assert float(volume.kl(prior).detach()) > 0 and whole.volume_std.min() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES + HYBRIDS)
def test_double_precision(experiment, tmp_path, name):
    """The same fit in float64: bounds agree while the draws of q do, to single precision."""
    plan = replace(QUICK, max_iterations=1, warm_steps=2, learn_steps=1)
    found = {}
    for double in (False, True):
        settings = config(experiment, name, double=double, schedule=plan)
        result = run_fit(settings, tmp_path / str(double))
        assert result.volume.dtype == (torch.float64 if double else torch.float32)
        found[double] = result.history[0]["bound"], float(result.posterior.bound.std())
    # searches agree to rounding of some 400 nats; draws of q are other ones in another precision,
    # and their means agree to six standard errors of the mean over the images
    searched = name in ("exact-em", "modal-em")
    (narrow, first), (wide, second) = found[False], found[True]
    error = ((first**2 + second**2) / COUNT) ** 0.5
    assert abs(narrow - wide) < (0.02 if searched else 6 * error)


def poison(monkeypatch, name):
    """Give the first image's objective in every batch as not a number."""

    def poisoned(self, model, guide, volume, batch):
        value = objective(self, model, guide, volume, batch)
        return torch.where(batch.index == batch.index[0], torch.nan, value)

    def stands(self, images, *numbers):
        stand = at(self, images, *numbers)
        bound = torch.where(images.index == images.index[0], torch.nan, stand.bound)
        return replace(stand, bound=bound)

    objective, at = Sleep.__call__, NaturalAscent.at
    if name == "svi":
        monkeypatch.setattr(NaturalAscent, "at", stands)
    else:
        monkeypatch.setattr(Sleep, "__call__", poisoned)


@pytest.mark.parametrize("name", ["svi", "amortized-modal", "amortized-vi"])
def test_what_is_not_finite_stops_with_the_image_named(experiment, tmp_path, name, monkeypatch):
    poison(monkeypatch, name)
    words = "of the poses, iteration 1: expected a finite objective.*@particles.mrcs"
    with pytest.raises(InputError, match=words):
        run_fit(config(experiment, name), tmp_path / "fit")


def test_a_family_that_infers_needs_poses_to_infer(experiment):
    with pytest.raises(InputError, match="Known poses leave nothing to infer"):
        config(experiment, "svi", poses="known")
    with pytest.raises(InputError, match="--family: expected exact-em or modal-em"):
        config(experiment, "em")


def test_settings_of_its_own_only_where_the_user_left_them_open():
    row = family("amortized-vi")
    assert row.settle(Schedule()).warm_steps == dict(row.defaults)["warm_steps"]
    assert row.settle(Schedule(warm_steps=7)).warm_steps == 7
    assert family("exact-em").settle(Schedule()) == Schedule()
