"""Images moved to the middle by what another treatment says of their shifts."""

from torch import Tensor, nn

from cryoprob.checks import require
from cryoprob.fourier.bands import Band
from cryoprob.inference.treatments.base import Drawn
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.particles import Batch

__all__ = ["Centering"]


class Centering(nn.Module):
    """Takes the modes of the shifts' laws out of the images.

    What is left is about the middle and smaller than before, so that an encoder of the rotation
    has fewer images to tell apart. No gradient passes: the shift's own law teaches its encoder.

    Parameters
    ----------
    shift
        The guide's treatment of the shift.
    pixel_size
        Angstrom per pixel of the batch's box.
    """

    def __init__(self, shift: Drawn, pixel_size: float) -> None:
        super().__init__()
        right = pixel_size > 0
        require(right, "pixel size", expected="a positive length (Angstrom)", got=f"{pixel_size}")
        self.shift, self.pixel_size = shift, pixel_size

    def forward(self, batch: Batch, band: Band) -> Tensor:
        """Factors [N, m] that undo the shifts at the band's frequencies (of the batch's box)."""
        shift = self.shift.mode(batch).detach()
        return shift_phase(band, shift, self.pixel_size).conj().resolve_conj()
