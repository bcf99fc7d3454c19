"""Images turned by 90, 180 and 270 degrees: their coefficients change places, and nothing else."""

from functools import lru_cache

import torch
from torch import Tensor

from cryoprob.fourier.bands import Band
from cryoprob.types import Coefficients

__all__ = ["turn_coefficients", "turn_even"]


def turn_coefficients(band: Band, values: Coefficients, quarters: Tensor) -> Coefficients:
    """Packed coefficients [N, M] of images that are turned by 90 degrees ``quarters`` [N] times.

    Counterclockwise, as a positive psi turns (x to y), about the pixel ``D // 2``. Exact: no
    interpolation, the same numbers in other places.
    """
    place, flipped = (table.to(values.device)[quarters] for table in _places(band))
    found = values.gather(-1, place)
    return torch.where(flipped, found.conj(), found)


def turn_even(band: Band, values: Tensor, quarters: Tensor) -> Tensor:
    """The same of real and even functions of the frequency, such as CTFs, [N, M]."""
    place, _ = _places(band)
    return values.gather(-1, place.to(values.device)[quarters])


@lru_cache(maxsize=16)
def _places(band: Band) -> tuple[Tensor, Tensor]:
    """Where the coefficient at each frequency comes from, and whether conjugated, [4, M] each."""
    box, kx, ky = band.box, band.kx, band.ky
    table = torch.full((box, box), -1)
    table[ky % box, kx % box] = torch.arange(len(band))
    place, flipped = [], []
    for _ in range(4):
        here, there = table[ky % box, kx % box], table[-ky % box, -kx % box]
        place.append(torch.where(here < 0, there, here))
        flipped.append(here < 0)
        kx, ky = ky, -kx
    return torch.stack(place), torch.stack(flipped)
