"""What a noise model is: a spectrum for every image."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

__all__ = ["Noise"]


class Noise(nn.Module, ABC):
    """Gaussian noise of the images, independent in Fourier space.

    Attributes
    ----------
    sigma2
        Variance of a unitary coefficient per optics group and shell, [G, S].
    """

    sigma2: Tensor

    @abstractmethod
    def forward(self, group: Tensor) -> Tensor:
        """Variance per shell, [N, S], of images of optics groups [N]."""
