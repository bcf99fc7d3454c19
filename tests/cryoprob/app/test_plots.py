"""Figures: that they are written, and that they show what they should."""

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.image import imread

from cryoprob.app import plots
from cryoprob.app.plots import plot_directions, plot_evidence, plot_fsc, plot_maps
from cryoprob.app.posteriors import Directions
from cryoprob.geometry.grids import RotationGrid
from cryoprob.phantoms import blobs


def drawn(monkeypatch):
    """The figures that are saved from now on."""
    figures, save = [], plots.save

    def keep(figure, path):
        figures.append(figure)
        return save(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    return figures


def test_maps_show_projections_in_place(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    generator = torch.Generator().manual_seed(1)
    truth, found = blobs(16, 4.0, generator), blobs(16, 4.0, generator)
    path = plot_maps(tmp_path / "maps.png", truth, found, 4.0)
    assert imread(path).std() > 0.05  # neither black nor white
    shown = [ax.get_images()[0].get_array() for ax in figures[0].axes]
    expected = [v for m in (truth, found) for v in (m.sum(0), m.sum(1), m.sum(2), m[8])]
    assert all(np.allclose(a, b) for a, b in zip(shown, expected, strict=True))
    limits = [ax.get_images()[0].get_clim() for ax in figures[0].axes]
    assert limits[:4] == limits[4:]  # the same gray means the same density


def test_fsc_curves_and_their_ticks(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    curve = torch.linspace(1, -0.1, 17).double()
    plot_fsc(tmp_path / "fsc.png", {"whole": curve, "masked": curve / 2}, 3.0)
    (ax,) = figures[0].axes
    lines = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    assert np.allclose(lines["masked"], curve / 2)
    ticks = dict(zip(ax.get_xticks(), (t.get_text() for t in ax.get_xticklabels()), strict=True))
    assert ticks[16] == "6" and ticks[8] == "12"  # D * pixel size / shell = 96 A / shell


def test_evidence_of_starts_and_refinement(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    steps = [{"start": s, "iteration": i, "bound": -9.0 * i} for s in (1, 2) for i in (1, 2)]
    refine = [{"iteration": i, "bound": -float(i), "order": 1 + i} for i in (1, 2, 3)]
    plot_evidence(tmp_path / "evidence.png", steps + refine)
    plot_evidence(tmp_path / "alone.png", refine)
    assert [len(figure.axes) for figure in figures] == [2, 1]
    assert list(figures[0].axes[1].get_lines()[0].get_ydata()) == [-1, -2, -3]
    assert [t.get_text() for t in figures[0].axes[1].texts] == [" grid 7.5 deg", " grid 3.75 deg"]


def test_directions_on_the_globe(tmp_path, monkeypatch):
    figures = drawn(monkeypatch)
    directions = RotationGrid(1).directions()
    mass = torch.full((2, len(directions)), 1e-6)
    mass[0, 7], mass[1, 20:22] = 1, 0.5
    views = Directions(directions, mass / mass.sum(1, keepdim=True))
    assert np.allclose(views.effective.numpy(), [1, 2], rtol=0.01)
    images = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    plot_directions(tmp_path / "views.png", images, images / 2, views, directions[[7, 20]])
    globes = [ax for ax in figures[0].axes if ax.name == "mollweide"]
    brightest = globes[0].collections[0].get_offsets()[-1]  # drawn last
    ring = globes[0].collections[1].get_offsets()[0]
    assert np.allclose(brightest, ring)
    x, y, z = directions[7].tolist()
    assert np.allclose(ring, [np.arctan2(y, x), np.arcsin(z)])


def test_a_figure_is_the_same_bytes_twice(tmp_path):
    for name in ("a.png", "b.png"):
        figure = Figure()
        figure.subplots().plot([1, 2])
        plots.save(figure, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
