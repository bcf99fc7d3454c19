"""Upper bounds of the log joint from scores of a part of the band, at the centers of cells.

A score leaves something out: shells above its band, and how slices inside a cell differ from that
of its center. ``left`` is the largest whitened norm of that. With the image ``x`` and a prediction
``p``, both whitened, the log joint over noise is ``(|x|^2 - |x - p|^2) / 2`` and the prior; a
pose's prediction is the scored one plus something of a norm of at most ``left``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from cryoprob.inference.statistics import reals

__all__ = ["BOUNDS", "Block", "Bound", "Cells", "Points", "Probable", "floor", "margin"]

_SIGMAS = 4.0


@dataclass(frozen=True, eq=False)
class Block:
    """Shifted images against the centers of cells, scored in a band.

    Attributes
    ----------
    filtered, image
        Images filtered and shifted back, [k, m] complex, and which of the U images they are.
    slices, energy
        At the centers, [C, m] complex, and |slices|^2 / 2.
    transfer
        ``c^2 / sigma2``, [U, m].
    power
        Whitened power of the images in the shells of the whole band, [U, S].
    shells
        Places of the scored shells' coefficients, at most S.
    left
        Whitened norms of what the scores leave out, [U, C, S], or None.
    """

    filtered: Tensor
    image: Tensor
    slices: Tensor
    energy: Tensor
    transfer: Tensor
    power: Tensor
    shells: list[slice]
    left: Tensor | None

    def gain(self, part: slice = slice(None)) -> Tensor:
        """Log likelihood over noise of a part of the coefficients, [k, C]."""
        cross = reals(self.filtered[:, part]) @ reals(self.slices[:, part]).T
        return cross.sub_((self.transfer[:, part] @ self.energy[:, part].T)[self.image])


class Bound(ABC):
    """A way to bound.

    Attributes
    ----------
    inside
        It speaks for all poses inside a cell, not for its center alone.
    """

    inside: bool

    @abstractmethod
    def upper(self, block: Block) -> Tensor:
        """The log likelihood over noise, in the whole band, is at most this, [k, C]."""


class Points(Bound):
    """The residual's remaining terms are not negative: Zhong et al. 2020, algorithm 1.

    For the center of a cell this always holds.
    """

    inside = False

    def upper(self, block: Block) -> Tensor:
        """Scores, and half the image's power above their band."""
        above = block.power[:, len(block.shells) :].sum(1) / 2
        return block.gain().add_(above[block.image, None])


class Probable(Bound):
    """What a signal explains of itself plus noise: Punjani et al. 2017.

    It holds for the pose of the image's own signal at odds of 3e-5 (four standard deviations).
    """

    inside = True

    def upper(self, block: Block) -> Tensor:
        """Scores, and the margin of what they leave out."""
        assert block.left is not None
        more = margin(block.left.square().sum(2).sqrt())
        return block.gain().add_(more[block.image])


class Cells(Bound):
    """No vector of a given norm explains more than one along the residual (Cauchy and Schwarz).

    Shell by shell, for all poses inside a cell, always.
    """

    inside = True

    def upper(self, block: Block) -> Tensor:
        """The image's power, less the energy that no pose inside the cell gets rid of."""
        assert block.left is not None
        scored, power = len(block.shells), block.power[:, None]
        above = power - floor(power, block.left)
        total = (above[..., scored:].sum(2) / 2)[block.image]
        if not block.left[..., :scored].any():
            return total.add_(block.gain())
        for number, shell in enumerate(block.shells):
            whole, left = power[block.image, :, number], block.left[block.image, :, number]
            total += (whole - floor(whole - 2 * block.gain(shell), left)) / 2
        return total


def margin(left: Tensor) -> Tensor:
    """Nats by which a signal may explain more with ``left`` than without: ``B^2 / 2 + 4 B``.

    An image is prediction plus white noise; a part B of the prediction explains ``B^2 / 2`` and
    the noise along it, which is below ``4 B`` at odds of 3e-5 against. (Punjani et al. 2017,
    Nat. Methods 14, 290, supplement.)
    """
    return left.square() / 2 + _SIGMAS * left


def floor(energy: Tensor, left: Tensor) -> Tensor:
    """Least energy ``|x - p|^2`` of predictions within ``left`` of one that has ``energy``."""
    return (energy.clamp(min=0).sqrt() - left).clamp(min=0).square()


BOUNDS: dict[str, Bound] = {"points": Points(), "probable": Probable(), "cells": Cells()}
"""By name."""
