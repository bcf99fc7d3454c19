"""A curve through the middle of a cloud of points, and where along it each point lies."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.polynomial import legendre
from scipy.spatial import cKDTree
from torch import Tensor

from cryoprob.checks import require
from cryoprob.metrics.principal_axes import principal_axes

__all__ = ["PrincipalCurve", "principal_curve"]

_Array: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]

_DEGREE, _AXES, _NODES, _PASSES, _AROUND = 2, 3, 201, 20, 6
_BEYOND = 0.25
"""How far the curve goes on straight beyond either end, in lengths of its own."""
_WORTH = 0.6
"""A curve replaces the straight axis if it leaves less than this share of its residual.

Straight clouds, normal or uniform along their axis, leave more unless they are over 0.7 times as
wide as they are long; paths that bend by a quarter of a circle leave 0.55, and others far less.
"""


@dataclass(frozen=True, eq=False)
class PrincipalCurve:
    """Where points lie along a curve through them.

    Attributes
    ----------
    leading
        First principal coordinate of each point, [N].
    place
        Length along the curve from the first foot of a point to that of each, [N], in units of
        the points; the curve's direction is that of ``leading`` as far as it has one.
    residual
        Mean squared distance from the curve over the variance of the points, both in the first
        three principal coordinates.
    bent
        Whether the curve is more than the first principal axis.
    """

    leading: Tensor
    place: Tensor
    residual: float
    bent: bool


def principal_curve(values: Tensor) -> PrincipalCurve:
    """A smooth curve, bent once at most, through the middle of points [N, size].

    Each place of the curve is the mean of the points whose foot it is, smoothed by a polynomial of
    degree 2 in the length along the curve: the iterations of Hastie and Stuetzle (1989), in the
    first three principal coordinates. They start from the order along several directions, for the
    ends of a path that bends far enough lie side by side along the first axis, and the curve that
    leaves least is taken; but the first axis itself stays unless that leaves less than 0.6 of its
    residual. Higher degrees wind through noise. Scale, shift and rotation of the points do not
    matter.

    Raises
    ------
    InputError
        If there are fewer than two points, or some are not finite.
    """
    got = f"shape {list(values.shape)}"
    fits = values.dim() == 2 and len(values) > 1 and values.shape[1] > 0
    require(fits, "coordinates", expected="[N, size], N of 2 or more", got=got)
    finite = bool(torch.isfinite(values).all())
    require(finite, "coordinates", expected="finite numbers", got="NaN or infinity")
    cloud = values.detach().cpu().double()
    points = principal_axes(cloud).project(cloud)[:, :_AXES].numpy()
    leading, whole = points[:, 0], float(points.var(0).sum())
    place, best, bent = leading, float(points[:, 1:].var(0).sum()), False
    if best > 0:
        found, residual = min(_curves(points), key=lambda one: one[1])
        if residual < _WORTH * best:
            place, best, bent = found, residual, True
    if float(np.dot(place - place.mean(), leading)) < 0:
        place = -place
    first, along = torch.from_numpy(leading.copy()), torch.from_numpy(place - place.min())
    share, device = best / whole if whole > 0 else 0.0, values.device
    return PrincipalCurve(first.to(device), along.to(device), share, bent)


def _curves(points: _Array) -> Iterator[tuple[_Array, float]]:
    """Places and mean squared distance of the curves from the order along several directions."""
    for direction in _directions(points.shape[1]):
        place, residual = points @ direction, np.inf
        if np.ptp(place) <= 1e-9 * np.ptp(points[:, 0]):
            continue
        for _ in range(_PASSES):
            moved, square = _project(points, _smooth(points, place))
            if square > residual * (1 - 1e-3) or np.ptp(moved) == 0:
                break
            place, residual = moved, square
        yield place, residual


def _directions(size: int) -> list[_Array]:
    """The axes, and all around in the plane of the first two."""
    axes = np.eye(size)
    if size == 1:
        return [axes[0]]
    angles = np.arange(0, np.pi - 1e-9, np.pi / _AROUND)
    return [np.cos(a) * axes[0] + np.sin(a) * axes[1] for a in angles] + list(axes[2:])


def _smooth(points: _Array, place: _Array) -> _Array:
    """Nodes [M, d] of the polynomial in the place that is nearest to the points, and beyond."""
    low, high = float(place.min()), float(place.max())
    law = legendre.legvander((2 * place - low - high) / (high - low), _DEGREE)
    weights = np.linalg.lstsq(law, points, rcond=None)[0]
    nodes = legendre.legvander(np.linspace(-1, 1, _NODES), _DEGREE) @ weights
    step = np.diff(nodes, axis=0)
    size = np.linalg.norm(step, axis=1)
    reach = _BEYOND * size.sum() / np.maximum(size[[0, -1]], np.finfo(float).tiny)
    ends = nodes[0] - reach[0] * step[0], nodes[-1] + reach[1] * step[-1]
    found: _Array = np.concatenate([ends[0][None], nodes, ends[1][None]])
    return found


def _project(points: _Array, nodes: _Array) -> tuple[_Array, float]:
    """Length up to the foot of each point on a broken line, [N]; mean squared distance."""
    near, step = cKDTree(nodes).query(points)[1], np.diff(nodes, axis=0)
    square = np.maximum((step**2).sum(1), np.finfo(float).tiny)
    length = np.sqrt(square)
    before = np.concatenate([[0.0], np.cumsum(length)])
    found = []
    for segment in (near - 1, near):
        one = segment.clip(0, len(step) - 1)
        away = points - nodes[one]
        share = ((away * step[one]).sum(1) / square[one]).clip(0, 1)
        distance = ((away - share[:, None] * step[one]) ** 2).sum(1)
        found.append((distance, before[one] + share * length[one]))
    (first, one), (second, other) = found
    place: _Array = np.where(second < first, other, one)
    return place, float(np.minimum(first, second).mean())
