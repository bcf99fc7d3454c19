"""Per-image amplitude and noise factors as known numbers."""

import torch
from torch import Tensor, nn

__all__ = ["Contrast"]


class Contrast(nn.Module):
    """Amplitude ``scale`` and noise factor ``spread`` of every image; ones when not estimated.

    The image is ``scale * CTF . shift . slice + spread * noise``. Exact EM re-estimates both; as a
    latent site the amplitude is :class:`~cryoprob.models.gaussian_contrast.GaussianContrast`.
    """

    scale: Tensor
    spread: Tensor

    def __init__(
        self,
        total: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(total, dtype=dtype, device=device))
        self.register_buffer("spread", torch.ones(total, dtype=dtype, device=device))

    def forward(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitude and noise factor of images ``index``, each [n]."""
        if not len(self.scale):
            ones = self.scale.new_ones(len(index))
            return ones, ones
        return self.scale[index], self.spread[index]
