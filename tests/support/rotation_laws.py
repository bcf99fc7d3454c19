"""Laws of a rotation judged on the grid: their mass, and whether draws follow the density."""

from functools import cache

import torch
from scipy import stats

from cryoprob.geometry.grids import RotationGrid

FINE, COARSE = 3, 0


@cache
def points():
    """Centers of 36864 equal cells, in order of the 72 coarse ones that hold them."""
    return RotationGrid(FINE).matrices(dtype=torch.float64)


@cache
def homes():
    """The coarse cell of each point."""
    cell = torch.arange(len(RotationGrid(FINE)))
    for order in range(FINE, COARSE, -1):
        cell = RotationGrid(order).parent(cell)
    return cell


def density(law):
    """Density at all points, [points] (float64)."""
    return law.log_prob(points().to(law.sample())).exp().double()


def mass(law):
    """Integral of the density by the midpoint rule."""
    return float(density(law).mean())


def fit(law, count=4000, seed=3):
    """Chance that draws of the law's own density fill the coarse cells as unevenly as these."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = law.sample((count,))
    seen = torch.bincount(RotationGrid(COARSE).cell(drawn), minlength=72).double()
    share = torch.zeros(72, dtype=torch.float64).index_add_(0, homes(), density(law))
    expected = count * share / share.sum()
    few = expected < 10
    pooled = [torch.cat([v[~few], v[few].sum()[None]]) for v in (seen, expected)]
    if pooled[1][-1] < 1:  # nothing is expected there
        assert pooled[0][-1] < 8
        pooled = [v[:-1] * count / v[:-1].sum() for v in pooled]
    return float(stats.chisquare(*(v.numpy() for v in pooled)).pvalue)
