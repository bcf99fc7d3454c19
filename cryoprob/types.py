"""The shape vocabulary: every tensor's letters mean the same thing everywhere.

===  ==========================================================================
N    particles of a batch                D    box side in pixels or voxels
Q    rotations of a grid                 T    shifts of a grid
M    half-plane coefficients of a band   S    shells
G    optics (noise) groups               *    any leading batch dimensions
===  ==========================================================================
"""

from os import PathLike
from typing import TypeAlias

from torch import Size, Tensor

__all__ = ["Coefficients", "Images", "Maps", "PathType", "Rotations", "Shifts", "Sizes", "Tensor"]

Images: TypeAlias = Tensor
"""[*, D, D] real pixels (y, x)."""

Maps: TypeAlias = Tensor
"""[*, D, D, D] real voxels (z, y, x)."""

Coefficients: TypeAlias = Tensor
"""[*, M] complex half-plane coefficients, held times sqrt(2) (times 1 where self-conjugate)."""

Rotations: TypeAlias = Tensor
"""[*, 3, 3] molecule-to-laboratory matrices."""

Shifts: TypeAlias = Tensor
"""[*, 2] displacement (x, y) of the particle from the image center, Angstrom."""

Sizes: TypeAlias = Size | list[int] | tuple[int, ...]
"""A shape, as torch's distributions take it."""

PathType: TypeAlias = str | PathLike[str]
"""A path on disk."""
