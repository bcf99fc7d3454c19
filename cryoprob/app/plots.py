"""Figures as PNG files: maps, FSC curves, the way of the evidence, images and their posteriors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from cryoprob.app.posteriors import Directions
from cryoprob.io.files import replacing
from cryoprob.types import Maps, PathType

__all__ = [
    "draw_globe",
    "draw_picture",
    "plot_directions",
    "plot_evidence",
    "plot_fsc",
    "plot_maps",
    "value_range",
    "save",
]

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"
"""Of the palette of Okabe and Ito, which is safe for the color-blind."""

_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "legend.frameon": False,
    "savefig.dpi": 150,
}


def save(figure: Figure, path: PathType) -> Path:
    """Write a figure as PNG, whole or not at all."""
    FigureCanvasAgg(figure)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    return Path(path)


def plot_maps(path: PathType, truth: Maps, found: Maps, pixel_size: float) -> Path:
    """Projections along three axes and the central slice, of the true map and of the aligned."""
    figure = Figure(figsize=(7.4, 4.1), layout="constrained")
    rows = figure.subplots(2, 4)
    names = ["projection along z", "projection along y", "projection along x", "central slice"]
    for axes, volume, label in zip(rows, (truth, found), ("truth", "found"), strict=True):
        axes[0].set_ylabel(label, fontsize=11)
        for ax, image, true in zip(axes, _views(volume), _views(truth), strict=True):
            draw_picture(ax, image, (float(true.min()), float(true.max())))
    for ax, name in zip(rows[0], names, strict=True):
        ax.set_title(name, fontsize=9)
    side = truth.shape[-1] * pixel_size
    figure.suptitle(f"The true map and the one that was found (boxes of {side:.0f} A)")
    return save(figure, path)


def plot_fsc(path: PathType, curves: dict[str, Tensor], pixel_size: float) -> Path:
    """FSC curves [D // 2 + 1] against resolution."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.4, 3.6), layout="constrained")
        ax = figure.subplots()
        for (name, curve), color in zip(curves.items(), (BLUE, ORANGE, GREEN), strict=False):
            ax.plot(np.arange(len(curve)), curve, color=color, label=name, lw=1.8)
        box = 2 * (len(next(iter(curves.values()))) - 1)
        for level in (0.5, 0.143):
            ax.axhline(level, color=GREY, lw=0.8, ls="--")
            ax.text(0.1, level + 0.015, f"{level:g}", color=GREY, fontsize=8)
        ticks = np.unique(np.linspace(0, box // 2, 9).round().astype(int))[1:]
        ax.set_xticks(ticks, [f"{box * pixel_size / s:.3g}" for s in ticks])
        ax.set(xlabel="resolution, A", ylabel="FSC with the truth", xlim=(0, box // 2))
        ax.set_ylim(min(-0.05, *(float(c.min()) for c in curves.values())), 1.03)
        ax.legend(loc="lower left", bbox_to_anchor=(0.02, 0.2))
        return save(figure, path)


def plot_evidence(path: PathType, history: Sequence[dict[str, Any]]) -> Path:
    """Log evidence per image at each step of the starts from nothing, and of the refinement."""
    starts = sorted({r["start"] for r in history if "start" in r})
    parts = [[r for r in history if r.get("start") == s] for s in starts]
    refine = [r for r in history if "start" not in r]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(7.4, 3.3), layout="constrained")
        axes = figure.subplots(1, 2 if starts else 1, squeeze=False)[0]
        for part, color in zip(parts, (BLUE, ORANGE, GREEN, GREY) * len(parts), strict=False):
            name = f"start {part[0]['start']}"
            axes[0].plot(_steps(part), _evidence(part), color=color, lw=1.2, label=name)
        if starts:
            axes[0].set(title="starts from nothing", ylabel="log evidence, nats per image")
            axes[0].legend(loc="lower right")
        _refinement(axes[-1], refine)
        for ax in axes:
            ax.set_xlabel("step")
            ax.ticklabel_format(axis="y", useOffset=False)
        return save(figure, path)


def plot_directions(
    path: PathType, images: Tensor, clean: Tensor, views: Directions, truth: Tensor | None
) -> Path:
    """Images, what the map predicts for them, and where they are seen from.

    Parameters
    ----------
    images, clean
        As recorded, and noiseless at the best pose, [n, D, D].
    views
        Posterior masses of the viewing directions.
    truth
        True directions, [n, 3], marked by a ring.
    """
    count = len(images)
    figure = Figure(figsize=(1.9 * count, 4.9), layout="constrained")
    grid = figure.add_gridspec(3, count, height_ratios=[1, 1, 0.7])
    for place in range(count):
        top, middle = (figure.add_subplot(grid[row, place]) for row in range(2))
        draw_picture(top, images[place], value_range(images))
        draw_picture(middle, clean[place], value_range(clean))
        top.set_title(f"{views.effective[place]:.1f} directions", fontsize=9)
        globe = figure.add_subplot(grid[2, place], projection="mollweide")
        draw_globe(globe, views.directions, views.mass[place])
        if truth is not None:
            _mark(globe, truth[place])
        for ax, label in ((top, "image"), (middle, "prediction"), (globe, "posterior")):
            ax.set_ylabel(label if place == 0 else "", fontsize=10)
    ring = "" if truth is None else " (ring: the truth)"
    figure.suptitle(f"Where {count} images are seen from{ring}")
    return save(figure, path)


def _views(volume: Maps) -> list[Tensor]:
    """Sums along z, y and x, and the slice at z = 0."""
    return [volume.sum(0), volume.sum(1), volume.sum(2), volume[volume.shape[0] // 2]]


def draw_picture(ax: Axes, image: Tensor, limits: tuple[float, float]) -> None:
    """An image in gray, between two values."""
    low, high = limits
    ax.imshow(image.numpy(), cmap="gray", origin="lower", vmin=low, vmax=high)
    ax.set_xticks([])
    ax.set_yticks([])


def value_range(images: Tensor) -> tuple[float, float]:
    """Darkest and brightest value to show, outliers left out."""
    low, high = torch.quantile(images.flatten().double(), torch.tensor([0.01, 0.995]).double())
    return float(low), float(high)


def _steps(part: Sequence[dict[str, Any]]) -> list[int]:
    return [r["iteration"] for r in part]


def _evidence(part: Sequence[dict[str, Any]]) -> list[float]:
    return [r["bound"] for r in part]


def _refinement(ax: Axes, part: Sequence[dict[str, Any]]) -> None:
    """The curve, with a mark where the grid became finer."""
    ax.plot(_steps(part), _evidence(part), color=BLUE, marker="o", ms=3, lw=1.5)
    ax.set_title("refinement")
    for before, after in zip(part, part[1:], strict=False):
        if "order" in after and after["order"] > before["order"]:
            ax.axvline(after["iteration"] - 0.5, color=GREY, lw=0.8, ls="--")
            words = f" grid {60 / 2 ** after['order']:.3g} deg"
            where = (after["iteration"] - 0.5, 0.05)
            ax.text(*where, words, color=GREY, fontsize=8, transform=ax.get_xaxis_transform())


def draw_globe(ax: Axes, directions: Tensor, mass: Tensor) -> None:
    """Masses of directions on the sphere, in the projection of Mollweide."""
    shade = (mass / mass.max()).clamp(min=1e-9).sqrt()
    order = shade.argsort()
    size = 9000 / len(directions)
    x, y = _angles(directions[order])
    ax.scatter(x, y, c=shade[order], s=size, cmap="Blues", vmin=0, vmax=1, linewidths=0)
    ax.set_xticks([])
    ax.set_yticks([])


def _mark(ax: Axes, direction: Tensor) -> None:
    x, y = _angles(direction[None])
    ax.scatter(x, y, s=70, facecolors="none", edgecolors=ORANGE, linewidths=1.3)


def _angles(directions: Tensor) -> tuple[Tensor, Tensor]:
    """Longitude and latitude, radians."""
    x, y, z = directions.double().unbind(-1)
    return torch.atan2(y, x), torch.asin(z.clamp(-1, 1))
