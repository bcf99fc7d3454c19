"""The picture of a latent space: where the particles lie, centers and a path."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from cryoprob.app.plots import BLUE, GREY, ORANGE, save
from cryoprob.types import PathType

__all__ = ["axis_names", "plot_latent"]

_LETTERS = 68
"""In a line of the title."""

_CELLS = 50
"""Cells of the density along the longer side of the cloud."""


def axis_names(share: Tensor) -> list[str]:
    """Names of principal axes that tell their shares [size] of the whole variance."""
    return [f"principal axis {k} ({part:.0%})" for k, part in enumerate(share.tolist(), 1)]


def plot_latent(
    path: PathType,
    points: Tensor,
    centers: Tensor,
    line: Tensor,
    names: Sequence[str],
    doubt: str = "",
) -> Path:
    """Density of the particles [N, 1 or more] in the first two coordinates, and places in it.

    Both coordinates have one scale, so that the picture is as wide and as high as the cloud.

    Parameters
    ----------
    centers, line
        Coordinates of numbered places, [K, 1 or more], and of a path.
    names
        Of the coordinates.
    doubt
        Why none of it means anything; then it is the title, and the cloud is gray.
    """
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    ax = figure.subplots()
    if doubt:
        ax.set_title(fill(doubt, _LETTERS), color=ORANGE, fontsize=9)
    if points.shape[1] == 1:
        _along(ax, points[:, 0], centers[:, 0], GREY if doubt else BLUE)
        ax.set(xlabel=names[0], ylabel="particles")
        return save(figure, path)
    x, y = (points[:, k].numpy() for k in (0, 1))
    shades = "Greys" if doubt else "Blues"
    cells = ax.hexbin(x, y, gridsize=_cells(points), mincnt=1, cmap=shades, linewidths=0.1)
    most = float(np.asarray(cells.get_array()).max())
    darkest = 1.8 if doubt else 1.0  # centers are black
    cells.set_clim(-0.2 * most, darkest * most)  # a single particle is seen, too
    ax.plot(line[:, 0], line[:, 1], color=ORANGE, linewidth=1.5, label="path")
    ax.scatter(centers[:, 0], centers[:, 1], s=14, color="black", zorder=3, label="centers")
    for number, place in enumerate(centers[:, :2].tolist(), 1):
        ax.annotate(str(number), place, textcoords="offset points", xytext=(3, 3), fontsize=8)
    ax.set(xlabel=names[0], ylabel=names[1])
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend(frameon=False, fontsize=8)
    return save(figure, path)


def _along(ax: Axes, places: Tensor, centers: Tensor, color: str) -> None:
    """A histogram of one coordinate [N], with the centers [K] in it."""
    ax.hist(places.numpy(), bins=60, color=color, alpha=0.6)
    for number, place in enumerate(centers.tolist(), 1):
        ax.axvline(place, color=ORANGE, linewidth=1)
        ax.annotate(str(number), (place, 0), textcoords="offset points", xytext=(2, 4))


def _cells(points: Tensor) -> tuple[int, int]:
    """Hexagons along x and y that are regular where both have one scale."""
    wide, high = (float(points[:, k].max() - points[:, k].min()) for k in (0, 1))
    size = max(wide, high) / _CELLS
    if not size:
        return _CELLS, _CELLS
    return max(1, round(wide / size)), max(1, round(high / size / 3**0.5))
