"""What is not known of slices whose components are normal and not known for certain."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoprob.fourier.gaussian_map import GaussianMap
from cryoprob.fourier.shells import spread
from cryoprob.fourier.slices import Slicer
from cryoprob.types import Rotations

__all__ = ["SliceErrors"]


@dataclass(frozen=True, eq=False)
class SliceErrors:
    """Covariances of the slices of P maps, exactly, interpolation and all.

    Attributes
    ----------
    slicer
        Takes the slices.
    pairs
        For components a <= b, their maps' covariance ``E (V_a V_b^*)``, mode by mode, as the
        variance of a law (a covariance may be negative; slices' are linear in it).
    """

    slicer: Slicer
    pairs: dict[tuple[int, int], GaussianMap]

    @classmethod
    def of(cls, slicer: Slicer, covariance: Tensor) -> "SliceErrors":
        """Of covariances per shell, [S, P, P]."""
        box = slicer.band.box
        nothing = covariance.new_zeros(box, box, box)
        size = covariance.shape[-1]
        pairs = [(a, b) for b in range(size) for a in range(b + 1)]
        each = {(a, b): spread(covariance[:, a, b], box) for a, b in pairs}
        return cls(slicer, {pair: GaussianMap(nothing, found) for pair, found in each.items()})

    def __call__(self, rotation: Rotations) -> Tensor:
        """``Cov(U_a, U_b)`` of slices at rotations [n, 3, 3], [n, P, P, m]."""
        size = 1 + max(b for _, b in self.pairs)
        rows: list[list[Tensor]] = [[torch.empty(0)] * size for _ in range(size)]
        for (a, b), law in self.pairs.items():
            rows[a][b] = rows[b][a] = law.slice_variance(self.slicer, rotation)
        return torch.stack([torch.stack(row, 1) for row in rows], 1)
