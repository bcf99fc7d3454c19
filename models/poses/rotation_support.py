"""The support of a rotation for inference in unconstrained space: a chart from R^3 onto SO(3).

The chart is radial, ``x -> exp(hat(w))`` with ``w = theta(|x|) x / |x|`` and the angle ``theta``
in [0, pi) that has the same probability under Haar measure as ``|x|`` under N(0, I_3):

    (theta - sin theta) / pi = P(chi_3 <= |x|).

Haar measure is therefore exactly the standard normal law of ``x``. For NUTS, AutoNormal and the
like that is the best there is: uniform orientations are a round Gaussian, with no heavy tail (the
Cayley chart ``tan(theta / 2)`` makes them Cauchy), no double cover (``tan(theta / 4)``) and no
images to sum over (the exponential map). Onto all of SO(3) but the turns by 180 degrees, which
are no probability at all, the chart is smooth and one to one.

Angles are in radians, densities with respect to Haar measure of total mass 1.

Sources: the angle's law (1 - cos theta) / pi, Miles (1965), Biometrika 52, 636; the Jacobian of
the exponential map, Chirikjian (2012), Stochastic Models, Information Theory, and Lie Groups 2,
ch. 10.
"""

from math import log, pi, sqrt

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to
from torch.distributions.transforms import Transform

from cryoprob.checks import require
from cryoprob.geometry.rotations import matrix_to_quaternion, quaternion_to_matrix
from cryoprob.types import Rotations

__all__ = ["SCALE_AT_ORIGIN", "RotationChart", "rotation_matrix"]

_CUBE = 2 * sqrt(2 * pi)

SCALE_AT_ORIGIN = _CUBE ** (1 / 3)
"""Radians of rotation per unit of ``x`` at the chart's origin, 1.711 (98 degrees)."""

_TERMS = 13
"""Of each power series: past double precision on its interval."""

_ANGLE_STEPS, _RADIUS_STEPS = 1, 3
"""Newton steps without gradients, from the starts given below."""

_TAUGHT = 2
"""Newton steps with gradients after them, which make two derivatives exact."""


class _RotationMatrix(constraints.Constraint):
    """Matrices [*, 3, 3], orthogonal within 1e-3 and of positive determinant."""

    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        """Whether each matrix is a rotation, [*] (bool)."""
        if value.shape[-2:] != (3, 3):
            return torch.zeros(value.shape[:-2], dtype=torch.bool, device=value.device)
        defect = (value @ value.mT - torch.eye(3).to(value)).abs().amax((-2, -1))
        right: Tensor = (defect <= 1e-3) & (torch.linalg.det(value) > 0)
        return right


rotation_matrix = _RotationMatrix()
"""The constraint of SO(3), with event dimension 2; ``biject_to`` of it is RotationChart."""


class RotationChart(Transform):
    """From R^3 one to one onto the rotations by less than 180 degrees; Haar measure is N(0, I).

    Vectors [*, 3] (no unit) become matrices [*, 3, 3]. The chart is odd, ``chart(-x)`` is the
    inverse of ``chart(x)``, and keeps directions: ``chart(A x) = A chart(x) A^T`` for a rotation
    A. It is smooth; its first two derivatives by autograd are exact, also at 0. Turns by 180
    degrees, to rounding, are given a finite preimage, of length 8 (6 in single precision).

    Raises
    ------
    InputError
        If the last axes do not hold 3 coordinates, or a 3 x 3 matrix.

    Examples
    --------
    >>> x = torch.tensor([0.3, 0.0, 0.0], dtype=torch.float64)
    >>> rotation = biject_to(rotation_matrix)(x)
    >>> biject_to(rotation_matrix).inv(rotation)
    tensor([0.3000, 0.0000, 0.0000], dtype=torch.float64)
    """

    domain = constraints.real_vector
    codomain = rotation_matrix
    bijective = True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RotationChart)

    def _call(self, x: Tensor) -> Rotations:
        _check(x, (3,))
        squared = x.square().sum(-1, keepdim=True)
        ratio = _angle_over_radius(squared)
        quarter = squared * ratio.square() / 4
        vector = x * ratio / 2 * _entire(1, quarter)
        return quaternion_to_matrix(torch.cat([vector, _entire(0, quarter)], -1))

    def _inverse(self, y: Rotations) -> Tensor:
        _check(y, (3, 3))
        quaternion = matrix_to_quaternion(y)
        vector, cosine = quaternion[..., :3], quaternion[..., 3:]
        sine2 = vector.square().sum(-1, keepdim=True)
        near = sine2 < 0.5
        body = _vector_over_sine(torch.where(near, sine2, 0.25))
        tail_sine = torch.where(near, 1, sine2).sqrt()
        missing = 2 * torch.atan2(torch.where(near, 1, cosine), tail_sine)
        return vector * torch.where(near, body, _radius_of_tail(missing) / tail_sine)

    def log_abs_det_jacobian(self, x: Tensor, y: Rotations) -> Tensor:
        """Log of Haar measure per volume of ``x`` [*, 3]: the standard normal density, [*]."""
        return -x.square().sum(-1) / 2 - 1.5 * log(2 * pi)

    def forward_shape(self, shape: tuple[int, ...]) -> torch.Size:
        """[*, 3] to [*, 3, 3]."""
        return torch.Size(shape) + torch.Size([3])

    def inverse_shape(self, shape: tuple[int, ...]) -> torch.Size:
        """[*, 3, 3] to [*, 3]."""
        return torch.Size(shape[:-1])


def _chart(constraint: constraints.Constraint) -> RotationChart:
    return RotationChart()


biject_to.register(rotation_matrix, _chart)
transform_to.register(rotation_matrix, _chart)


def _check(value: Tensor, wanted: tuple[int, ...]) -> None:
    require(
        tuple(value.shape[-len(wanted) :]) == wanted,
        "rotation chart",
        expected=f"[..., {', '.join(map(str, wanted))}]",
        got=f"shape {list(value.shape)}",
    )


def _entire(n: int, t: Tensor) -> Tensor:
    """``sum_k (-t)^k n! / (n + 2 k)!`` for 0 <= t <= pi^2, without a special case at 0.

    At ``t = theta^2``: cos(theta) (n = 0), sin(theta) / theta (1), 2 (1 - cos theta) / theta^2
    (2), 6 (theta - sin theta) / theta^3 (3).
    """
    value = torch.ones_like(t)
    for k in range(_TERMS, 0, -1):
        value = 1 - t / ((n + 2 * k - 1) * (n + 2 * k)) * value
    return value


def _ball(s: Tensor) -> Tensor:
    """``P(chi_3 <= r) / (sqrt(2 / pi) r^3 / 3)`` of ``s = r^2``; 1 at 0."""
    near = s < 1
    small, large = torch.where(near, s, 0), torch.where(near, 1, s)
    series = torch.ones_like(s)
    for k in range(_TERMS, 0, -1):
        series = 1 + small / (3 + 2 * k) * series
    radius, fall = large.sqrt(), torch.exp(-large / 2)
    mass = torch.erf(radius / sqrt(2)) - sqrt(2 / pi) * radius * fall
    closed = 3 * sqrt(pi / 2) * mass / (radius * large)
    return torch.where(near, series * torch.exp(-small / 2), closed)


def _angle_over_radius(s: Tensor) -> Tensor:
    """``u = theta(r) / r`` of ``s = r^2`` >= 0, by Newton's method.

    It solves ``u^3 a(s u^2) = c^3 b(s)``, the law of equal probability times 6 pi / r^3, in which
    every term is smooth in ``s``: ``a`` is _entire(3), ``b`` is _ball, ``c`` SCALE_AT_ORIGIN. The
    start is the expansion of the root of theta - sin theta.
    """
    target = _CUBE * _ball(s)
    with torch.no_grad():
        first = target.pow(1 / 3)
        angle2 = s * first.square()
        ratio = first * (1 + angle2 / 60 + angle2.square() / 1400)
        for _ in range(_ANGLE_STEPS):
            ratio = _angle_step(ratio, s, target)
    for _ in range(_TAUGHT):
        ratio = _angle_step(ratio, s, target)
    return ratio


def _angle_step(ratio: Tensor, s: Tensor, target: Tensor) -> Tensor:
    square = ratio.square()
    excess = ratio * square * _entire(3, s * square) - target
    return ratio - excess / (3 * square * _entire(2, s * square))


def _vector_over_sine(sine2: Tensor) -> Tensor:
    """``r / sin(theta / 2)`` of ``sin(theta / 2)^2`` below 3 / 4: the inverse of the chart."""
    half = _arcsine_over_sine(sine2)
    angle2 = 4 * sine2 * half.square()
    target = _entire(3, angle2)
    with torch.no_grad():
        ratio = (target / _CUBE).pow(1 / 3)
        for _ in range(_RADIUS_STEPS):
            ratio = _radius_step(ratio, angle2, target)
    for _ in range(_TAUGHT):
        ratio = _radius_step(ratio, angle2, target)
    return 2 * half * ratio


def _radius_step(ratio: Tensor, angle2: Tensor, target: Tensor) -> Tensor:
    """One Newton step for ``r / theta``."""
    square = ratio.square()
    excess = _CUBE * ratio * square * _ball(square * angle2) - target
    return ratio - excess / (3 * _CUBE * square * torch.exp(-square * angle2 / 2))


def _arcsine_over_sine(z: Tensor) -> Tensor:
    """``arcsin(sqrt z) / sqrt z`` for 0 <= z <= 3 / 4, smooth at 0."""
    near = z < 0.01
    small, root = torch.where(near, z, 0), torch.where(near, 0.25, z).sqrt()
    series = torch.ones_like(z)
    for k in range(8, 0, -1):
        series = 1 + small * (2 * k - 1) ** 2 / (2 * k * (2 * k + 1)) * series
    return torch.where(near, series, torch.arcsin(root) / root)


def _radius_of_tail(missing: Tensor) -> Tensor:
    """``r`` of ``pi - theta`` (at most 2.1 radians), to full relative precision near 180 degrees.

    It solves ``log P(chi_3 > r) = log((d + sin d) / pi)``; the left side is concave, so that
    Newton's method converges from everywhere.
    """
    missing = missing.clamp(torch.finfo(missing.dtype).eps)
    target = torch.log((missing + missing.sin()) / pi)
    with torch.no_grad():
        radius = torch.sqrt(2 - 2 * target)
        for _ in range(_RADIUS_STEPS):
            radius = _tail_step(radius, target)
    for _ in range(_TAUGHT):
        radius = _tail_step(radius, target)
    return radius


def _tail_step(radius: Tensor, target: Tensor) -> Tensor:
    beyond = torch.special.erfcx(radius / sqrt(2)) + sqrt(2 / pi) * radius
    slope = sqrt(2 / pi) * radius.square() / beyond
    better: Tensor = radius + (torch.log(beyond) - radius.square() / 2 - target) / slope
    return better
