"""What a fit says of the particles' conformations: classes or coordinates, and maps of them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cryoprob.types import Maps

__all__ = ["States"]


@dataclass(eq=False)
class States:
    """The conformation of every image, and maps of some conformations.

    Attributes
    ----------
    shares
        Posterior of the classes, [N, K]; of no columns where there are none.
    mean, std
        Posterior mean and standard deviation of the coordinates, [N, size]; of no columns where
        there are none.
    maps
        By file name (without ``.mrc``): ``class_1`` ... of classes, ``path_01`` ... along the
        first principal axis of the coordinates.
    places
        Coordinates of the maps ``path_01`` ..., [M, size].
    """

    shares: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    std: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    maps: dict[str, Maps] = field(default_factory=dict)
    places: Tensor = field(default_factory=lambda: torch.zeros(0, 0))

    @property
    def heaviest(self) -> int:
        """The class of most images."""
        return int(self.shares.sum(0).argmax())

    def columns(self) -> dict[str, Tensor]:
        """Columns of particles.star: RELION's class number, shares and coordinates."""
        found = {}
        if self.shares.numel():
            found["rlnClassNumber"] = self.shares.argmax(1) + 1
        for name, values in (
            ("cryoprobClassShare", self.shares),
            ("cryoprobCoordinate", self.mean),
            ("cryoprobCoordinateStd", self.std),
        ):
            for k, column in enumerate(values.unbind(1), 1):
                found[f"{name}{k}"] = column
        return found
