"""A fit in ArviZ's hands: groups, leave-one-out against closed form, comparison, files."""

from dataclasses import replace
from math import log, pi

import arviz
import matplotlib
import numpy as np
import pytest
import torch
from brute_force import BruteForce
from problems import make_problem
from scipy import stats
from xarray import DataTree, open_datatree

import cryoprob as cp
from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.inference.arviz_groups import tree
from cryoprob.inference.chains import Chains
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.model_comparison import held_out, loo
from cryoprob.inference.pose_draws import draw_poses
from cryoprob.inference.result import FitResult
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.solvent import Solvent
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.local import Local
from cryoprob.inference.volume_draws import draw_volumes, log_likelihood, scored, summed_out

matplotlib.use("Agg")

F64 = torch.float64
FIXED = Schedule(
    max_iterations=3,
    coarse_order=0,
    max_order=0,
    noise=False,
    tau2=False,
    shift_sigma=False,
    turn=False,
    max_radius=2,
    mass=1.0,
)
QUIET = pytest.mark.filterwarnings("ignore")
"""ArviZ and matplotlib warn of a posterior of a single draw, and of each other."""
FEW = pytest.mark.filterwarnings("ignore:Estimated shape", "ignore:The inplace keyword")
"""Fifty draws are few: ArviZ asks for weights of a lighter tail then. It uses old pandas, too."""


@pytest.fixture(scope="module")
def problem():
    """Eighty images of a map that explains them by some nats each."""
    return make_problem(n=80, contrast=False, groups=1, signal=3.0, radius=2)


@pytest.fixture(scope="module")
def result(problem):
    return cp.fit(
        problem.model,
        problem.guide,
        problem.stack,
        seed=1,
        schedule=FIXED,
        solvent=Solvent("none"),
    )


@pytest.fixture(scope="module")
def drawn(problem, result):
    return result.draw_volumes(problem.stack, seed=2, chains=2, draws=25)


@QUIET
def test_summary_and_trace_work_always(problem, result, drawn):
    made = (
        result.to_arviz(),
        result.to_arviz(problem.stack, seed=1, draws=5),
        result.to_arviz(problem.stack, seed=1, volume_draws=drawn),
    )
    for data, names in zip(made, ({"power"}, *[{"power", "angle", "shift"}] * 2), strict=True):
        table = arviz.summary(data)
        assert {name.partition("[")[0] for name in table.index} == names
        assert len(table) <= 40  # the subplots that ArviZ 1.x allows
        arviz.plot_trace(data)
        matplotlib.pyplot.close("all")


def test_groups_have_named_dimensions(problem, result, drawn):
    data = result.to_arviz(problem.stack, seed=1, volume_draws=drawn, images=[7, 2, 30])
    dims = {
        "posterior": {"chain": 2, "draw": 25, "image": 3, "axis": 2, "resolution": 3},
        "pose_draws": {"chain": 2, "draw": 25, "image": 3, "row": 3, "column": 3, "axis": 2},
        "posterior_predictive": {"chain": 2, "draw": 25, "image": 3, "y": 8, "x": 8},
        "observed_data": {"image": 3, "y": 8, "x": 8},
        "constant_data": {"image": 80},
        "log_likelihood": {"chain": 2, "draw": 25, "image": 80},
    }
    for name, sizes in dims.items():
        found = dict(data[name].sizes)
        assert {key: found[key] for key in sizes} == sizes, name
    assert data.posterior["image"].values.tolist() == [7, 2, 30]
    np.testing.assert_array_equal(
        data.observed_data["images"].sel(image=2), problem.stack.images([2])[0]
    )
    constant = data.constant_data.sel(image=2)
    assert constant["pixel_size"] == 5.0 and constant["optics_group"] == "opticsGroup1"
    assert constant["image_name"] == problem.stack.image_names([2])[0]
    assert constant["defocus_u"] == float(problem.stack.optics.defocus_u[2])
    bounds = [record["bound"] for record in result.history]
    assert data.sample_stats["bound"].values.tolist() == bounds
    assert data.sample_stats["image_bound"].attrs["kind"] == "log_evidence"


def test_log_likelihood_has_the_poses_summed_out(problem, drawn, result):
    """Against sums over all poses by brute force, at two draws."""
    data = result.to_arviz(problem.stack, seed=1, volume_draws=drawn)
    for chain, draw in ((0, 3), (1, 24)):
        there = replace(problem, volume=drawn.volume[chain, draw])
        wanted = BruteForce(there).evidence
        found = data.log_likelihood["images"][chain, draw].values
        np.testing.assert_allclose(found, wanted, rtol=1e-9)


def test_point_volumes_have_no_leave_one_out(problem, result):
    data = result.to_arviz(problem.stack, seed=1, draws=4)
    with pytest.raises(TypeError, match="log likelihood not found"):
        arviz.loo(data)
    for made in (data, tree({"posterior": data.posterior})):
        with pytest.raises(InputError, match="draws of the map.*held_out"):
            loo(made)


def exact_leave_one_out(problem):
    """``log p(image i | all others)`` at known poses, map integrated out, by dense Gaussians."""
    model, stack = problem.model, problem.stack
    box = stack.box
    voxels = torch.eye(box**3, dtype=F64).reshape(-1, box, box, box)
    law = model.likelihood(voxels[:, None], stack.rotation, stack.shift, problem.batch)
    scale = law.sigma2[:, law.band.shell].sqrt()
    design = torch.view_as_real((law.mean / scale).resolve_conj()).flatten(2)  # [voxel, image, M]
    seen = torch.view_as_real((problem.batch.image / scale).resolve_conj()).flatten(1)
    prior = torch.autograd.functional.hessian(
        lambda v: -model.volume.prior().log_prob(v), problem.volume
    ).reshape(box**3, box**3)
    precision = prior + torch.einsum("vim,wim->vw", design, design)
    right = torch.einsum("vim,im->v", design, seen)
    counts = full_band(box).numbers_per_shell().to(F64)
    constant = -(counts * (2 * pi * law.sigma2).log()).sum(-1) / 2
    found = []
    for i in range(len(seen)):
        one = design[:, i]
        root = torch.linalg.cholesky(precision - one @ one.T)
        mean = torch.cholesky_solve((right - one @ seen[i])[:, None], root)[:, 0]
        cover = torch.eye(one.shape[1], dtype=F64) + one.T @ torch.cholesky_solve(one, root)
        away = seen[i] - one.T @ mean
        quadratic = away @ torch.linalg.solve(cover, away)
        found.append(constant[i] - (torch.logdet(cover) + quadratic) / 2)
    return torch.stack(found)


@FEW
def test_leave_one_out_is_the_closed_form_at_known_poses():
    known = make_problem(
        box=6, n=80, contrast=False, groups=1, signal=3.0, radius=1, tau2=0.1
    ).continuous()
    half = Half(known.model, known.guide, torch.arange(80))
    draws = draw_volumes(half, known.stack, chains=4, draws=50, seed=3)
    likelihood = draws.log_likelihood.numpy()
    made = arviz.from_dict(
        {"volume": draws.power()[..., :3].numpy()}, log_likelihood={"images": likelihood}
    )
    found = arviz.loo(made, pointwise=True)
    wanted = exact_leave_one_out(known)
    # nats that the double use of the data is worth (19 were seen); a tenth of it is asked for
    worth = float(likelihood.mean((0, 1)).sum()) - float(wanted.sum())
    assert worth > 5 and abs(found.elpd_loo - float(wanted.sum())) < 0.1 * worth
    away = found.loo_i.values - wanted.numpy()
    assert np.abs(away).max() < 0.5  # 0.13 was seen with 400 draws


@FEW
def test_the_right_model_wins(problem, result, drawn):
    half = result.fitted
    faint = Chains(0.05 * drawn.volume, drawn.log_joint)  # ArviZ 1.x refuses a map of zeros
    model = make_problem(n=80, contrast=False, groups=1, signal=3.0, radius=2).model
    model.noise.sigma2.mul_(1.5)
    loud = Half(model, half.guide, half.index)
    rivals = {
        "right": drawn,
        "hardly a map": scored(faint, half, problem.stack),
        "too much noise": scored(drawn, loud, problem.stack),
    }
    made = {
        name: result.to_arviz(problem.stack, seed=1, volume_draws=chains, images=[0])
        for name, chains in rivals.items()
    }
    table = arviz.compare({name: made[name] for name in made}, ic="loo")
    assert table.index[0] == "right"
    behind = table.loc[["hardly a map", "too much noise"]]
    assert (behind["elpd_diff"] > 3 * behind["dse"]).all()
    assert float(loo(made["right"]).elpd_loo) == pytest.approx(table.loc["right", "elpd_loo"])


def test_held_out_images_need_no_draws(problem, result):
    fresh = make_problem(n=80, contrast=False, groups=1, signal=3.0, radius=2)
    other = fresh.stack.subset(torch.arange(40))
    found = held_out(result, other)
    wanted = log_likelihood(result.fitted, result.fitted.guide.volume.coefficients, problem.stack)
    torch.testing.assert_close(found.nats, wanted[:40])
    part = held_out(result, problem.stack, index=torch.tensor([5, 3]))
    torch.testing.assert_close(part.nats, wanted[[5, 3]])
    difference = found.above(found)
    assert difference.mean == 0 and difference.error == 0


def test_predicted_images_have_the_models_mean_and_noise(problem, false_alarm):
    known = problem.continuous()
    guide = Guide(
        rotation=known.guide.rotation, shift=known.guide.shift, volume=problem.guide.volume
    )
    half = Half(known.model, guide, torch.arange(80))
    made = shell(half).to_arviz(problem.stack, seed=4, draws=300, images=[9, 50])
    index = torch.tensor([9, 50])
    pose = problem.stack.rotation[index], problem.stack.shift[index]
    batch = problem.part(index)
    law = known.model.likelihood(guide.volume.coefficients.detach(), *pose, batch)
    clean = batch.band.unpack(law.mean)
    variance = (full_band(8).numbers_per_shell() * law.sigma2).sum(-1) / 64
    away = made.posterior_predictive["images"].values[0] - clean.detach().numpy()
    for one, sd in zip(away.transpose(1, 0, 2, 3), variance.sqrt().tolist(), strict=True):
        mean = one.mean(0) / (sd / 300**0.5)
        assert abs(mean.mean()) < stats.norm.isf(false_alarm)  # pixels correlate: no root of 64
        assert one.std() == pytest.approx(sd, rel=0.05)


def shell(half):
    """A result that holds nothing but its model."""
    summary = cp.e_step(half.model, half.guide, _stack(half)).summary
    history = [{"bound": 0.0, "resolution_A": 10.0}]
    volume = half.guide.volume.coefficients.detach()
    return FitResult(volume, volume, 5.0, 10.0, "", summary, history, "", fitted=half)


def _stack(half):
    return make_problem(n=80, contrast=False, groups=1, signal=3.0, radius=2).stack


def counted(rotation, shift, model, image):
    """How often each pose of the grid was drawn for an image, [Q, T]."""
    turns, moves = model.rotation.matrices(), model.shift.points()
    turn = torch.cdist(rotation[:, image].flatten(1), turns.flatten(1)).argmin(1)
    move = torch.cdist(shift[:, image], moves).argmin(1)
    return torch.bincount(turn * len(moves) + move, minlength=len(turns) * len(moves))


@pytest.mark.parametrize("mass", [None, 1.0])
def test_poses_are_drawn_from_their_posterior(mass, false_alarm):
    """By the whole grid, and by candidates of a coarser one."""
    problem = make_problem(n=3, order=1, refine=1)
    exact = Exact(mass, coarse_order=0)
    guide = Guide(rotation=exact, shift=exact, volume=problem.guide.volume)
    args = problem.model, guide, problem.volume, problem.stack
    index, count = torch.tensor([2, 0]), 3000
    rotation, shift = draw_poses(*args, index, count, 8)
    assert torch.equal(draw_poses(*args, index, count, 8)[0], rotation)
    weights = BruteForce(problem).weights
    for place, image in enumerate(index):
        wanted = weights[image].flatten()
        found = counted(rotation, shift, problem.model, place)
        many = wanted * count > 5
        seen = torch.cat([found[many], found[~many].sum()[None]]).numpy()
        expected = torch.cat([wanted[many], wanted[~many].sum()[None]]).numpy() * count
        assert len(seen) > 5
        assert stats.chisquare(seen, expected).pvalue > false_alarm / 4


def test_local_searches_draw_near_their_poses():
    problem = make_problem(n=4, order=1, refine=1)
    near = Local(problem.stack.rotation, 20.0), Local(problem.stack.shift, 6.0)
    guide = Guide(rotation=near[0], shift=near[1], volume=problem.guide.volume)
    args = problem.model, guide, problem.volume, problem.stack
    rotation, _ = draw_poses(*args, torch.arange(4), 50, 8)
    away = rotation @ problem.stack.rotation.mT
    angle = torch.rad2deg(torch.acos((away.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2))
    # a coarse cell whose center is within its spacing of 60 degrees, and its children
    assert angle.max() < 60 + 45


def test_guides_that_bound_are_told_to_sum_out(problem, result):
    known = problem.continuous()
    half = replace_guide(result.fitted, known)
    with pytest.raises(InputError, match="kind 'elbo'.*order"):
        log_likelihood(half, problem.volume, problem.stack)
    found = log_likelihood(half, problem.volume, problem.stack, order=0)
    again = summed_out(half, 0)
    assert len(again.model.rotation.matrices()) == 72 and again.model.noise is half.model.noise
    assert found.shape == (80,) and torch.isfinite(found).all()


def replace_guide(half, known):
    """A half whose poses have laws of their own."""
    from cryoprob.inference.laws.rotations import ConcentratedLaw
    from cryoprob.inference.laws.shifts import NormalShift
    from cryoprob.inference.treatments.per_image import PerImage

    turns = PerImage(ConcentratedLaw(), known.stack.rotation)
    moves = PerImage(NormalShift(4.0), known.stack.shift)
    guide = Guide(rotation=turns, shift=moves, volume=half.guide.volume)
    return Half(known.model, guide, half.index)


def test_laws_are_drawn_from(problem, result):
    half = replace_guide(result.fitted, problem.continuous())
    data = shell(half).to_arviz(problem.stack, seed=2, draws=6)
    assert data.pose_draws["rotation"].shape == (1, 6, 8, 3, 3)
    assert float(data.posterior["shift"].std("draw").min()) > 0


def test_gibbs_draws_bring_their_own(problem, result):
    """Poses and likelihoods are those that were drawn with the map."""
    from cryoprob.inference.gibbs import Gibbs, sample_gibbs

    sampler = Gibbs(problem.model, problem.stack)
    chains = sample_gibbs(sampler, result.volume[None], warmup=1, draws=4, seed=5)
    total = chains.log_likelihood.sum(-1) + problem.model.volume.prior().log_prob(chains.volume)
    torch.testing.assert_close(total, chains.log_joint)
    data = result.to_arviz(problem.stack, seed=1, volume_draws=chains, images=[4])
    np.testing.assert_array_equal(data.pose_draws["rotation"][0, :, 0], chains.rotation[0, :, 4])
    np.testing.assert_array_equal(data.log_likelihood["images"], chains.log_likelihood)


@FEW
def test_netcdf_round_trip(problem, result, drawn, tmp_path):
    data = result.to_arviz(problem.stack, seed=1, volume_draws=drawn)
    data.to_netcdf(str(tmp_path / "all.nc"))
    again = arviz.from_netcdf(str(tmp_path / "all.nc"))
    assert set(again.groups()) == set(data.groups())
    for name in data.groups():
        assert again[name].equals(data[name]), name
    assert loo(again).elpd_loo == loo(data).elpd_loo


def test_what_a_fit_writes_is_small(problem, result, tmp_path):
    """Two groups, no images; for each image less than one of 16 pixels a side."""
    result.save(tmp_path, problem.stack)
    with open_datatree(tmp_path / "posterior.nc", engine="h5netcdf") as found:
        assert set(found.children) == {"posterior", "sample_stats"}
    overhead = 2**16
    assert (tmp_path / "posterior.nc").stat().st_size < overhead + 80 * 16**2 * 4


def test_a_newer_arviz_gets_a_tree(problem, result, drawn, monkeypatch):
    monkeypatch.delattr(arviz, "InferenceData")
    data = result.to_arviz(problem.stack, seed=1, volume_draws=drawn)
    assert isinstance(data, DataTree)
    assert data["log_likelihood"]["images"].dims == ("chain", "draw", "image")


def test_what_is_missing_is_said(problem, result, drawn):
    with pytest.raises(InputError, match="a seed"):
        result.to_arviz(problem.stack)
    with pytest.raises(InputError, match="the particles too"):
        result.to_arviz(volume_draws=drawn)
    short = replace(drawn, log_likelihood=drawn.log_likelihood[..., :7])
    with pytest.raises(InputError, match="80 images of the fit, got those of 7"):
        result.to_arviz(problem.stack, seed=1, volume_draws=short)
    with pytest.raises(InputError, match="one or more, got 0 chains"):
        result.draw_volumes(problem.stack, seed=1, chains=0)
    with pytest.raises(InputError, match="without its model"):
        replace(result, fitted=None).to_arviz(problem.stack, seed=1)


def test_noise_alone_is_what_no_map_predicts(problem, result):
    """The blank map's log likelihood is the density of white numbers, whatever the poses."""
    zero = torch.zeros_like(problem.volume)
    found = log_likelihood(result.fitted, zero, problem.stack)
    batch, sigma2 = problem.batch, problem.model.noise.sigma2[0]
    counts = full_band(8).numbers_per_shell()
    wanted = -(batch.power / sigma2 + counts * (log(2 * pi) + sigma2.log())).sum(-1) / 2
    torch.testing.assert_close(found, wanted)
