"""The solvent mask of a refinement: none, a sphere, a given map, or found in the map itself."""

from dataclasses import dataclass

from torch import Tensor

from cryoprob.checks import require
from cryoprob.io.mrc import read_map
from cryoprob.masks import automatic, sphere
from cryoprob.types import Maps

__all__ = ["Solvent"]


@dataclass(frozen=True, eq=False)
class Solvent:
    """Multiplies maps by a soft mask.

    Parameters
    ----------
    kind
        ``none``, ``sphere``, ``auto`` or ``given``.
    given
        The mask [D, D, D] of kind ``given``.
    """

    kind: str = "sphere"
    given: Tensor | None = None

    @classmethod
    def of(cls, word: str, box: int) -> "Solvent":
        """From the command line's word: ``none``, ``sphere``, ``auto`` or the path of a map.

        Raises
        ------
        InputError
            If the map cannot be read or has another box.
        """
        if word in ("none", "sphere", "auto"):
            return cls(word)
        mask, _ = read_map(word)
        got = f"{mask.shape[-1]} voxels"
        require(mask.shape[-1] == box, f"mask {word}", expected=f"{box} voxels a side", got=got)
        return cls("given", mask.clamp(0, 1))

    def mask(self, volume: Maps, pixel_size: float) -> Tensor | None:
        """The mask [D, D, D] for a map, or None."""
        box = volume.shape[-1]
        if self.kind == "none":
            return None
        if self.kind == "given":
            assert self.given is not None
            return self.given.to(volume)
        ball = sphere(box, 0.44 * box, 0.05 * box).to(volume)
        if self.kind == "sphere":
            return ball
        found = automatic(volume, pixel_size, extend_px=3, edge_px=5).to(volume)
        return found * ball

    def __call__(self, volume: Maps, pixel_size: float) -> Maps:
        """The masked map."""
        mask = self.mask(volume, pixel_size)
        return volume if mask is None else volume * mask
