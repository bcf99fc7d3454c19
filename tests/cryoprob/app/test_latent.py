"""The latent command on a small fit."""

import csv
import shutil

import pytest
import torch
from typer.testing import CliRunner

from cryoprob.app import latent as app_latent
from cryoprob.app import latent_plot
from cryoprob.app.cli import app
from cryoprob.app.conformations import fitted_columns
from cryoprob.app.latent import Latent
from cryoprob.app.latent_plot import axis_names, plot_latent
from cryoprob.checks import InputError
from cryoprob.inference.config import FitConfig
from cryoprob.inference.latent import collapse, told
from cryoprob.inference.presets.menu import load
from cryoprob.inference.reload import reload
from cryoprob.inference.run import run_fit
from cryoprob.inference.schedule import Schedule
from cryoprob.io.mrc import read_map
from cryoprob.io.tables import read_particles
from cryoprob.metrics.principal_axes import principal_axes
from cryoprob.metrics.principal_curve import principal_curve
from cryoprob.models.simulate import simulate
from cryoprob.phantoms import bead_walk

COUNT = 30


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stack")
    generator = torch.Generator().manual_seed(7)
    drawn = simulate(bead_walk(20, 16, 6.0, generator), 6.0, COUNT, 1.0, generator, out=folder)
    small = {"zdim": 2, "width": 8, "layers": 1, "epochs": 20.0, "batch": 8}
    plan = Schedule(**{**load("cryodrgn").plan, **small})
    settings = {"preset": "cryodrgn", "poses": "known", "seed": 2, "threads": 1}
    out = folder / "fit"
    return out, run_fit(FitConfig(str(drawn.truth), schedule=plan, **settings), out)


def run(*words):
    return CliRunner().invoke(app, ["latent", *map(str, words)])


def test_a_fit_is_taken_up_as_it_was_left(fitted):
    out, result = fitted
    built, stack = reload(out)
    half = built.half
    assert len(stack) == COUNT
    for name, value in result.fitted.guide.state_dict().items():
        assert half.guide.state_dict()[name].equal(value), name


def test_maps_tables_and_picture(fitted):
    out, result = fitted
    told = run(out, "--centers", 3, "--steps", 4, "--at", "0.5,-1", "--at", "0,0")
    assert told.exit_code == 0 and "occupancy" in told.stdout
    folder = out / "latent"
    names = sorted(path.name for path in folder.glob("*.mrc"))
    assert names == [
        *(f"at_0{n}.mrc" for n in (1, 2)),
        *(f"center_0{n}.mrc" for n in (1, 2, 3)),
        *(f"path_0{n}.mrc" for n in (1, 2, 3, 4)),
    ]
    half = result.fitted
    place = torch.tensor([0.5, -1.0])
    with torch.no_grad():
        wanted = half.model.volume.density(half.guide.volume.coefficients, place)
    torch.testing.assert_close(read_map(folder / "at_01.mrc")[0], wanted)
    rows = list(csv.DictReader((folder / "latent.csv").read_text().splitlines()))
    assert len(rows) == COUNT and float(rows[3]["z2"]) == pytest.approx(
        float(result.states.mean[3, 1]), rel=1e-4
    )
    place = principal_curve(result.states.mean.double()).place
    assert [float(row["curve"]) for row in rows] == pytest.approx(place.tolist(), rel=1e-4)
    weight = torch.zeros(3)
    for n in (1, 2, 3):
        table = read_particles(folder / f"center_0{n}.star")
        shares = torch.from_numpy(table.columns.numbers("cryoprobRegionShare"))
        assert (shares >= 0.01).all()
        weight[n - 1] = shares.sum()
    # shares of an image add up to 1, but for those below 1 % that are left out
    assert COUNT * 0.98 <= float(weight.sum()) <= COUNT + 1e-4
    assert (folder / "latent.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--at", "1"], "2 numbers with commas between, got 1 number."),
        (["--at", "a,b"], "2 numbers"),
        (["--axis", "3"], "1 to 2"),
    ],
)
def test_impossible_places(fitted, words, told):
    result = run(fitted[0], *words)
    assert result.exit_code == 2 and told in " ".join(result.stderr.split())


@pytest.mark.parametrize("place", ["nan,0", "inf,0"])
def test_a_place_that_is_nowhere(fitted, place):
    result = run(fitted[0], "--at", place)
    assert result.exit_code == 2 and "finite numbers" in result.stderr


def test_particles_of_a_region_have_the_share_asked_for(fitted):
    out, _ = fitted
    rows = {}
    for least in (0.01, 0.5):
        told = run(out, "--centers", 2, "--steps", 2, "--share", least)
        assert told.exit_code == 0 and f"share {least:g} or more" in told.stdout
        files = sorted((out / "latent").glob("center_*.star"))
        tables = [read_particles(path) for path in files]
        shares = [table.columns.numbers("cryoprobRegionShare") for table in tables]
        assert all((one >= least).all() for one in shares)
        rows[least] = sum(len(one) for one in shares)
        assert all(f"{len(one)}" in told.stdout for one in shares)
    assert COUNT <= rows[0.5] < rows[0.01]  # half and half are in both


def test_a_folder_without_coordinates(tmp_path):
    result = run(tmp_path)
    assert result.exit_code == 2 and "no posterior.nc" in result.stderr


def test_what_the_law_of_z_costs(fitted):
    out, _ = fitted
    told = run(out, "--centers", 2, "--steps", 2, "--price", 9)
    assert told.exit_code == 0 and "9 images, poses known" in told.stdout
    values = {}
    for name in ("Log evidence", "ELBO", "Price of q of z"):
        row = next(line for line in told.stdout.splitlines() if name in line)
        values[name] = float(row.split("+-")[0].replace("│", " ").split()[-1])
    assert "Price of one pose" not in told.stdout  # known ones cost nothing
    rest = values["ELBO"] + values["Price of q of z"]
    assert values["Log evidence"] == pytest.approx(rest, abs=0.02)  # two decimals each


def test_the_grid_of_the_price_can_be_chosen(fitted, monkeypatch):
    seen = {}

    def budget(half, stack, index, plan, **options):
        seen.update(options, coarse=plan.coarse_order)
        raise InputError("enough", expected="", got="")

    monkeypatch.setattr(app_latent, "conformation_budget", budget)
    assert run(fitted[0], "--centers", 2, "--steps", 2, "--price", 3).exit_code == 2
    assert (seen["order"], seen["coarse"]) == (3, 2)  # as 7 shells ask
    run(fitted[0], "--centers", 2, "--steps", 2, "--price", 3, "--order", 1)
    assert (seen["order"], seen["coarse"]) == (1, 1)


def test_files_of_an_earlier_call_are_gone(fitted):
    out, _ = fitted
    for count in (4, 2):
        assert run(out, "--centers", count, "--steps", count, "--at", "0,0").exit_code == 0
        assert len(list((out / "latent").glob("center_*.mrc"))) == count
        assert len(list((out / "latent").glob("path_*.mrc"))) == count


def test_a_conformation_that_says_nothing_is_told():
    near = torch.tensor([[0.1, -0.2], [-0.1, 0.2]])
    far = torch.tensor([[0.1, -2.0], [-0.1, 2.0]])
    prior, narrow, diracs = (torch.full((2, 2), width) for width in (1.0, 0.2, 0.0))
    assert "almost nothing" in collapse(near, prior)
    assert "almost nothing" in collapse(near[:1].expand(2, 2), narrow)  # narrow, but all alike
    assert collapse(near, narrow) == collapse(far, prior) == collapse(near, diracs) == ""
    assert "almost nothing" in collapse(near[:1].expand(2, 2), diracs)
    torch.testing.assert_close(told(far, prior), torch.tensor([0.01 / 1.01, 4 / 5]))


def pictured(monkeypatch, *what):
    """The one panel of a picture, before it is written."""
    figures = []
    monkeypatch.setattr(latent_plot, "save", lambda figure, path: figures.append(figure))
    plot_latent("unused.png", *what)
    return figures[0].axes[0]


def test_the_picture_is_as_wide_and_high_as_the_cloud(monkeypatch):
    generator = torch.Generator().manual_seed(3)
    cloud = torch.randn(500, 2, generator=generator).double() * torch.tensor([3.0, 0.3])
    axes = principal_axes(cloud)
    along = axes.project(cloud)
    names = axis_names(axes.share)
    ax = pictured(monkeypatch, along, along[:3], along[:5], names)
    assert ax.get_aspect() == 1 and not ax.get_title()
    assert ax.get_xlabel() == "principal axis 1 (99%)"  # 9 parts of 9.09
    assert ax.get_ylabel() == "principal axis 2 (1%)"
    assert axis_names(principal_axes(torch.ones(4, 2)).share)[0] == "principal axis 1 (0%)"


@pytest.mark.parametrize("size", [1, 2])
def test_the_picture_says_where_it_means_nothing(monkeypatch, size):
    """A posterior as wide as the prior, whose means still look like a cloud."""
    generator = torch.Generator().manual_seed(3)
    cloud = 0.05 * torch.randn(500, size, generator=generator).double()
    doubt = collapse(cloud, torch.full_like(cloud, 0.999))
    names = axis_names(principal_axes(cloud).share)
    ax = pictured(monkeypatch, cloud, cloud[:3], cloud[:5], names, doubt)
    assert "mean nothing" in " ".join(ax.get_title().split())


def test_a_file_cut_short_and_a_seed_below_zero_are_told_in_words(fitted, tmp_path):
    out, _ = fitted
    broken = tmp_path / "broken"
    shutil.copytree(out, broken)
    whole = (out / "posterior.nc").read_bytes()
    (broken / "posterior.nc").write_bytes(whole[: len(whole) // 2])
    found = run(broken)
    told = " ".join(found.stderr.split())
    assert found.exit_code == 2 and "posterior.nc: expected what a finished fit" in told
    assert "a damaged file" in told
    with pytest.raises(InputError, match="a damaged file"):
        fitted_columns(broken)
    found = run(out, "--seed", -1)
    assert found.exit_code == 2 and "--seed" in found.stderr


def test_centers_are_no_more_than_the_particles(fitted, tmp_path, monkeypatch):
    out, _ = fitted
    found = run(out, "--centers", COUNT + 1)
    told = " ".join(found.stderr.split())
    assert found.exit_code == 2 and f"--centers: expected at most {COUNT}, the particles" in told
    few = Latent.read(out)
    few = Latent(few.mean[:4], few.std[:4])
    monkeypatch.setattr(Latent, "read", classmethod(lambda *_: few))
    assert run(out, "--steps", 2).exit_code == 0
    assert len(list((out / "latent").glob("center_*.mrc"))) == 4
