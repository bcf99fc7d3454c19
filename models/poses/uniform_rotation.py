"""Uniform orientations: the Haar measure on SO(3), and its discretization by equal cells."""

from functools import cached_property
from math import log

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from cryoprob.geometry.grids import RotationGrid
from cryoprob.geometry.rotations import random_rotations
from cryoprob.geometry.symmetry import asymmetric, point_group
from cryoprob.models.local_prior import LocalPrior
from cryoprob.models.poses.grid import GridDistribution
from cryoprob.models.poses.rotation_support import rotation_matrix
from cryoprob.types import Rotations, Sizes

__all__ = ["Haar", "RotationGridPrior", "UniformRotation"]


class Haar(TorchDistribution):
    """The uniform distribution of rotation matrices; its density with respect to itself is 1."""

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = rotation_matrix

    def __init__(self, like: Tensor, shape: torch.Size = torch.Size()) -> None:
        self.like = like
        super().__init__(shape, torch.Size([3, 3]), validate_args=False)

    def expand(self, batch_shape: Sizes, _instance: "Haar | None" = None) -> "Haar":
        """The same distribution over a batch."""
        return Haar(self.like, torch.Size(batch_shape))

    def sample(self, sample_shape: Sizes = torch.Size()) -> Rotations:
        """Draw rotations, [*sample, *batch, 3, 3]."""
        shape = torch.Size(sample_shape) + self.batch_shape
        seed = int(torch.randint(2**62, ()))
        generator = torch.Generator().manual_seed(seed)
        drawn = random_rotations(shape.numel(), generator, dtype=self.like.dtype)
        return drawn.to(self.like).reshape(*shape, 3, 3)

    def log_prob(self, value: Rotations) -> Tensor:
        """Zero: the density is with respect to Haar measure."""
        shape = torch.broadcast_shapes(value.shape[:-2], self.batch_shape)
        return value.new_zeros(shape)


class UniformRotation(LocalPrior):
    """Uniform orientations on all of SO(3); :meth:`discretize` puts them on a grid, explicitly."""

    anchor: Tensor

    def __init__(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.register_buffer("anchor", torch.eye(3, dtype=dtype, device=device))

    def prior(self) -> Haar:
        """Haar measure."""
        return Haar(self.anchor)

    def discretize(
        self, order: int, *, symmetry: str = "C1", turn: Rotations | None = None
    ) -> "RotationGridPrior":
        """The equal-mass grid of ``order``, of one asymmetric unit, turned by ``turn`` [3, 3]."""
        return RotationGridPrior(order, symmetry=symmetry, turn=turn, like=self.anchor)


class RotationGridPrior(LocalPrior):
    """Uniform orientations on a HEALPix x circle grid of 72 * 8^order equal cells.

    Parameters
    ----------
    order
        0 (60 degrees) to 5 (1.9 degrees).
    symmetry
        Point group of the molecule; only rotations of one asymmetric unit are kept.
    turn
        Rotation applied on the left of every grid point (a turn of the laboratory), [3, 3].
    like
        A tensor whose dtype and device the points take.
    """

    enumerable = True
    turn: Tensor

    def __init__(
        self,
        order: int,
        *,
        symmetry: str = "C1",
        turn: Rotations | None = None,
        like: Tensor | None = None,
    ) -> None:
        super().__init__()
        like = torch.zeros(()) if like is None else like
        turn = torch.eye(3) if turn is None else turn
        self.register_buffer("turn", turn.to(like))
        self.order, self.symmetry, self.grid = order, symmetry, RotationGrid(order)

    def cells(self) -> Tensor:
        """Indices of the grid cells in the support, [Q] (long)."""
        cells = torch.arange(len(self.grid))
        if self.symmetry.upper() != "C1":
            group = point_group(self.symmetry)
            cells = cells[asymmetric(self.grid.matrices(dtype=torch.float64), group)]
        return cells.to(self.turn.device)

    @cached_property
    def log_mass(self) -> float:
        """Log probability of one cell of the support."""
        return -log(len(self.cells()))

    def matrices(self, cells: Tensor | None = None) -> Rotations:
        """Rotations of grid cells (default: the support), [Q, 3, 3]."""
        cells = self.cells() if cells is None else cells
        found = self.grid.matrices(cells, dtype=torch.float64).to(self.turn)
        return self.turn @ found

    def prior(self) -> GridDistribution:
        """Equal masses on the support."""
        points = self.matrices()
        return GridDistribution(points, points.new_full((len(points),), self.log_mass))

    def coarser(self) -> "RotationGridPrior":
        """The grid of the order below, with the same turn and symmetry."""
        order, turn = self.order - 1, self.turn
        return RotationGridPrior(order, symmetry=self.symmetry, turn=turn, like=turn)

    def finer(self) -> "RotationGridPrior":
        """The grid of the order above, with the same turn and symmetry."""
        order, turn = self.order + 1, self.turn
        return RotationGridPrior(order, symmetry=self.symmetry, turn=turn, like=turn)
