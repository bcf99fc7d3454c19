"""Encoders: from a batch of images to features, through one preparation of the images."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from cryoprob.checks import require
from cryoprob.fourier.bands import full_band
from cryoprob.inference.encoders.centering import Centering
from cryoprob.particles import Batch

__all__ = ["Encoder", "fast_precision"]


class Encoder(nn.Module, ABC):
    """Features of images; the image that it sees is whitened, phase-flipped and low-passed.

    Parameters
    ----------
    box
        Pixels along a side of the image that it sees; the batch's are cropped to it in Fourier
        space.
    sigma2
        Noise variance per shell of the batch's box, [S], by which images are whitened.
    matched
        Weight by the whole CTF, as a template's score does, in place of its sign only: little is
        then heard of frequencies that hold noise alone.
    centering
        Moves images to the middle first.
    precision
        Type of the encoder's own matrix products, default that of the images; bfloat16 is about
        four times as fast where the processor has it. Features are of the images' type.

    Attributes
    ----------
    size
        Number of features.
    positions
        In-plane angles that have features of their own, P; a law's numbers are then read off
        position by position, by the same weights. One where features are of the whole image.
    """

    size: int
    positions: int = 1
    gain: Tensor

    def __init__(
        self,
        box: int,
        sigma2: Tensor,
        *,
        matched: bool = False,
        centering: Centering | None = None,
        precision: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        limit = 2 * (len(sigma2) - 2)
        fits = box % 2 == 0 and 4 <= box <= limit
        require(fits, "encoder box", expected=f"even, 4 to {limit}", got=str(box))
        self.box, self.matched, self.precision = box, matched, precision
        self.band = full_band(box).prefix(box // 2 - 1)
        self.centering = centering
        self.register_buffer("gain", sigma2[self.band.shell].rsqrt().clone())
        self._seen: tuple[Batch, Tensor] | None = None

    @abstractmethod
    def forward(self, coefficients: Tensor) -> Tensor:
        """Features of prepared coefficients [N, m] (complex, of :attr:`band`).

        [N, size], or [N, positions, size] where there are several.
        """

    def look(self, batch: Batch) -> Tensor:
        """Features of a batch, computed once until :meth:`forget`."""
        if self._seen is None or self._seen[0] is not batch:
            ready = self.prepare(batch)
            low, place = self.precision, ready.device.type
            with torch.autocast(place, low, enabled=low is not None):
                features = self(ready)
            self._seen = batch, features.to(ready.real.dtype)
        return self._seen[1]

    def forget(self) -> None:
        """Look anew at the next batch, even if it is the same (its graph may be used up)."""
        self._seen = None

    def prepare(self, batch: Batch) -> Tensor:
        """Whitened, phase-flipped (and centered) coefficients in the encoder's band, [N, m]."""
        inside = len(self.band)
        got = f"{batch.image.shape[-1]} coefficients"
        wanted = f"images of at least {inside} coefficients (shell {self.band.radius})"
        require(batch.image.shape[-1] >= inside, "encoder", expected=wanted, got=got)
        transfer = batch.ctf[:, :inside]
        weight = transfer if self.matched else transfer.sign()
        ready: Tensor = batch.image[:, :inside] * (weight * self.gain)
        if self.centering is None:
            return ready
        centered: Tensor = ready * self.centering(batch, batch.band.prefix(self.band.radius))
        return centered

    def pixels(self, coefficients: Tensor) -> Tensor:
        """Real images [N, box, box] of prepared coefficients."""
        return self.band.unpack(coefficients)

    def windowed(self, images: Tensor) -> Tensor:
        """Images times a round window with a soft edge, so that corners of noise do not count."""
        return images * _window(self.box).to(images)


def fast_precision(device: torch.device) -> torch.dtype | None:
    """bfloat16 where the device multiplies matrices faster in it, else None (the images' type)."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else None
    able = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if able() else None


def _window(box: int) -> Tensor:
    axis = torch.arange(box) - box // 2
    radius = (axis[:, None].square() + axis.square()).sqrt()
    inner, outer = 0.42 * box, 0.5 * box
    return ((outer - radius) / (outer - inner)).clamp(0, 1)
