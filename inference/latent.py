"""Reading a latent space: centers of clusters, paths, and who lies where."""

import numpy as np
import torch
from scipy.cluster.vq import kmeans2
from torch import Tensor

from cryoprob.checks import require
from cryoprob.metrics.principal_axes import principal_axes

__all__ = ["centers", "collapse", "line", "nearest", "region_shares"]

_DRAWS = 256

_COLLAPSED = 0.05
"""Share of a coordinate's prior variance below which an image tells next to nothing of it."""


def line(values: Tensor, count: int, axis: int = 0) -> Tensor:
    """Points [count, size] along a principal axis, from the 5 % to the 95 % quantile of values.

    On the other axes they are at the mean of the tenth of the values nearest along this one, so
    that a path stays among the particles.
    """
    axes = principal_axes(values)
    own = axes.project(values)
    along = own[:, axis]
    low, high = torch.quantile(along, torch.tensor([0.05, 0.95]).to(along))
    found = []
    for place in torch.linspace(float(low), float(high), count):
        near = (along - place).abs().topk(max(1, len(along) // 10), largest=False).indices
        point = own[near].mean(0)
        point[axis] = place
        found.append(point)
    return axes.at(torch.stack(found))


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


def collapse(std: Tensor, prior_width: Tensor) -> str:
    """A sentence where normal posteriors are hardly narrower than the prior; else nothing.

    Parameters
    ----------
    std
        Posterior standard deviations of N images, [N, size]; zeros where q is a Dirac.
    prior_width
        The prior's, [size].
    """
    told = 1 - (std / prior_width.to(std)).square().mean(0)
    if std.numel() == 0 or float(told.max()) > _COLLAPSED:
        return ""
    return (
        "The images say almost nothing of the conformation (q of it is as wide as its prior):"
        " clusters and paths of it mean nothing."
    )
