"""Means under a normal law by a few nodes."""

import torch
from numpy.polynomial.hermite_e import hermegauss
from torch import Tensor

__all__ = ["normal_rule"]


def normal_rule(count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes of the standard normal law, and their log weights; [count] (float64).

    Means of polynomials of degree ``2 count - 1`` are exact.
    """
    places, weights = (torch.from_numpy(part) for part in hermegauss(count))
    return places, (weights / weights.sum()).log()
