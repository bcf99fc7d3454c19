"""Rotations near a mode: a Gaussian of the chart of SO(3), exact and normalized at any width."""

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from cryoprob.checks import require
from cryoprob.geometry.rotations import check_rotations
from cryoprob.models.poses.rotation_support import (
    SCALE_AT_ORIGIN,
    RotationChart,
    rotation_matrix,
)
from cryoprob.models.poses.uniform_rotation import Haar
from cryoprob.types import Rotations, Sizes

__all__ = ["ConcentratedRotation"]

_CHART = RotationChart()


class ConcentratedRotation(TorchDistribution):
    """``R = mode @ chart(x)``, ``x ~ N(0, S / c^2)``: a tangent-space Gaussian projected on SO(3).

    The chart is :class:`~cryoprob.models.poses.rotation_support.RotationChart`, ``c`` its scale
    at the origin, 1.711. ``R = mode @ exp(hat(w))`` with a rotation vector ``w`` that is ``c x``
    to first order, so that ``S`` is the covariance of ``w`` in radians^2 while the scale is small.
    Haar measure is N(0, I) of ``x``; the density with respect to it is a ratio of two Gaussians,

        log p(R) = log N(x; 0, S / c^2) - log N(x; 0, I),

    exact and normalized at every scale. All scales ``c`` (98 degrees) is the uniform distribution
    itself, and the entropy is closed. (A Gaussian ``w`` wrapped onto SO(3) has a pole at the
    mode, where turns by 360 degrees about all axes meet.)

    ``w`` is in the molecule's frame, as the mode's columns are: the law of ``A R`` for a rotation
    A of the laboratory has the mode ``A mode`` and the same scale. In the laboratory's frame,
    whose z is the viewing axis, ``R = exp(hat(w)) @ mode``; its ``S`` is ``mode S mode^T``.

    Parameters
    ----------
    mode
        Molecule-to-laboratory rotations, [*, 3, 3].
    scale
        Standard deviations of ``w`` about the molecule's axes, radians, [*, 3].
    scale_tril
        Instead of ``scale``: lower triangle ``L`` with positive diagonal, ``S = L L^T``, radians,
        [*, 3, 3]. It takes the dtype of ``mode``, as ``scale`` does.
    frame
        ``"molecule"`` or ``"laboratory"``: whose axes ``w`` is about.
    validate_args
        False leaves out the checks of values (not of shapes).

    Raises
    ------
    InputError
        If shapes do not fit, not exactly one of ``scale`` and ``scale_tril`` is given, a scale is
        not positive, ``scale_tril`` is not lower triangular, or a mode is no rotation.

    Notes
    -----
    The root mean square of each component of the true rotation vector falls behind the scale as
    that grows: equal scales of 5, 20, 40, 60 and 98 degrees give 5.0, 19.8, 38.3, 54.3 and 76.1
    (the uniform law's). Above 98 degrees, which is not refused, the density is least at ``mode``
    and grows without bound toward the turns by 180 degrees.

    Sources: Falorsi et al. (2019), AISTATS, "Reparameterizing distributions on Lie groups"
    (densities pushed forward from the algebra); Chirikjian (2012), Stochastic Models, Information
    Theory, and Lie Groups 2, ch. 10 (the measure).

    Examples
    --------
    >>> law = ConcentratedRotation(torch.eye(3), torch.full((3,), SCALE_AT_ORIGIN))
    >>> bool(law.log_prob(law.sample((5,))).abs().max() < 1e-5)  # uniform
    True
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = rotation_matrix
    has_rsample = True

    def __init__(
        self,
        mode: Rotations,
        scale: Tensor | None = None,
        *,
        scale_tril: Tensor | None = None,
        frame: str = "molecule",
        validate_args: bool | None = None,
    ) -> None:
        known = frame in ("molecule", "laboratory")
        require(known, "rotation frame", expected="molecule or laboratory", got=repr(frame))
        self.frame = frame
        lower = _triangle(scale, scale_tril).to(mode)
        shape = _batch(mode, lower)
        if validate_args is not False:
            _check_values(mode, lower)
        self._mode = mode.expand(*shape, 3, 3)
        self.scale_tril = lower.expand(*shape, 3, 3)
        super().__init__(shape, torch.Size([3, 3]), validate_args=False)

    @property
    def mode(self) -> Rotations:
        """The most probable rotation, [*, 3, 3] (at scales below 98 degrees)."""
        return self._mode

    @property
    def mean(self) -> Rotations:
        """The mode also minimizes the expected squared distance to R (same range), [*, 3, 3]."""
        return self._mode

    def expand(
        self, batch_shape: Sizes, _instance: "ConcentratedRotation | None" = None
    ) -> "ConcentratedRotation":
        """The same distribution over a larger batch."""
        mode = self._mode.expand(*batch_shape, 3, 3)
        lower = self.scale_tril.expand(*batch_shape, 3, 3)
        return ConcentratedRotation(mode, scale_tril=lower, frame=self.frame, validate_args=False)

    def rsample(self, sample_shape: Sizes = torch.Size()) -> Rotations:
        """Draw rotations, [*sample, *batch, 3, 3], differentiable in mode and scale."""
        shape = torch.Size(sample_shape) + self.batch_shape + torch.Size([3, 1])
        normal = torch.randn(shape, dtype=self._mode.dtype, device=self._mode.device)
        x = (self.scale_tril / SCALE_AT_ORIGIN) @ normal
        turn: Rotations = _CHART(x[..., 0])
        return turn @ self._mode if self.frame == "laboratory" else self._mode @ turn

    def log_prob(self, value: Rotations) -> Tensor:
        """Log density of rotations [*, 3, 3] with respect to Haar measure of total mass 1, [*].

        Differentiable in value, mode and scale (also across the mode, where it is smooth).

        Raises
        ------
        InputError
            If the values are not [*, 3, 3].
        """
        back = self._mode.mT
        x = _CHART.inv(value @ back if self.frame == "laboratory" else back @ value)
        lower = (self.scale_tril / SCALE_AT_ORIGIN).expand(*x.shape, 3)
        white = torch.linalg.solve_triangular(lower, x[..., None], upper=False)[..., 0]
        exponent = (x.square() - white.square()).sum(-1) / 2
        density: Tensor = exponent - lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return density

    def entropy(self) -> Tensor:
        """Entropy relative to Haar measure, nats, [*]; exact, at most 0 (the uniform law).

        Minus the Kullback-Leibler divergence from the uniform distribution, which is that of
        N(0, S / c^2) from N(0, I).
        """
        lower = self.scale_tril / SCALE_AT_ORIGIN
        log_volume = lower.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        entropy: Tensor = log_volume - (lower.square().sum((-2, -1)) - 3) / 2
        return entropy


@register_kl(ConcentratedRotation, Haar)  # type: ignore[untyped-decorator]
def _kl_from_uniform(p: ConcentratedRotation, q: Haar) -> Tensor:
    return -p.entropy()


def _triangle(scale: Tensor | None, scale_tril: Tensor | None) -> Tensor:
    """The one of both that is given, as a lower triangle [*, 3, 3]."""
    if scale is not None and scale_tril is None:
        got = f"shape {list(scale.shape)}"
        require(scale.shape[-1:] == (3,), "rotation scale", expected="[..., 3] (rad)", got=got)
        return torch.diag_embed(scale)
    given = "neither" if scale_tril is None else "both"
    right = scale is None and scale_tril is not None
    require(right, "rotation scale", expected="scale or scale_tril", got=given)
    assert scale_tril is not None
    got = f"shape {list(scale_tril.shape)}"
    wanted = "[..., 3, 3] (radians)"
    require(scale_tril.shape[-2:] == (3, 3), "rotation scale_tril", expected=wanted, got=got)
    return scale_tril


def _batch(mode: Tensor, lower: Tensor) -> torch.Size:
    """The common batch shape."""
    got = f"shapes {list(mode.shape)} and {list(lower.shape)}"
    wanted = "[..., 3, 3] both, with batches that broadcast"
    right = mode.shape[-2:] == (3, 3) and mode.is_floating_point()
    require(right, "rotation mode", expected="floating point [..., 3, 3]", got=got)
    pairs = zip(reversed(mode.shape[:-2]), reversed(lower.shape[:-2]), strict=False)
    fits = all(a == b or 1 in (a, b) for a, b in pairs)
    require(fits, "rotation mode and scale", expected=wanted, got=got)
    return torch.Size(torch.broadcast_shapes(mode.shape[:-2], lower.shape[:-2]))


def _check_values(mode: Tensor, lower: Tensor) -> None:
    check_rotations(mode.detach(), "rotation mode")
    diagonal = lower.detach().diagonal(dim1=-2, dim2=-1)
    positive = bool(((diagonal > 0) & diagonal.isfinite()).all())
    require(
        positive,
        "rotation scale",
        expected="positive standard deviations (radians)",
        got=f"{float(diagonal.min()):g}",
    )
    above = bool((lower.detach().triu(1) == 0).all()) and bool(lower.isfinite().all())
    wanted = "a finite lower triangle"
    require(above, "rotation scale_tril", expected=wanted, got="other entries")
