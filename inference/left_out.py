"""What scores at the centers of cells, in a part of the band, leave out of the poses inside."""

import torch
from torch import Tensor

from cryoprob.fourier.bands import Band
from cryoprob.inference.levels import Level
from cryoprob.inference.regions import Source
from cryoprob.inference.statistics import reals
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel

__all__ = ["left_above", "left_out", "peaks", "shells_of", "whitened"]

_BYTES = 2**25

_ROUNDING = 16
"""Of a squared distance worked out from squared norms, in units of the precision times these."""


def left_out(model: ParticleModel, source: Source, levels: list[Level]) -> list[Tensor]:
    """How far the slices of the finest poses in a cell are from that of its center, per shell.

    For the cells of each of ``levels`` but the finest, [Q, S]. The center's slice counts up to the
    level's ``radius`` only; above it, these are the norms of the slices themselves. Distances are
    exact maxima over the poses of the next finer grid, and are added up from grid to grid.

    They are the same for all images; :func:`whitened` says what they are to each. The slices of
    every grid are formed once, a block at a time; what is held are these tables.
    """
    tables: list[Tensor] = []
    largest = [max(level.radius for level in levels[: n + 1]) for n in range(len(levels))]
    far, strong = None, None
    for above, below, radius in reversed(list(zip(levels, levels[1:], largest, strict=False))):
        far, strong = _step(model, source, above, below, radius, far, strong)
        tables.append(torch.cat([far[:, : above.radius + 1], strong[:, above.radius + 1 :]], 1))
    return tables[::-1]


def left_above(band: Band, slices: Tensor, radius: int) -> Tensor:
    """The same for finest poses of slices [C, M] that are scored up to ``radius``, [C, S]."""
    found = _norms(slices, shells_of(band))
    found[:, : radius + 1] = 0
    return found


def peaks(band: Band, transfer: Tensor) -> Tensor:
    """The largest of images' ``transfer`` [n, M] in each shell, [n, S]."""
    return torch.stack([transfer[:, shell].amax(1) for shell in shells_of(band)], 1)


def whitened(peak: Tensor, left: Tensor) -> Tensor:
    """What tables [C, S] are to images whose weights are at most ``peak`` [U, S], [U, C, S]."""
    return peak.sqrt()[:, None] * left


def shells_of(band: Band) -> list[slice]:
    """The places of each shell's coefficients in a band."""
    ends = torch.bincount(band.shell, minlength=band.radius + 1).cumsum(0).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _step(
    model: ParticleModel,
    source: Source,
    above: Level,
    below: Level,
    radius: int,
    far: Tensor | None,
    strong: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """From the distances [Q', R'] and norms [Q', S] of a grid to those of the one above it.

    Distances up to shell ``radius``; None of the finest grid: no distance, and its own norms.
    """
    band = source.slicer.band
    shells = shells_of(band)
    inside = shells[: radius + 1]
    moves = reals(shift_phase(band, _quarters(above, below), model.pixel_size).conj())
    size = max(1, _BYTES // (8 * 16 * len(band)))
    found_far, found_strong = [], []
    for cells in torch.arange(len(above.rotation.grid), device=moves.device).split(size):
        children = above.rotation.grid.children(cells)
        around = source.slicer.sample(source.grid, below.rotation.matrices(children.flatten()))
        center = source.slicer.sample(source.grid, above.rotation.matrices(cells))
        norms = _norms(around, shells)
        away = _distances(around, center, norms, moves, inside)
        if far is not None:
            away += far[children.flatten(), : len(inside)]
        norms = norms if strong is None else strong[children.flatten()]
        found_far.append(away.unflatten(0, children.shape).amax(1))
        found_strong.append(norms.unflatten(0, children.shape).amax(1))
    return torch.cat(found_far), torch.cat(found_strong)


def _distances(
    around: Tensor, center: Tensor, norms: Tensor, moves: Tensor, shells: list[slice]
) -> Tensor:
    """The largest distance, over shifts, of slices [8 C, M] from their centers' [C, M], per shell.

    ``|a m - b|^2 = |a|^2 + |b|^2 - 2 Re <b, a m>``, and its rounding, lest it be too small.
    """
    count = shells[-1].stop
    product = around[:, :count].unflatten(0, (len(center), -1)) * center[:, None, :count].conj()
    product = reals(product.flatten(0, 1))
    both = norms[:, : len(shells)].square()
    both += _norms(center, shells).square().repeat_interleave(len(around) // len(center), 0)
    both *= 1 + _ROUNDING * torch.finfo(both.dtype).eps
    parts = [slice(2 * shell.start, 2 * shell.stop) for shell in shells]
    least = [(product[:, part] @ moves[:, part].T).amin(1) for part in parts]
    return both.sub_(torch.stack(least, 1), alpha=2).clamp_(min=0).sqrt_()


def _norms(slices: Tensor, shells: list[slice]) -> Tensor:
    """Norms of slices [K, M] in each shell, [K, S]."""
    power = slices.abs().square()
    return torch.stack([power[:, shell].sum(1) for shell in shells], 1).sqrt_()


def _quarters(above: Level, below: Level) -> Tensor:
    """Shifts of a cell's children relative to its center, [4, 2]."""
    children = above.shift.grid.children(torch.zeros((), dtype=torch.long))
    return below.shift.points()[children] - above.shift.points()[0]
