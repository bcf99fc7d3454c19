"""What a fit will take, roughly: memory and time, from the size of its matrix products."""

from dataclasses import dataclass
from math import ceil, pi, radians
from time import perf_counter

import torch

from cryoprob.fourier.bands import full_band
from cryoprob.inference.schedule import Schedule

__all__ = ["Estimate", "estimate", "product_rate"]

_STEPS = 15
"""Steps of a usual refinement."""

_FINER = 2
"""Work on finer grids and in the M-step over that of the coarsest grid (measured)."""

_CACHE, _CHUNK, _PROGRAM = 2**30, 2**27, 4.5e8


@dataclass(frozen=True)
class Estimate:
    """Of a fit with default settings.

    Attributes
    ----------
    memory
        Bytes at the most.
    start_s, refine_s
        Seconds of the starts from nothing, and of a refinement on this machine.
    """

    memory: float
    start_s: float
    refine_s: float


def estimate(n: int, box: int, schedule: Schedule, rate: float) -> Estimate:
    """Memory and time for ``n`` images, with ``rate`` multiplications and additions a second.

    Within a factor of two or three: how far posteriors are sharp decides how much of the finer
    grids is searched.
    """
    step = radians(60 / 2**schedule.coarse_order)
    radius = min(ceil(1.8 / (0.4 * step)), box // 2 - 1)
    shifts = pi * (schedule.shift_extent / schedule.shift_step) ** 2
    refine = _STEPS * n * (1 + _FINER) * _work(schedule.coarse_order, box, radius, shifts)
    small, last = min(box, schedule.start_box), schedule.start_radius
    reach = schedule.shift_extent * 0.5 * 4 * last / small
    drawn = schedule.start_steps * min(n, schedule.start_images) + 8 * min(n, 2000)
    start = schedule.starts * drawn * 2 * _work(2, small, last, max(1, pi * reach**2))
    return Estimate(_memory(n, box), start / rate, refine / rate)


def product_rate(seconds: float = 0.2) -> float:
    """Multiplications and additions a second of torch's matrix product on this machine."""
    left, right = torch.ones(512, 512), torch.ones(512, 4608)
    left @ right
    count, began = 0, perf_counter()
    while perf_counter() - began < seconds:
        left @ right
        count += 1
    return 2 * left.shape[0] * right.numel() * count / (perf_counter() - began)


def _work(order: int, box: int, radius: int, shifts: float) -> float:
    """Multiplications and additions for one image on a whole grid of poses."""
    numbers = 2 * len(full_band(box).prefix(radius))
    return float(2 * 72 * 8**order * shifts * numbers)


def _memory(n: int, box: int) -> float:
    """Bytes: program, coefficients, chunks of images and of slices, sums over the padded grid."""
    numbers = len(full_band(box))
    cache = min(_CACHE, 8 * n * numbers)
    chunk = min(_CHUNK, 12 * n * numbers)
    return _PROGRAM + cache + 3 * chunk + 170 * (2 * box) ** 3 / 2
