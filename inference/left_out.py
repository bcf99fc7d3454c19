"""What scores at the centers of cells, in a part of the band, leave out of the poses inside."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoprob.fourier.bands import Band
from cryoprob.inference.levels import Level
from cryoprob.inference.regions import Source
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel

__all__ = ["LeftOut", "shells_of"]

_BYTES = 2**23


@dataclass(frozen=True, eq=False)
class LeftOut:
    """How far the slices of the finest poses in a cell are from that of its center, whitened.

    The center's slice counts up to shell ``radius`` only. Distances are exact maxima over the
    poses of the next finer grid, and are added up from grid to grid.

    Attributes
    ----------
    source
        Slices of the whole band.
    levels
        The grids from the cells' own to the finest.
    moves
        Phases of the children's shifts relative to their parent's, [4, M], of each but the finest.
    radius
        Last shell that is scored.
    """

    source: Source
    levels: list[Level]
    moves: list[Tensor]
    radius: int

    @classmethod
    def of(cls, model: ParticleModel, source: Source, levels: list[Level]) -> "LeftOut":
        """For cells of the first of ``levels``, scored in its band."""
        moves = [
            shift_phase(source.slicer.band, _quarters(above, below), model.pixel_size)
            for above, below in zip(levels, levels[1:], strict=False)
        ]
        return cls(source, levels, moves, levels[0].radius)

    def norms(self, transfer: Tensor, cells: Tensor, slices: Tensor, depth: int = 0) -> Tensor:
        """For images of ``transfer`` [U, M] and cells [C] of slices [C, M]: per shell, [U, C, S].

        ``depth`` counts the grids above the cells' own.
        """
        size = max(1, _BYTES // (512 * transfer.shape[1]))
        look = self._finest if depth == len(self.moves) else self._coarser
        parts = zip(cells.split(size), slices.split(size), strict=True)
        return torch.cat([look(transfer, *part, depth) for part in parts], 1)

    def _finest(self, transfer: Tensor, cells: Tensor, slices: Tensor, depth: int) -> Tensor:
        """Nothing in the scored band, the slices themselves above it."""
        shells = shells_of(self.source.slicer.band)
        found = transfer.new_zeros(len(transfer), len(cells), len(shells))
        if above := shells[self.radius + 1 :]:
            power = slices.abs().square()
            found[..., self.radius + 1 :] = _largest(transfer, power, above)
        return found

    def _coarser(self, transfer: Tensor, cells: Tensor, slices: Tensor, depth: int) -> Tensor:
        children = self.levels[depth].rotation.grid.children(cells)
        rotations = self.levels[depth + 1].rotation.matrices(children.flatten())
        around = self.source.slicer.sample(self.source.grid, rotations)
        below = self.norms(transfer, children.flatten(), around, depth + 1)
        scored = shells_of(self.source.slicer.band)[: self.radius + 1]
        inside = slice(0, scored[-1].stop)
        moved = (around[:, None, inside] * self.moves[depth][:, inside]).unflatten(
            0, children.shape
        )
        away = (moved - slices[:, None, None, inside]).abs().square().flatten(0, 2)
        below[..., : len(scored)] += _largest(transfer, away, scored, len(self.moves[depth]))
        found: Tensor = below.unflatten(1, children.shape).amax(2)
        return found


def shells_of(band: Band) -> list[slice]:
    """The places of each shell's coefficients in a band."""
    ends = torch.bincount(band.shell, minlength=band.radius + 1).cumsum(0).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _largest(transfer: Tensor, power: Tensor, shells: list[slice], of: int = 1) -> Tensor:
    """Whitened norms in some shells, of powers [K, m]: the largest ``of`` each, [U, K / of, S]."""
    found = [
        (transfer[:, shell] @ power[:, shell].T).unflatten(1, (-1, of)).amax(2) for shell in shells
    ]
    return torch.stack(found, 2).sqrt_()


def _quarters(above: Level, below: Level) -> Tensor:
    """Shifts of a cell's children relative to its center, [4, 2]."""
    children = above.shift.grid.children(torch.zeros((), dtype=torch.long))
    return below.shift.points()[children] - above.shift.points()[0]
