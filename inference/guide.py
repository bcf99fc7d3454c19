"""The guide: one treatment per latent site."""

from torch import nn

from cryoprob.checks import require
from cryoprob.inference.treatments.base import Treatment
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.point import Point
from cryoprob.models import sites
from cryoprob.particles import Batch

__all__ = ["Guide"]


class Guide(nn.Module):
    """Composes treatments site by site; a family of inference is a row of choices.

    Parameters
    ----------
    rotation, shift
        Treatments of the local sites.
    volume
        Treatment of the global site.

    Raises
    ------
    InputError
        If one of rotation and shift is known and the other is not (a mixture this version cannot
        run).
    """

    def __init__(self, *, rotation: Treatment, shift: Treatment, volume: Point) -> None:
        super().__init__()
        known = isinstance(rotation, Known), isinstance(shift, Known)
        require(
            known[0] == known[1],
            "guide",
            expected="rotation and shift both known, or both searched",
            got=f"rotation {type(rotation).__name__}, shift {type(shift).__name__}",
            remedy="Use Known for both, or Exact (or Local) for both.",
        )
        self.rotation, self.shift, self.volume = rotation, shift, volume

    def forward(self, batch: Batch) -> None:
        """Sample every site that is not enumerated."""
        self.volume(sites.VOLUME, batch)
        with sites.particles(batch):
            self.rotation(sites.ROTATION, batch)
            self.shift(sites.SHIFT, batch)
