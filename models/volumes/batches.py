"""Batches of maps, rotations and conformations, broadcast against each other."""

from collections.abc import Callable

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.types import Coefficients, Rotations

__all__ = ["checked", "each_map", "in_a_row"]

_Slices = Callable[[Tensor, Rotations, Tensor | None], Coefficients]


def each_map(
    slices: _Slices,
    coefficients: Tensor,
    events: int,
    rotation: Rotations,
    conformation: Tensor | None,
) -> Coefficients:
    """Slices [*, m] of coefficients that have batch dimensions left of their ``events`` own ones.

    ``slices`` is the function for one map. The three batches are broadcast; maps go one by one.
    """
    axis = coefficients.dim() - events  # of the first batch dimension, from the batch's end
    if axis == 0:
        return slices(coefficients, rotation, conformation)
    count, rotation = len(coefficients), rotation[(None,) * (axis + 2 - rotation.dim())]
    if count == 1:
        return each_map(slices, coefficients[0], events, rotation, conformation)
    turns, states = _shares(rotation, axis + 2, count), [conformation] * count
    if conformation is not None and conformation.dim() > axis:
        states = list(_shares(conformation, axis + 1, count))
    parts = zip(coefficients, turns, states, strict=True)
    return torch.stack([each_map(slices, c, events, r, z) for c, r, z in parts], -1 - axis)


def _shares(values: Tensor, axis: int, count: int) -> tuple[Tensor, ...]:
    """What each of ``count`` maps gets of values whose dimension ``-axis`` goes with the maps."""
    parts = values.movedim(-axis, 0)
    return parts.expand(count, *parts.shape[1:]).unbind()


def in_a_row(
    rotation: Rotations, conformation: Tensor | None, size: int
) -> tuple[torch.Size, Rotations, Tensor]:
    """The broadcast batch, its rotations [n, 3, 3] and its conformations [n, size].

    Raises
    ------
    InputError
        If a conformation is wanted and there is none, or one of another size.
    """
    batch = rotation.shape[:-2]
    state = rotation.new_zeros(0) if size == 0 else checked(conformation, size).to(rotation)
    batch = torch.broadcast_shapes(batch, state.shape[:-1])
    turns = rotation.expand(*batch, 3, 3).reshape(-1, 3, 3)
    count = len(turns)
    return batch, turns, state.expand(*batch, size).reshape(count, size)


def checked(conformation: Tensor | None, size: int) -> Tensor:
    """The conformation [*, size].

    Raises
    ------
    InputError
        If there is none, or one of another size.
    """
    got = "none" if conformation is None else f"a tensor of shape {list(conformation.shape)}"
    fits = conformation is not None and conformation.dim() > 0 and conformation.shape[-1] == size
    require(fits, "conformation", expected=f"[..., {size}]", got=got)
    assert conformation is not None
    return conformation
