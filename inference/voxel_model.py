"""A model with a map of voxels in place of its volume: what searches and exact sums work on."""

from typing import Any

from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.types import Maps

__all__ = ["voxel_model"]


def voxel_model(model: ParticleModel, density: Maps) -> ParticleModel:
    """Voxels of a map [D, D, D]'s size, in the model's band; poses and noise are the model's.

    Raises
    ------
    InputError
        If contrast or defocus is a latent site.
    """
    kind: dict[str, Any] = {"dtype": density.dtype, "device": density.device}
    volume = FourierVoxels(density.shape[-1], radius=model.band.radius, **kind)
    rest = model.noise, model.pixel_size, model.known_contrast
    return ParticleModel(volume, model.rotation, model.shift, *rest)
