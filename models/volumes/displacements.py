"""Maps from a conformation to a displacement of every site of a molecule, in Angstrom."""

from abc import ABC, abstractmethod
from math import prod

import torch
from torch import Tensor, nn

from cryoprob.checks import require

__all__ = ["Displacements", "LinearDisplacements", "ResidualDisplacements"]


class Displacements(nn.Module, ABC):
    """``z [*, size] -> [*, n, 3]`` in A, with its weights [P] given from outside.

    Attributes
    ----------
    size
        Numbers of the conformation.
    sites
        n.
    spread
        Standard deviation of the prior of each weight about its start, [P].
    """

    size: int
    sites: int
    spread: Tensor

    @abstractmethod
    def start(self, generator: torch.Generator) -> Tensor:
        """Fresh weights [P]."""

    @property
    @abstractmethod
    def center(self) -> Tensor:
        """Mean of the prior of the weights, [P]."""

    @abstractmethod
    def forward(self, weights: Tensor, conformation: Tensor) -> Tensor:
        """Displacements [*, n, 3] of conformations [*, size]."""


class LinearDisplacements(Displacements):
    """``sum_k z_k mode_k``: normal modes, or any other given or free ones.

    Parameters
    ----------
    modes
        [size, n, 3], A per unit of the conformation.
    spread
        Standard deviation of the prior of a component of a mode about the given one, A; 0 (the
        default) keeps the modes as they are, without weights.
    """

    modes: Tensor

    def __init__(self, modes: Tensor, spread: float = 0.0) -> None:
        super().__init__()
        fits = modes.dim() == 3 and modes.shape[-1] == 3 and spread >= 0
        got = f"{list(modes.shape)} and {spread:g}"
        require(fits, "modes", expected="[size, n, 3] and a spread of 0 or more", got=got)
        self.size, self.sites = modes.shape[:2]
        self.register_buffer("modes", modes.clone())
        free = modes.numel() if spread > 0 else 0
        self.register_buffer("spread", torch.full_like(modes.flatten()[:free], spread))

    @property
    def center(self) -> Tensor:
        """The given modes, if they are free."""
        return self.modes.flatten()[: len(self.spread)]

    def start(self, generator: torch.Generator) -> Tensor:
        """The given modes, if they are free."""
        return self.center.clone()

    def forward(self, weights: Tensor, conformation: Tensor) -> Tensor:
        """Displacements [*, n, 3] of conformations [*, size]."""
        modes = weights.view_as(self.modes) if len(self.spread) else self.modes
        moved = conformation @ modes.flatten(1)
        return moved.reshape(*moved.shape[:-1], self.sites, 3)


class ResidualDisplacements(Displacements):
    """A residual network of smooth units, which moves nothing at its start.

    ``h = tanh(A z + b)``, ``h <- h + tanh(B h + c)`` for each layer, ``C h - C h(0)``: the
    conformation 0 is the reference itself, for all weights.

    Parameters
    ----------
    size, sites
        Numbers of the conformation; n.
    width, layers
        Units, and residual layers after the first one.
    reach
        Standard deviation of the displacements that the prior makes likely, A, about.

    Notes
    -----
    papers: CryoFold, atomVAE (the displacement of a given structure by a network of z).
    """

    def __init__(
        self,
        size: int,
        sites: int,
        *,
        width: int = 128,
        layers: int = 2,
        reach: float = 5.0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        wanted, remedy = "one coordinate or more", "Give --set zdim=1 or more."
        require(size > 0, "conformation", expected=wanted, got=str(size), remedy=remedy)
        self.size, self.sites, self.width, self.layers = size, sites, width, layers
        inputs = [size, size, *[width] * (2 * layers)]
        wide = [torch.full((prod(s),), n**-0.5) for s, n in zip(self.shapes, inputs, strict=False)]
        wide.append(torch.full((prod(self.shapes[-1]),), reach * width**-0.5))
        self.register_buffer("spread", torch.cat(wide).to(device, dtype))

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the weights in a row."""
        width = self.width
        inner = [(width, width), (width,)] * self.layers
        return [(self.size, width), (width,), *inner, (width, 3 * self.sites)]

    @property
    def center(self) -> Tensor:
        """Zeros."""
        return torch.zeros_like(self.spread)

    def start(self, generator: torch.Generator) -> Tensor:
        """Weights [P] as the prior draws them, but zeros in the last layer."""
        drawn = torch.randn(len(self.spread), generator=generator, dtype=torch.float64)
        drawn[-prod(self.shapes[-1]) :] = 0
        return drawn.to(self.spread) * self.spread

    def forward(self, weights: Tensor, conformation: Tensor) -> Tensor:
        """Displacements [*, n, 3] of conformations [*, size]."""
        parts = weights.split([prod(s) for s in self.shapes])
        found = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        none = self._hidden(found, conformation.new_zeros(self.size))
        moved: Tensor = self._hidden(found, conformation) - none
        moved = torch.matmul(moved, found[-1])
        return moved.reshape(*moved.shape[:-1], self.sites, 3)

    def _hidden(self, parts: list[Tensor], conformation: Tensor) -> Tensor:
        hidden: Tensor = torch.tanh(conformation @ parts[0] + parts[1])
        for matrix, shift in zip(parts[2:-1:2], parts[3:-1:2], strict=True):
            hidden = hidden + torch.tanh(hidden @ matrix + shift)
        return hidden
