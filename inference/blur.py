"""What a coarse grid cannot tell: how far slices vary inside its cells, as more noise."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoprob.fourier.bands import Band
from cryoprob.fourier.gaussian_map import AnyMap, mean_of
from cryoprob.geometry.grids import MAX_ORDER, RotationGrid
from cryoprob.inference.filtered import Filtered
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import ShiftGridPrior
from cryoprob.models.poses.uniform_rotation import RotationGridPrior
from cryoprob.types import Rotations

__all__ = ["Blur"]

_CELLS = 128
_DEPTH = 3


@dataclass(frozen=True, eq=False)
class Blur:
    """The slice of a pose inside a cell: ``gain`` times that of its center, and a remainder.

    To a search among cells the remainder is noise of variance ``variance`` under the CTF. Shells
    that a grid cannot resolve fade out by themselves, and a cell is not given up for what only
    its finer children can tell.

    Attributes
    ----------
    gain
        Regression of slices inside a cell on that of its center, per shell, [S].
    variance
        Of what the regression leaves, per real number, [S].
    """

    gain: Tensor
    variance: Tensor

    @classmethod
    def inside(
        cls,
        model: ParticleModel,
        volume: AnyMap,
        rotation: RotationGridPrior,
        shift: ShiftGridPrior,
    ) -> "Blur":
        """Measured at a volume (or a law's mean), over poses spread evenly over both grids."""
        generator = torch.Generator().manual_seed(0)
        cells = torch.linspace(0, len(rotation.grid) - 1, _CELLS, dtype=torch.float64).long()
        center = rotation.matrices(cells)
        within = rotation.turn @ _inside(rotation.grid, cells, generator).to(center)
        away = torch.rand(_CELLS, 2, generator=generator, dtype=torch.float64) - 0.5
        phase = shift_phase(model.band, (away * shift.grid.step_A).to(center), model.pixel_size)
        first = model.volume.slices(mean_of(volume), center)
        second = model.volume.slices(mean_of(volume), within) * phase
        return cls.between(first, second, model.band)

    @classmethod
    def between(cls, center: Tensor, within: Tensor, band: Band) -> "Blur":
        """From pairs of slices [n, m] of a band."""
        shell = band.shell.to(center.device)

        def per_shell(values: Tensor) -> Tensor:
            total = values.double().sum(0)
            return total.new_zeros(band.n_shells).index_add_(0, shell, total)

        cross = per_shell((center.conj() * within).real)
        power, other = per_shell(center.abs() ** 2), per_shell(within.abs() ** 2)
        gain = (cross / power.clamp(min=1e-30)).clamp(0, 1)
        numbers = len(center) * band.numbers_per_shell().to(gain).clamp(min=1)
        variance = ((other - gain * (2 * cross - gain * power)) / numbers).clamp(min=0)
        return cls(gain.to(center.real), variance.to(center.real))

    def radius(self, limit: int) -> int:
        """The last shell of which the cells tell anything to speak of, at least 2."""
        told = (self.gain[: limit + 1] > 0.2).nonzero()
        return max(2, int(told.max())) if len(told) else 2

    def apply(self, images: Filtered, band: Band) -> Filtered:
        """The images as a search of the cells sees them, in a (smaller) band."""
        shell = band.shell.to(self.gain.device)
        gain, variance = self.gain[shell], self.variance[shell]
        transfer = images.transfer[:, : len(band)]
        fade = gain / (1 + transfer * variance)
        image = images.image[:, : len(band)] * fade
        return replace(images, image=image, transfer=transfer * fade * gain)


def _inside(grid: RotationGrid, cells: Tensor, generator: torch.Generator) -> Rotations:
    """One rotation inside each cell: the center of a cell some orders finer."""
    order = grid.order
    for finer in range(order, min(order + _DEPTH, MAX_ORDER)):
        child = torch.randint(8, (len(cells), 1), generator=generator)
        cells = RotationGrid(finer).children(cells).gather(1, child)[:, 0]
        order = finer + 1
    return RotationGrid(order).matrices(cells, dtype=torch.float64)
