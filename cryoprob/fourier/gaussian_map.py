"""Maps known up to a normal law, independent in Fourier space, and the moments of their slices."""

from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from cryoprob.fourier.cells import half_ball, place, weigh
from cryoprob.fourier.modes import cell_variances
from cryoprob.fourier.slices import Slicer
from cryoprob.types import Coefficients, Maps, Rotations

__all__ = ["AnyMap", "GaussianMap", "mean_of", "power_of", "variance_of"]

_CHUNK = 64


@dataclass(frozen=True, eq=False)
class GaussianMap:
    """A map whose modes are independent and normal.

    Attributes
    ----------
    mean
        [D, D, D].
    variance
        Mean of ``|V_k - mean_k|^2`` of the centered unitary transform, alike at k and -k,
        [D, D, D].

    Notes
    -----
    What it takes to find the variances of slices is worked out once for each band: 27 numbers for
    every cell that :class:`~cryoprob.fourier.normal.Insertion` has 43 for.
    """

    mean: Maps
    variance: Maps
    _tables: dict[object, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False
    )

    def slice_variance(self, slicer: Slicer, rotations: Rotations) -> Tensor:
        """``E |s - E s|^2`` of slices at rotations [*, 3, 3], exactly, [*, M]; differentiable.

        It is the quadratic form that the covariances of neighboring grid points make of a sample's
        interpolation weights.
        """
        table, row = self._table(slicer)
        found = []
        for share in rotations.reshape(-1, 3, 3).split(_CHUNK):
            cell, f, _ = place(slicer, share)
            inside = table.index_select(0, row.index_select(0, cell))
            values = weigh(inside, f) if inside.shape[1] > 1 else inside
            found.append(values.reshape(len(share), -1))
        scaled: Tensor = torch.cat(found) * slicer.weight**2
        return scaled.reshape(*rotations.shape[:-2], -1)

    def _table(self, slicer: Slicer) -> tuple[Tensor, Tensor]:
        """A row of numbers for each cell, and the row of each cell."""
        name = slicer.band.radius, slicer.interpolation, slicer.pad
        if name not in self._tables:
            cells, row = half_ball(slicer)
            self._tables[name] = cell_variances(slicer, self.variance, cells), row
        return self._tables[name]


AnyMap: TypeAlias = Maps | GaussianMap
"""A map [D, D, D], or a law of maps."""


def mean_of(volume: AnyMap) -> Maps:
    """The map, or the mean of its law, [D, D, D]."""
    return volume.mean if isinstance(volume, GaussianMap) else volume


def variance_of(volume: AnyMap, slicer: Slicer, rotations: Rotations) -> Tensor | None:
    """Variance of slices at rotations [*, 3, 3], [*, M]; None where the map is known."""
    if isinstance(volume, GaussianMap):
        return volume.slice_variance(slicer, rotations)
    return None


def power_of(volume: AnyMap, slicer: Slicer, slices: Coefficients, rotations: Rotations) -> Tensor:
    """``E |slice|^2`` at rotations [*, 3, 3], [*, M], where ``slices`` [*, M] are their means."""
    power = slices.abs().square_()
    variance = variance_of(volume, slicer, rotations)
    return power if variance is None else power.add_(variance)
