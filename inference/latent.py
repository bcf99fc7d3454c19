"""Reading a latent space: centers of clusters, paths, and who lies where."""

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from cryoprob.checks import require
from cryoprob.metrics.principal_axes import principal_axes

__all__ = ["centers", "collapse", "line", "nearest", "region_shares", "told"]

_DRAWS = 256
_SOME, _MOVES = 400, 10

_COLLAPSED = 0.05
"""Share of a coordinate's variance below which images tell next to nothing of it."""


def line(values: Tensor, count: int, axis: int = 0) -> Tensor:
    """Points [count, size] along a principal axis, about even quantiles of values from 5 to 95 %.

    Each is the mean of values that are among the tenth about its quantile *and* close together,
    so that a path stays among the particles, also where these leave the middle empty: of a bend,
    the second axis goes along one arm. Of all such paths it is the one with the least sum of
    squared steps and of squared radii of the crowds it goes through.
    """
    order = principal_axes(values).project(values)[:, axis].argsort()
    close, crowds = max(1, len(values) // 10), []
    for level in torch.linspace(0.05, 0.95, count).tolist():
        first = round(level * len(values) - close / 2)
        first = min(max(first, 0), len(values) - close)
        crowds.append(_crowds(values[order[first : first + close][:: -(-close // _SOME)]]))
    return _chain(crowds)


def _crowds(part: Tensor) -> tuple[Tensor, Tensor]:
    """Means of crowds, a quarter of the rows [n, size] each, and their squared radii [n].

    Each is found from one row on, as the mean of the rows that are nearest to it.
    """
    middle, few = part, max(1, len(part) // 4)
    for _ in range(_MOVES):
        near = torch.cdist(middle, part).topk(few, largest=False)
        middle = part[near.indices].mean(1)
    return middle, near.values[:, -1].square()


def _chain(crowds: list[tuple[Tensor, Tensor]]) -> Tensor:
    """One mean of each [M, size]: the least sum of squared steps and radii (Viterbi)."""
    (last, cost), before = crowds[0], []
    for middle, radius in crowds[1:]:
        best = (cost[:, None] + torch.cdist(last, middle).square()).min(0)
        last, cost = middle, best.values + radius
        before.append(best.indices)
    rows = [int(cost.argmin())]
    for step in reversed(before):
        rows.append(int(step[rows[-1]]))
    return torch.stack([one[row] for (one, _), row in zip(crowds, reversed(rows), strict=True)])


def centers(values: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """k-means: centers [count, size], and which one each value [N] is nearest to.

    Centers are moved onto the nearest value, so that each is a conformation that was seen, and
    sorted along the first principal axis. (:func:`scipy.cluster.vq.kmeans2`.)

    Raises
    ------
    InputError
        If there are fewer values than centers.
    """
    got = f"{count} of {len(values)}"
    require(0 < count <= len(values), "centers", expected="1 to all of the values", got=got)
    rng = np.random.default_rng(seed)
    found, _ = kmeans2(values.double().cpu().numpy(), count, minit="++", seed=rng)
    seen = values[nearest(values, torch.from_numpy(found).to(values))]
    order = principal_axes(values).project(seen)[:, 0].argsort()
    seen = seen[order]
    return seen, torch.cdist(values, seen).argmin(1)


def nearest(values: Tensor, points: Tensor) -> Tensor:
    """Indices [M] of the values [N, size] that lie nearest to points [M, size]."""
    return torch.cdist(points, values).argmin(1)


def region_shares(mean: Tensor, std: Tensor, points: Tensor, seed: int) -> Tensor:
    """Posterior mass of each image in the region nearer to a point than to the others, [N, M].

    Parameters
    ----------
    mean, std
        Normal posteriors of N images, [N, size] each.
    points
        [M, size].
    seed
        Of the 256 draws by which masses are counted.
    """
    generator = torch.Generator().manual_seed(seed)
    found = mean.new_zeros(len(mean), len(points))
    rows = torch.arange(len(mean))
    for _ in range(_DRAWS):
        white = torch.randn(mean.shape, generator=generator, dtype=torch.float64).to(mean)
        found[rows, torch.cdist(mean + std * white, points).argmin(1)] += 1 / _DRAWS
    return found


def told(mean: Tensor, std: Tensor) -> Tensor:
    """Share of each coordinate's variance that is between images, not within their q, [size].

    ``Var(mean) / (Var(mean) + E(std^2))`` of normal posteriors [N, size]; 0 where q is the same
    for all images, such as the prior, and 1 for Diracs (``std`` zero) at different places.
    """
    between = mean.var(0, correction=0)
    whole = between + std.square().mean(0)
    return torch.where(whole > 0, between / whole, 0.0)


def collapse(mean: Tensor, std: Tensor) -> str:
    """A sentence where normal posteriors [N, size] hardly differ between images; else nothing."""
    if std.numel() == 0 or float(told(mean, std).max()) > _COLLAPSED:
        return ""
    return (
        "The images say almost nothing of the conformation (its q is nearly the same for all of"
        " them): clusters and paths of it mean nothing."
    )
