"""Maps to start from, read and brought onto the images' grid."""

from cryoprob.checks import require
from cryoprob.fourier.shells import low_pass
from cryoprob.fourier.transforms import crop_map
from cryoprob.io.mrc import read_map
from cryoprob.particles import ParticleStack
from cryoprob.types import Maps

__all__ = ["reference_map"]


def reference_map(path: str, stack: ParticleStack, low_pass_A: float) -> Maps:
    """A reference [D, D, D] in the images' box, low-passed.

    Raises
    ------
    InputError
        If it cannot be read, or its field of view is not the images'.
    """
    volume, pixel_size = read_map(path)
    field = volume.shape[-1] * pixel_size
    mine = stack.box * stack.pixel_size
    require(
        abs(field / mine - 1) < 0.01,
        f"reference {path}",
        expected=f"a field of view of {mine:.1f} A, as the images have",
        got=f"{volume.shape[-1]} voxels of {pixel_size:.4g} A = {field:.1f} A",
        remedy="Pad or crop the map, or correct its voxel size.",
    )
    return low_pass(crop_map(volume, stack.box), stack.pixel_size, low_pass_A)
