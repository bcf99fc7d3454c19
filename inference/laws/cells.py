"""A mixture over the cells of a rotation grid: hypotheses everywhere, refined off the grid."""

from functools import cached_property
from math import lgamma, log, pi, radians

import roma
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from cryoprob.checks import require
from cryoprob.geometry.grids import RotationGrid
from cryoprob.geometry.rotations import (
    about_z,
    matrix_to_quaternion,
    quaternion_to_matrix,
)
from cryoprob.inference.laws.base import Draws, Law
from cryoprob.models.poses.rotation_support import rotation_matrix
from cryoprob.types import Rotations, Sizes

__all__ = ["CellMixture", "Cells"]

_NARROWEST = 1e-3
_PER_CELL = 5
_OPPOSITE = 1e-20
"""Squared cosine below which the density of turns by 180 degrees is not told apart."""


class CellMixture(TorchDistribution):
    """``q = sum_k w_k t_k``, a t law of the half-angle tangent for each of Q cells.

    In the frame of a cell, ``R = Rz(psi) E F(direction)``, the turn ``E`` goes to the mode, off
    the cell's center by the half-angle vector ``d_k``, and from there by an angle ``a`` about an
    axis: ``tan(a / 2)`` times the axis is ``s_k`` times a t vector of ``dof`` degrees of freedom.
    The density relative to Haar measure of mass 1,

        c s^-3 cos^(dof - 1)(a / 2) (cos^2(a / 2) + sin^2(a / 2) / (dof s^2))^(-(dof + 3) / 2),

    is exact and normalized at every scale. Its tails leave no image without hope in training, and
    hold next to nothing. Offsets and scales do not change when an image is turned in its plane:
    only cells change places.

    Parameters
    ----------
    cells
        The grid's frame: relative quaternions of a rotation in each cell, [4, 4 Q].
    logits
        Of the weights, [*, Q], in order of psi, then of direction.
    offset
        ``d_k``, tangents of half angles about the laboratory's axes before psi, [*, Q, 3].
    scale
        ``s_k``, in (0, 1], about half the width in radians, [*, Q].
    dof
        Degrees of freedom, 1 or more.

    Notes
    -----
    With ``dof`` 1 it is the angular central Gaussian of Tyler (1987), Biometrika 74, 579, uniform
    at scale 1, whose tails are a Cauchy law's: of a width of 6 degrees a tenth lies beyond 60.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = rotation_matrix

    def __init__(
        self, cells: Tensor, logits: Tensor, offset: Tensor, scale: Tensor, dof: int = 8
    ) -> None:
        self.cells, self.offset, self.scale, self.dof = cells, offset, scale, dof
        self.log_weight = torch.log_softmax(logits, -1)
        shape = logits.shape[:-1]
        super().__init__(shape, torch.Size([3, 3]), validate_args=False)

    def expand(self, batch_shape: Sizes, _instance: "CellMixture | None" = None) -> "CellMixture":
        """The same law over a larger batch."""
        count = self.log_weight.shape[-1]
        logits = self.log_weight.expand(*batch_shape, count)
        offset = self.offset.expand(*batch_shape, count, 3)
        scale = self.scale.expand(*batch_shape, count)
        return CellMixture(self.cells, logits, offset, scale, self.dof)

    def log_parts(self, value: Rotations) -> Tensor:
        """Log density of every cell's own law at rotations [*, 3, 3], [*, Q]."""
        quaternion = matrix_to_quaternion(value).to(self.cells)
        inside = (quaternion @ self.cells).unflatten(-1, (-1, 4))
        return _log_t(inside, self.offset, self.scale, self.dof)

    def log_prob(self, value: Rotations) -> Tensor:
        """Log density with respect to Haar measure, [*]."""
        return torch.logsumexp(self.log_weight + self.log_parts(value), -1)

    def sample(self, sample_shape: Sizes = torch.Size()) -> Rotations:
        """Draw rotations, [*sample, *batch, 3, 3]."""
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            chosen = torch.distributions.Categorical(logits=self.log_weight)
            cell = chosen.sample(torch.Size(sample_shape))
            return self.draw_from(cell).reshape(*shape, 3, 3)

    def draw_from(self, cell: Tensor) -> Rotations:
        """A draw of the law of each given cell [*sample, *batch], differentiable, [*, 3, 3]."""
        offset, scale = self._of(cell)
        size = *cell.shape, 3 + self.dof
        normal = torch.randn(*size, dtype=scale.dtype, device=scale.device)
        length = normal[..., 3:].square().mean(-1, keepdim=True).sqrt()
        turn = torch.cat([scale[..., None] * normal[..., :3], length], -1)
        return self._placed(cell, roma.quat_product(_tangent(offset), turn))

    def modes(self, cell: Tensor) -> Rotations:
        """The mode of the law of each given cell [*sample, *batch], [*, 3, 3]."""
        return self._placed(cell, _tangent(self._of(cell)[0]))

    def _of(self, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets and scales of the given cells."""
        offset = self.offset.expand(*cell.shape, *self.offset.shape[-2:])
        scale = self.scale.expand(*cell.shape, self.scale.shape[-1])
        at = cell[..., None]
        rows = at[..., None].expand(*at.shape, 3)
        return offset.gather(-2, rows)[..., 0, :], scale.gather(-1, at)[..., 0]

    def _placed(self, cell: Tensor, turn: Tensor) -> Rotations:
        """Rotations of turns in the frames of cells; the frames' maps are orthogonal."""
        frame = self.cells.unflatten(-1, (-1, 4)).movedim(0, -1)[cell]
        quaternion = (frame.mT @ turn[..., None])[..., 0]
        unit = torch.nn.functional.normalize(quaternion, dim=-1)
        found: Rotations = quaternion_to_matrix(unit)
        return found


class Cells(Law):
    """A weight, an offset and a width for every cell of a grid: see :class:`CellMixture`.

    Training on known poses is then a choice among cells and a correction inside the chosen one,
    which networks learn far sooner than six numbers of one mode.

    Parameters
    ----------
    order
        Of the rotation grid, 72 * 8^order cells.
    width_deg
        Width of a cell's law at the start; default half the spacing.
    heads
        Cells of which :meth:`draw` draws: the heaviest ones, their weights made to add up to 1.
    modal
        Draw the modes of those cells alone, each a Dirac; training on known poses is as before.
    dof
        Degrees of freedom of each cell's law.
    """

    table: Tensor

    def __init__(
        self,
        order: int = 1,
        *,
        width_deg: float | None = None,
        heads: int = 8,
        modal: bool = False,
        dof: int = 8,
    ) -> None:
        super().__init__()
        self.grid, self.heads, self.has_density = RotationGrid(order), heads, not modal
        self.dof, count = dof, len(self.grid)
        require(dof > 0, "degrees of freedom", expected="1 or more", got=str(dof))
        require(0 < heads <= count, "heads", expected=f"1 to {count}", got=str(heads))
        width = self.grid.spacing_deg / 2 if width_deg is None else width_deg
        require(0 < width < 90, "width of a cell", expected="above 0, below 90", got=f"{width:g}")
        self.start = radians(width) / 2
        self.size = _PER_CELL * count
        self.register_buffer("table", _frames(self.grid), persistent=False)

    def forward(self, numbers: Tensor) -> CellMixture:
        """The mixture."""
        parts = numbers.unflatten(-1, (len(self.grid), _PER_CELL))
        free = parts[..., 4] + log(self.start / (1 - self.start))
        scale = torch.sigmoid(free).clamp(min=_NARROWEST)
        offset = parts[..., 1:4] * self._unit
        return CellMixture(self.table.to(numbers), parts[..., 0], offset, scale, self.dof)

    def numbers(self, value: Rotations) -> Tensor:
        """Nearly all weight on the cells that hold the values, their modes at the values."""
        cell = self._order(self.grid.cell(value))
        quaternion = matrix_to_quaternion(value)
        table = self.table.to(value).unflatten(-1, (-1, 4)).movedim(0, -1)
        inside = (table[cell] @ quaternion[..., None])[..., 0]
        offset = inside[..., :3] / (inside[..., 3:] * self._unit)
        rows = torch.nn.functional.one_hot(cell, len(self.grid)).to(value)[..., None]
        one = torch.cat([torch.full_like(offset[..., :1], 12.0), offset], -1)
        one = torch.cat([one, torch.zeros_like(one[..., :1])], -1)
        found: Tensor = (rows * one[..., None, :]).flatten(-2)
        return found

    def starting(self, values: Rotations) -> Tensor:
        """Numbers [size] of the same weight for all cells, whatever the values."""
        return values.new_zeros(self.size)

    def mode(self, numbers: Tensor) -> Rotations:
        """The mode of the heaviest cell."""
        law = self(numbers)
        found: Rotations = law.modes(law.log_weight.argmax(-1))
        return found

    def log_score(self, numbers: Tensor, value: Rotations) -> Tensor:
        """Log density with respect to Haar measure."""
        score: Tensor = self(numbers).log_prob(value)
        return score

    def draw(self, numbers: Tensor, count: int) -> Draws:
        """``count`` draws of each of the heaviest cells (or its mode), [heads * count, N, ...].

        They are draws of the law cut to those cells, and so is ``log_q``: bounds from them hold.
        """
        whole = self(numbers)
        share, cell = whole.log_weight.topk(self.heads, -1)
        share = torch.log_softmax(share, -1)
        if not self.has_density:
            weight = share.movedim(-1, 0)
            return Draws(whole.modes(cell.movedim(-1, 0)), weight, weight)
        cut = torch.full_like(whole.log_weight, -torch.inf).scatter(-1, cell, share)
        law = CellMixture(whole.cells, cut, whole.offset, whole.scale, self.dof)
        value = law.draw_from(cell.movedim(-1, 0).repeat_interleave(count, 0))
        weight = share.movedim(-1, 0).repeat_interleave(count, 0) - log(count)
        return Draws(value, law.log_prob(value), weight)

    def log_density(self, numbers: Tensor, values: Rotations) -> Tensor:
        """Log density [n, K] of the law cut to the heaviest cells."""
        whole = self(numbers)
        share, cell = whole.log_weight.topk(self.heads, -1)
        frame = whole.cells.unflatten(-1, (-1, 4)).movedim(0, -1)[cell]
        inside = matrix_to_quaternion(values).to(frame)[..., None, None, :] @ frame[:, None].mT
        offset = whole.offset.gather(-2, cell[..., None].expand(*cell.shape, 3))[:, None]
        scale = whole.scale.gather(-1, cell)[:, None]
        parts = _log_t(inside[..., 0, :], offset, scale, self.dof)
        return torch.logsumexp(torch.log_softmax(share, -1)[:, None] + parts, -1)

    @cached_property
    def _unit(self) -> float:
        """Half-angle tangent of half a spacing."""
        return radians(self.grid.spacing_deg) / 4

    def _order(self, index: Tensor) -> Tensor:
        """Places of the grid's cells in the law's order, psi first."""
        return (index % self.grid.n_psi) * self.grid.n_directions + index // self.grid.n_psi


def _frames(grid: RotationGrid) -> Tensor:
    """Maps from quaternions to those relative to each cell, [4, 4 Q], cells ordered by psi."""
    psi = grid.psi_deg()
    first = grid.matrices(torch.arange(grid.n_directions) * grid.n_psi, torch.float64)
    undo = matrix_to_quaternion(about_z(-psi))
    frame = roma.quat_conjugation(matrix_to_quaternion(about_z(-psi[0]) @ first))
    shape = 4, len(undo), len(frame), 4
    basis = torch.eye(4, dtype=torch.float64)[:, None, None].expand(shape)
    turned = roma.quat_product(undo[:, None].expand(shape), basis)
    maps: Tensor = roma.quat_product(turned, frame.expand(shape)).flatten(1)
    return maps


def _tangent(offset: Tensor) -> Tensor:
    """Unit quaternions (vector, scalar) of half-angle tangents [*, 3]."""
    raw = torch.cat([offset, torch.ones_like(offset[..., :1])], -1)
    return torch.nn.functional.normalize(raw, dim=-1)


def _log_t(inside: Tensor, offset: Tensor, scale: Tensor, dof: int) -> Tensor:
    """Log density [*] of quaternions [*, 4] (vector, scalar) about offsets [*, 3].

    The sine is a sum of squares in which nothing small is a difference of large numbers.
    """
    vector, scalar = inside[..., :3], inside[..., 3]
    along = (vector * offset).sum(-1)
    size = offset.square().sum(-1)
    cosine2 = (scalar + along).square() / (1 + size)
    direct = (vector - scalar[..., None] * offset).square().sum(-1)
    sine2 = direct + (size * vector.square().sum(-1) - along.square()).clamp(min=0)
    spread = cosine2 + sine2 / ((1 + size) * dof * scale.square())
    constant = lgamma((dof + 3) / 2) - lgamma(dof / 2) + log(pi / dof**3) / 2
    found = constant - 3 * torch.log(scale) - (dof + 3) / 2 * torch.log(spread)
    if dof > 1:
        found = found + (dof - 1) / 2 * torch.log(cosine2.clamp(min=_OPPOSITE))
    return found
