"""Residual layers on even waves, forward and backward by matrix products in little memory."""

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["parity_layers"]

_ROWS = 2048
"""Points that go through all layers together: what a core's caches hold of their units."""


def parity_layers(
    points: Tensor, waves: Tensor, first: Tensor, moved: Tensor, *weights: Tensor
) -> tuple[Tensor, Tensor]:
    """An even and an odd function of points, of n cases, each [n, m].

    ``h = relu(cos(x) first + moved)``, then ``h = relu(h W + b)`` for each inner layer, at phases
    ``x = points waves``; of ``(f, g) = h U + c`` are ``even = sum_j f_j cos(x_j)`` and
    ``odd = sum_j g_j sin(x_j)``.

    Parameters
    ----------
    points
        [m, d]; alike for all cases.
    waves
        [n, d, F], radians per unit of the points.
    first, moved
        [F, H], and [n, H]: bias of the first layer, of each case.
    weights
        W [H, H], b [H] of every inner layer; U [H, 2 F], c [2 F] of the output. All weights and
        ``moved`` are of one type, that of the matrix products.

    Notes
    -----
    For the gradients the waves and the layers' outputs are kept, ``m n (2 F + H layers)`` numbers;
    without them, those of one case. Every step backward works in place, a few thousand points at a
    time. There are no second derivatives.
    """
    given = (waves, first, moved, *weights)
    kept = torch.is_grad_enabled() and any(v.requires_grad for v in given)
    found = _Layers.apply(kept, points, *given)  # type: ignore[no-untyped-call]
    return cast(tuple[Tensor, Tensor], found)


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        kept: bool,
        points: Tensor,
        waves: Tensor,
        first: Tensor,
        moved: Tensor,
        *weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        size = len(points)
        share, cases = _share(size, len(waves)), len(waves)
        even, odd = waves.new_empty(2, cases, size).unbind()
        held = (cases if kept else share) * size
        hidden = first.new_empty(len(weights) // 2, held, first.shape[1])
        wide = first.shape[0]
        trig = first.new_empty(held, 2 * wide)
        for low in range(0, cases, share):
            some, count = slice(low, low + share), min(share, cases - low) * size
            rows = slice(low * size, low * size + count) if kept else slice(count)
            phase = (points @ waves[some]).flatten(0, 1)
            trig[rows, :wide] = phase.cos()
            trig[rows, wide:] = phase.sin_()
            units = [layer[rows] for layer in hidden]
            found = _forward(trig[rows, :wide], units, first, moved[some], weights)
            parts = (found * trig[rows]).unflatten(1, (2, wide)).sum(-1)
            even[some], odd[some] = parts.unflatten(0, (-1, size)).unbind(-1)
        if kept:
            ctx.save_for_backward(points, first, hidden, trig, *weights)
        return even, odd

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, even: Tensor, odd: Tensor) -> tuple[Tensor | None, ...]:
        points, first, hidden, trig, *weights = ctx.saved_tensors
        (cases, size), turning = even.shape, ctx.needs_input_grad[2]
        share = _share(size, cases)
        sums = [torch.zeros_like(w, dtype=even.dtype) for w in (first, *weights)]
        moved = even.new_empty(cases, first.shape[1])
        turned = even.new_empty(cases, points.shape[1], len(first)) if turning else None
        scratch = first.new_empty(2, share * size, first.shape[1])
        outputs = first.new_empty(share * size, 2 * len(first))
        for low in range(0, cases, share):
            some, count = slice(low, low + share), min(share, cases - low) * size
            rows = slice(low * size, low * size + count)
            units, wave = [layer[rows] for layer in hidden], trig[rows]
            given, slope = outputs[:count], torch.stack([even[some], odd[some]], -1).flatten(0, 1)
            slope = slope.to(first)[..., None]
            torch.mul(slope, wave.unflatten(1, (2, -1)), out=given.unflatten(1, (2, -1)))
            there = _backward(units, given, weights, sums[1:], scratch[:, :count])
            sums[0] += wave[:, : len(first)].mT @ there
            moved[some] = there.unflatten(0, (-1, size)).sum(1)
            if turned is not None:
                factor = torch.addmm(weights[-1], units[-1], weights[-2])
                factor = slope * factor.unflatten(1, (2, -1))
                cosine, sine = wave.unflatten(1, (2, -1)).unbind(1)
                slopes = cosine * factor[:, 1] - sine * (factor[:, 0] + there @ first.mT)
                turned[some] = points.mT @ slopes.unflatten(0, (-1, size)).to(points)
        own = [total.to(first) for total in sums]
        return None, None, turned, own[0], moved.to(first), *own[1:]


def _share(size: int, cases: int) -> int:
    """How many cases go through the layers together."""
    return max(1, min(cases, _ROWS // max(1, size)))


def _forward(
    cosine: Tensor, units: list[Tensor], first: Tensor, moved: Tensor, weights: tuple[Tensor, ...]
) -> Tensor:
    """Fill the units of every layer; their outputs [rows, 2 F]."""
    torch.mm(cosine, first, out=units[0])
    units[0].unflatten(0, (len(moved), -1)).add_(moved[:, None])
    for layer, unit in enumerate(units):
        unit.relu_()
        matrix, shift = weights[2 * layer : 2 * layer + 2]
        if layer + 1 < len(units):
            torch.addmm(shift, unit, matrix, out=units[layer + 1])
    return torch.addmm(shift, unit, matrix)


def _backward(
    units: list[Tensor],
    given: Tensor,
    weights: list[Tensor],
    sums: list[Tensor],
    scratch: Tensor,
) -> Tensor:
    """Add the weights' gradients to ``sums``; the gradient before the first layer's relu."""
    free, other = scratch.unbind()
    for layer in reversed(range(len(units))):
        sums[2 * layer] += units[layer].mT @ given
        sums[2 * layer + 1] += given.sum(0)
        torch.mm(given, weights[2 * layer].mT, out=free)
        torch.ops.aten.threshold_backward.grad_input(free, units[layer], 0, grad_input=free)
        given, free, other = free, other, free
    return given
