"""Laws of a rotation: a Dirac, and a concentrated law, both around a mode of six numbers."""

from math import radians

import roma
import torch
from pyro.distributions import Delta
from torch import Tensor

from cryoprob.checks import require
from cryoprob.inference.laws.base import Law
from cryoprob.models.poses.concentrated_rotation import ConcentratedRotation
from cryoprob.models.poses.rotation_support import SCALE_AT_ORIGIN
from cryoprob.types import Rotations

__all__ = ["ConcentratedLaw", "DiracRotation", "rotation_of_six", "six_of_rotation"]


def rotation_of_six(numbers: Tensor) -> Rotations:
    """Rotations [*, 3, 3]: two columns, ``numbers`` [*, 6], made orthogonal, and their product.

    Gram-Schmidt; continuous and onto SO(3). Zhou et al. 2019, CVPR, sec. 4.2 (s2s2).
    """
    columns = numbers.unflatten(-1, (2, 3)).mT
    rotations: Rotations = roma.special_gramschmidt(columns)
    return rotations


def six_of_rotation(rotation: Rotations) -> Tensor:
    """The first two columns of rotations [*, 3, 3], one after the other, [*, 6]."""
    return rotation[..., :2].mT.flatten(-2)


class DiracRotation(Law):
    """All mass at one rotation: modal inference.

    Parameters
    ----------
    tolerance_deg
        Unit of the squared angle in which :meth:`log_score` counts errors.
    """

    size, has_density = 6, False

    def __init__(self, tolerance_deg: float = 15.0) -> None:
        super().__init__()
        self.tolerance = radians(tolerance_deg)

    def forward(self, numbers: Tensor) -> Delta:
        """The Dirac."""
        return Delta(self.mode(numbers), event_dim=2)

    def numbers(self, value: Rotations) -> Tensor:
        """The rotation's own six numbers."""
        return six_of_rotation(value)

    def mode(self, numbers: Tensor) -> Rotations:
        """The rotation."""
        return rotation_of_six(numbers)

    def log_score(self, numbers: Tensor, value: Rotations) -> Tensor:
        """Minus half the squared chordal distance (the squared angle, for small ones)."""
        away = (self.mode(numbers) - value).square().sum((-2, -1)) / 2
        return -away / (2 * self.tolerance**2)


class ConcentratedLaw(Law):
    """A Gaussian of the chart of SO(3) around a mode, in the laboratory's frame.

    Its z is the viewing axis, so that turns in the plane and tips out of it have widths of their
    own. See :class:`~cryoprob.models.poses.concentrated_rotation.ConcentratedRotation`.

    Parameters
    ----------
    width_deg
        Width at the start (or for good, if ``fixed``).
    fixed
        Keep that width for all images.

    Raises
    ------
    InputError
        If the width is not in (0, 98) degrees, the uniform law's.
    """

    def __init__(self, width_deg: float = 10.0, *, fixed: bool = False) -> None:
        super().__init__()
        self.width = radians(width_deg)
        got = f"{width_deg:g} degrees"
        inside = 0 < self.width < SCALE_AT_ORIGIN
        require(inside, "width of a rotation", expected="above 0, below 98 degrees", got=got)
        self.fixed = fixed
        self.size = 6 if fixed else 12

    def forward(self, numbers: Tensor) -> ConcentratedRotation:
        """The law around the mode."""
        mode, lower = self.mode(numbers), self._lower(numbers)
        return ConcentratedRotation(
            mode, scale_tril=lower, frame="laboratory", validate_args=False
        )

    def numbers(self, value: Rotations) -> Tensor:
        """The mode's six numbers, and the starting width about all axes."""
        six = six_of_rotation(value)
        return six if self.fixed else torch.cat([six, self._start(six)], -1)

    def around(self, value: Rotations, covariance: Tensor) -> Tensor:
        """Numbers of the law of mode ``value`` and ``covariance`` [*, 3, 3] (radians^2).

        Widths outside of 0.06 to 88 degrees are taken to the nearer of these.
        """
        six = six_of_rotation(value)
        if self.fixed:
            return six
        lower = torch.linalg.cholesky(covariance)
        width = lower.diagonal(dim1=-2, dim2=-1)
        below = (lower / width[..., None])[..., [1, 2, 2], [0, 0, 1]]
        width = width.clamp(1e-3, 0.9 * SCALE_AT_ORIGIN)
        return torch.cat([six, torch.logit(width / SCALE_AT_ORIGIN), below], -1)

    def mode(self, numbers: Tensor) -> Rotations:
        """The most probable rotation."""
        return rotation_of_six(numbers[..., :6])

    def width_deg(self, numbers: Tensor) -> Tensor:
        """Geometric mean of the widths about three axes, degrees, [*]."""
        width = self._lower(numbers).diagonal(dim1=-2, dim2=-1)
        return torch.rad2deg(width.log().mean(-1).exp())

    def log_score(self, numbers: Tensor, value: Rotations) -> Tensor:
        """Log density with respect to Haar measure."""
        score: Tensor = self(numbers).log_prob(value)
        return score

    def _start(self, like: Tensor) -> Tensor:
        share = like.new_full((*like.shape[:-1], 3), self.width / SCALE_AT_ORIGIN)
        return torch.cat([torch.logit(share), torch.zeros_like(share)], -1)

    def _lower(self, numbers: Tensor) -> Tensor:
        free = self._start(numbers) if self.fixed else numbers[..., 6:]
        width = SCALE_AT_ORIGIN * torch.sigmoid(free[..., :3])
        below = torch.zeros_like(width[..., None] * width[..., None, :])
        below[..., [1, 2, 2], [0, 0, 1]] = free[..., 3:]
        lower: Tensor = width[..., None] * (below + torch.eye(3).to(below))
        return lower
