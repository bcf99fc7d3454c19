"""Presets that train by gradients, with contrast and defocus summed out."""

from dataclasses import replace

import pytest
import torch
from chains import bead_chain, write_chain
from imaged import make_imaged, write_imaged
from scenes import trimmed
from scipy import stats

from cryoprob.checks import InputError
from cryoprob.inference.alternating import Alternating
from cryoprob.inference.config import FitConfig
from cryoprob.inference.conformation_budget import check_priced
from cryoprob.inference.half import Half
from cryoprob.inference.imaging import Imaging, exact_imaging
from cryoprob.inference.imaging_draws import note_imaging
from cryoprob.inference.joint import Joint
from cryoprob.inference.joint_finish import settle_contrasts
from cryoprob.inference.loop import Quiet
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.presets.menu import PRESETS, load
from cryoprob.inference.reload import reload, system_of
from cryoprob.inference.run import run_fit
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.starts import stack_of
from cryoprob.inference.treatments.known import Known
from cryoprob.io.mrc_writer import write_map
from cryoprob.io.star import read_star
from cryoprob.io.structures import density, read_structure
from cryoprob.models.gaussian_contrast import GaussianContrast
from cryoprob.models.simulate import simulate
from cryoprob.models.volumes.coordinate_network import CoordinateNetwork

GAUSS_90 = 1.6448536269514722
COUNT, SPREAD, ERROR_A = 240, 0.3, 400.0
BOTH = {"contrast_sd": SPREAD, "defocus_sd_A": ERROR_A}
SAME = ("config.toml", "metrics.jsonl", "particles.star", "volume.mrc", "posterior.nc")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """Images of unlike contrasts and wrong defoci in files, and the truth."""
    folder = tmp_path_factory.mktemp("imaged")
    imaged = make_imaged(box=16, n=COUNT, power=1e4, spread=SPREAD, error_A=ERROR_A)
    return imaged, write_imaged(imaged, folder), folder


def config(star, name, epochs=2.0, small=None, **settings):
    """A small fit of a preset, on as little as it takes."""
    preset, quick = load(name), {"width": 32, "layers": 1, "batch": 24, "learn_rate": 1e-3}
    quick |= {"zdim": 2} if "zdim" in preset.plan else {}
    quick |= {"coarse_order": 0, "max_order": 1, "shift_extent": 2.0, "gaussians": 10}
    plan = Schedule(**{**preset.plan, **quick, **(small or {}), "epochs": epochs})
    given = {"seed": 2, "threads": 1, **preset.config, **settings}
    return trimmed(FitConfig(str(star), preset=name, schedule=plan, **given))


@pytest.fixture(scope="module")
def fitted(scene):
    """cryoDRGN at the poses of the file, with and without both."""
    _, star, folder = scene
    named = {"none": {}, "both": BOTH}
    made = {name: config(star, "cryodrgn", 25.0, **given) for name, given in named.items()}
    return {name: run_fit(one, folder / name) for name, one in made.items()}


@pytest.mark.slow
def test_the_bound_rises_and_the_posteriors_are_calibrated(scene, fitted, false_alarm):
    """One-sided binomial tests at the false-alarm rate, of a network's map."""
    imaged, _, _ = scene
    bound = {name: float(one.posterior.bound.mean()) for name, one in fitted.items()}
    # a tenth of the signal's power after the CTF is unexplained without: 30 nats were seen
    assert bound["both"] > bound["none"] + 8
    found = fitted["both"].imaging
    # map and contrasts can trade a factor: the truth is taken at the mean that was found
    contrast = imaged.contrast * found.contrast.mean() / imaged.contrast.mean()
    for site, truth, least in (("contrast", contrast, 0.98), ("defocus", imaged.defocus, 0.7)):
        mean, std = getattr(found, site), getattr(found, f"{site}_std")
        assert float(torch.corrcoef(torch.stack([mean, truth]))[0, 1]) > least
        inside = int(((truth - mean).abs() < GAUSS_90 * std).sum())
        test = stats.binomtest(inside, COUNT, 0.9, alternative="less")
        assert test.pvalue > false_alarm, (site, inside)
    # the mean of 240 contrasts is 1 to 0.02, and the map has taken up what they share
    assert float(found.contrast.mean()) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_the_volume_takes_up_what_contrasts_have_in_common(factor):
    """A true map of the wrong gray scale comes back, until contrasts have mean 1."""
    imaged = make_imaged(n=60, power=2000.0)
    model = imaged.with_sites(contrast=GaussianContrast(0.2, torch.float64))
    guide = imaged.guide(factor * imaged.volume, **exact_imaging(model))
    half, objective = Half(model, guide, torch.arange(60)), Elbo()
    began = objective(model, guide, guide.volume.coefficients.detach(), imaged.batch).mean()
    settle_contrasts(half, imaged.stack, objective, 1)
    volume, found = guide.volume.coefficients.detach(), Imaging.empty(model, 60)
    note_imaging(found, half, imaged.batch, 1)
    ratio = float((volume * imaged.volume).sum() / imaged.volume.square().sum())
    torch.testing.assert_close(volume, ratio * imaged.volume)
    # rounds end at a factor of 1e-3 from 1, where a free gray scale has the prior's second moments
    assert float(found.contrast.mean()) == pytest.approx(1, abs=0.03)
    assert ratio == pytest.approx(float(imaged.contrast.mean()), abs=0.03)
    assert float(objective(model, guide, volume, imaged.batch).mean() - began) > 1
    settle_contrasts(half, imaged.stack, objective, 1)
    torch.testing.assert_close(guide.volume.coefficients.detach(), volume, rtol=2e-3, atol=0)


@pytest.mark.slow
def test_what_a_fit_leaves_and_how_it_is_taken_up_again(scene, fitted):
    _, _, folder = scene
    found = fitted["both"].imaging
    table = read_star(folder / "both" / "particles.star")[-1]
    for label, values in found.columns().items():
        # nine digits
        torch.testing.assert_close(
            torch.from_numpy(table.numbers(label)), values, rtol=1e-8, atol=0
        )
    groups = fitted["both"].to_arviz().sample_stats
    assert groups["contrast"].shape == groups["defocus_offset_std"].shape == (COUNT,)
    assert fitted["none"].imaging is None
    built, _ = reload(folder / "both")
    assert built.half.guide.sums_contrast and built.half.guide.sums_defocus
    left = fitted["both"].fitted.guide.volume.coefficients
    assert built.half.guide.volume.coefficients.equal(left)  # the factor taken up, too
    with pytest.raises(InputError, match="contrast and defocus: expected known numbers"):
        check_priced(built.half, 3)


class Stop(Quiet):
    """Stops a run at its second record."""

    def step(self, record):
        if record["iteration"] == 2:
            raise KeyboardInterrupt


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("cryodrgn2", "cryoai")]


@pytest.mark.parametrize("name", ["cryodrgn", *SLOW])
def test_a_stopped_fit_goes_on_to_the_same_bytes(tmp_path, name):
    """Poses given, searched and read off; with a contrast that is held, and then free."""
    imaged = make_imaged(box=12, n=24, power=2000.0, spread=SPREAD, error_A=ERROR_A)
    write_map(tmp_path / "map.mrc", imaged.volume.float(), imaged.model.pixel_size)
    star = write_imaged(imaged, tmp_path)
    quick = {"width": 8, "batch": 8, "max_order": 0}
    settings = config(star, name, 36.0, quick, **BOTH, defocus_nodes=5)  # three records
    if name != "cryodrgn":
        settings = replace(settings, reference=str(tmp_path / "map.mrc"), low_pass_A=12.0)
    whole = run_fit(settings, tmp_path / "whole")
    assert bool(whole.imaging.contrast.isfinite().all())
    assert bool((whole.imaging.defocus_std > 0).all())
    searched = "Poses were searched for at contrast 1" in whole.trust
    assert searched == (name == "cryodrgn2")
    with pytest.raises(KeyboardInterrupt):
        run_fit(settings, tmp_path / "cut", observer=Stop())
    run_fit(settings, tmp_path / "cut", resume=True)
    for file in SAME:
        one, other = ((tmp_path / part / file).read_bytes() for part in ("whole", "cut"))
        assert one == other, file


def joint_of(algorithm):
    return algorithm.joint if isinstance(algorithm, Alternating) else algorithm


@pytest.mark.parametrize("name", PRESETS)
def test_who_sums_them_out(scene, name):
    """All whose nats are of images and that train by gradients; the others refuse in words."""
    _, star, _ = scene
    if load(name).build is None or name in ("cryofold", "atomvae"):
        return  # families, and molecules that start from a structure
    settings = config(star, name)
    stack = stack_of(settings)
    plain = system_of(settings, stack)
    assert not plain.half.guide.sums_imaging
    settings = replace(settings, **BOTH)
    if not isinstance(joint_of(plain.algorithm), Joint):
        with pytest.raises(InputError, match=f"{name} has, got --contrast, --defocus.*exact-em"):
            system_of(settings, stack)
        return
    if not plain.objective.sums_imaging:
        with pytest.raises(InputError, match="contrast and defocus: expected an obj.*Leave"):
            system_of(settings, stack)
        return
    built = system_of(settings, stack)
    joint, guide = joint_of(built.algorithm), built.half.guide
    assert guide.sums_contrast and guide.sums_defocus
    assert 0 < joint.held["contrast"] < 0.5
    early, late = (joint._guide(built.half, COUNT, step) for step in (0, joint.steps - 1))
    assert late is guide and isinstance(early.contrast, Known) and early.sums_defocus
    assert bool((early.contrast.values == 1).all())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cryofold", "atomvae"])
def test_molecules_that_start_from_a_structure(tmp_path, name):
    generator = torch.Generator().manual_seed(7)
    write_chain(tmp_path / "chain.pdb", bead_chain(30, generator))
    volume = density(read_structure(tmp_path / "chain.pdb"), 16, 6.0, center=False)
    drawn = simulate(volume, 6.0, 24, 1.0, generator, out=tmp_path)
    settings = config(drawn.truth, name, reference=str(tmp_path / "chain.pdb"), **BOTH)
    found = run_fit(settings, tmp_path / "fit")
    for values in found.imaging.columns().values():
        assert values.shape == (24,) and bool(values.isfinite().all())


def test_a_networks_gray_scale():
    generator = torch.Generator().manual_seed(3)
    volume = CoordinateNetwork(8, 2, generator=generator, width=8, layers=2, dtype=torch.float64)
    weights, state = volume.start(generator), torch.randn(2, dtype=torch.float64)
    twice = volume.density(volume.scaled(weights, 2.5), state)
    torch.testing.assert_close(twice, 2.5 * volume.density(weights, state))  # rounding
