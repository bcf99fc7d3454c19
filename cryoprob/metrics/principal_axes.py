"""Principal axes of a cloud of points."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoprob.checks import require

__all__ = ["Axes", "principal_axes"]


@dataclass(frozen=True, eq=False)
class Axes:
    """Principal axes of coordinates.

    Attributes
    ----------
    mean
        [size].
    axes
        Rows of unit length, most variance first, [size, size].
    variance
        Along them, [size].
    """

    mean: Tensor
    axes: Tensor
    variance: Tensor

    @property
    def share(self) -> Tensor:
        """Of the whole variance, [size]; zeros where all values are the same."""
        whole = self.variance.sum()
        return self.variance / whole if whole > 0 else torch.zeros_like(self.variance)

    def project(self, values: Tensor) -> Tensor:
        """Coordinates [*, size] along the axes."""
        return (values - self.mean) @ self.axes.mT

    def at(self, coordinates: Tensor) -> Tensor:
        """Values [*, size] of coordinates along the axes."""
        return self.mean + coordinates @ self.axes


def principal_axes(values: Tensor) -> Axes:
    """Principal axes of values [N, size], each with its largest entry positive.

    Raises
    ------
    InputError
        If there are fewer than two values.
    """
    got = str(list(values.shape))
    require(values.dim() == 2 and len(values) > 1, "conformations", expected="[N, size]", got=got)
    mean = values.mean(0)
    _, sizes, axes = torch.linalg.svd(values - mean, full_matrices=False)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    variance = sizes.square() / (len(values) - 1)
    return Axes(mean, axes * largest.sign(), variance)
