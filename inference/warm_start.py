"""Any volume started from a map: weights that give its slices, whatever the conformation."""

from math import cos, pi
from typing import Any

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.geometry.rotations import random_rotations
from cryoprob.models.conformations.base import Conformation
from cryoprob.models.volumes.base import Volume
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.types import Maps

__all__ = ["imitate"]

_SLICES = 32


def imitate(
    volume: Volume,
    start: Tensor,
    density: Maps,
    conformation: Conformation | None,
    *,
    generator: torch.Generator,
    steps: int = 300,
    rate: float = 0.1,
) -> Tensor:
    """Coefficients of a volume whose slices are near those of a map, by Adam on random slices.

    Squared errors count alike in all shells, so that the strong ones come first: shells of little
    power are left to the images.

    Parameters
    ----------
    volume
        Which is differentiable in its coefficients.
    start
        Coefficients to begin with.
    density
        The map [D, D, D].
    conformation
        Its prior; draws of it all give the map.
    generator
        Of views and conformations.
    steps, rate
        Of Adam, in units of a coefficient's usual size; the rate falls to zero.

    Raises
    ------
    InputError
        If the map is zero.
    """
    got = "a map of zeros"
    require(bool(density.any()), "reference", expected="a map of a molecule", got=got)
    kind: dict[str, Any] = {"dtype": density.dtype, "device": density.device}
    aim = FourierVoxels(density.shape[-1], radius=volume.band.radius, **kind)
    found = start.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([found])
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * volume.unit * (1 + cos(pi * step / steps)) / 2
        turns = random_rotations(_SLICES, generator, density.dtype).to(density.device)
        states = _drawn(conformation, generator)
        wanted = aim.slices(density, turns)
        error = (volume.slices(found, turns, states) - wanted).abs().square().sum()
        optimizer.zero_grad()
        (error / wanted.abs().square().sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return found.detach()


def _drawn(conformation: Conformation | None, generator: torch.Generator) -> Tensor | None:
    """Normal numbers as far apart as the prior's, one row a slice."""
    if conformation is None:
        return None
    spread = conformation.prior().stddev
    drawn = torch.randn(_SLICES, len(spread), generator=generator, dtype=torch.float64)
    return drawn.to(spread) * spread
