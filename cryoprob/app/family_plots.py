"""The figure of ``compare``: bounds by step, and each family's q of a few poses."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cryoprob.app.plots import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    draw_globe,
    draw_picture,
    save,
    value_range,
)
from cryoprob.app.posteriors import Directions
from cryoprob.types import Images, PathType

__all__ = ["plot_families"]

_COLORS = (BLUE, ORANGE, GREEN, GREY, "#CC79A7", "#E69F00", "#56B4E9")


def plot_families(
    path: PathType,
    histories: Mapping[str, Sequence[dict[str, Any]]],
    views: Mapping[str, Directions],
    images: Images,
) -> Path:
    """Bounds of each family against its steps; below, images and each q on the sphere.

    After Donnat et al. 2022, fig. 3 and 4.

    Parameters
    ----------
    histories
        Records of each family's fit.
    views
        Masses of viewing directions of the n images shown.
    images
        [n, D, D].
    """
    count, families = len(images), len(views)
    with matplotlib.rc_context({"font.size": 9, "axes.spines.top": False}):
        figure = Figure(figsize=(1.9 * (families + 1), 2.8 + 1.25 * count), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[2.6, 1.25 * count])
        top, below = parts
        _bounds(top.subplots(), histories)
        grid = below.add_gridspec(count, families + 1)
        for row in range(count):
            ax = below.add_subplot(grid[row, 0])
            draw_picture(ax, images[row], value_range(images))
            if row == 0:
                ax.set_title("image", fontsize=9)
            for column, (name, view) in enumerate(views.items(), 1):
                ax = below.add_subplot(grid[row, column], projection="mollweide")
                draw_globe(ax, view.directions, view.mass[row])
                if row == 0:
                    ax.set_title(name, fontsize=9)
        below.suptitle("Where each image is seen from, as each family has it", fontsize=9)
        return save(figure, path)


def _bounds(ax: Axes, histories: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    for (name, history), color in zip(histories.items(), _COLORS, strict=False):
        steps = [r for r in history if "start" not in r]
        kind = steps[-1]["kind"].split(",")[0].replace("_", " ")
        x, y = [r["iteration"] for r in steps], [r["bound"] for r in steps]
        ax.plot(x, y, marker="o", ms=3, lw=1.5, color=color, label=f"{name} ({kind})")
    ax.set(xlabel="step", ylabel="nats per image")
    ax.set_title("Each family's own objective, at its own volume and noise", fontsize=9)
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
