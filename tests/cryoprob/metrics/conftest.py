"""Molecules of Gaussian beads: they can be moved exactly, by moving their centers."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor


@pytest.fixture(scope="session")
def beads() -> Tensor:
    """Centers [40, 3] (x, y, z) of a crooked walk, in sides of the box."""
    random = np.random.default_rng(7)
    at, path = np.zeros(3), []
    while len(path) < 40:
        step = random.standard_normal(3)
        there = at + 0.1 * step / np.linalg.norm(step)
        if np.linalg.norm(there) < 0.28:
            at = there
            path.append(at)
    points = np.array(path)
    return torch.from_numpy(points - points.mean(0))


@pytest.fixture(scope="session")
def draw() -> Callable[..., Tensor]:
    """Map [D, D, D] (float64) of beads at ``points`` [n, 3] in sides of the box, sd in voxels."""

    def _draw(points: Tensor, box: int, sd: float = 1.3) -> Tensor:
        axis = torch.arange(box).double() - box // 2
        x, y, z = (torch.exp(-0.5 * ((axis - p[:, None] * box) / sd) ** 2) for p in points.T)
        return torch.einsum("nz,ny,nx->zyx", z, y, x)

    return _draw
