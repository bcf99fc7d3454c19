"""The picture of a latent space: where the particles lie, centers and a path."""

from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from cryoprob.app.plots import BLUE, ORANGE, save
from cryoprob.types import PathType

__all__ = ["plot_latent"]


def plot_latent(
    path: PathType, points: Tensor, centers: Tensor, line: Tensor, names: tuple[str, str]
) -> Path:
    """Density of the particles [N, 1 or more] in the first two coordinates, and places in it.

    Parameters
    ----------
    centers, line
        Coordinates of numbered places, [K, 1 or more], and of a path.
    names
        Of the two coordinates.
    """
    figure = Figure(figsize=(5.2, 4.4), layout="constrained")
    ax = figure.subplots()
    if points.shape[1] == 1:
        ax.hist(points[:, 0].numpy(), bins=60, color=BLUE, alpha=0.6)
        for number, place in enumerate(centers[:, 0].tolist(), 1):
            ax.axvline(place, color=ORANGE, linewidth=1)
            ax.annotate(str(number), (place, 0), textcoords="offset points", xytext=(2, 4))
        ax.set(xlabel=names[0], ylabel="particles")
        return save(figure, path)
    x, y = (points[:, k].numpy() for k in (0, 1))
    ax.hexbin(x, y, gridsize=50, mincnt=1, cmap="Blues", linewidths=0.1)
    ax.plot(line[:, 0], line[:, 1], color=ORANGE, linewidth=1.5, label="path")
    ax.scatter(centers[:, 0], centers[:, 1], s=14, color="black", zorder=3, label="centers")
    for number, place in enumerate(centers[:, :2].tolist(), 1):
        ax.annotate(str(number), place, textcoords="offset points", xytext=(3, 3), fontsize=8)
    ax.set(xlabel=names[0], ylabel=names[1])
    ax.legend(frameon=False, fontsize=8)
    return save(figure, path)
