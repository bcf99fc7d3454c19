"""An encoder that reads how each image would change the neutral molecule."""

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from cryoprob.checks import InputError
from cryoprob.inference.encoders.base import Encoder
from cryoprob.inference.objectives.ring_correlation import ring_correlation
from cryoprob.inference.treatments.base import Drawn
from cryoprob.inference.treatments.volume import VolumeTreatment
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.volumes.gaussian_mixture import GaussianMixture
from cryoprob.particles import Batch

__all__ = ["Score"]


class Score(Encoder):
    """Gradient of an image's ring correlations in the neutral Gaussians' numbers, through layers.

    Chen and Ludtke 2021 (E2GMM): the image itself is not looked at. The gradient is taken at
    conformation 0 and at the modes of the poses, and brought to mean 0 and variance 1 image by
    image, where the paper does so for all of them together.

    Parameters
    ----------
    model, volume, rotation, shift
        The model, and the treatments of its volume and poses.
    kappa
        Weight of each ring, [S], as of ``RingCorrelation``.
    width, layers
        Hidden units, and layers of them.

    Raises
    ------
    InputError
        If the volume is not of Gaussians.
    """

    kappa: Tensor

    def __init__(
        self,
        model: ParticleModel,
        volume: VolumeTreatment,
        rotation: Drawn,
        shift: Drawn,
        *,
        kappa: Tensor,
        width: int = 256,
        layers: int = 3,
    ) -> None:
        like = model.noise.sigma2
        super().__init__(model.band.box, torch.ones_like(like[0]))
        self._seen_by = model, volume, rotation, shift  # not parts of it: others hold them
        self.size = width
        volumes = model.volume
        wanted, got = "a volume of Gaussians", type(volumes).__name__
        if not isinstance(volumes, GaussianMixture):
            raise InputError("score", expected=wanted, got=got)
        self.register_buffer("kappa", kappa.to(like), persistent=False)
        sizes = [volumes.own, *[width] * layers]
        pairs = zip(sizes, sizes[1:], strict=False)
        parts = [[nn.Linear(*pair), nn.LayerNorm(width), nn.ReLU()] for pair in pairs]
        self.body = nn.Sequential(*(layer for part in parts for layer in part))

    def prepare(self, batch: Batch) -> Tensor:
        """Standardized gradients, [N, inputs]."""
        model, volume, rotation, shift = self._seen_by
        assert isinstance(model.volume, GaussianMixture)
        neutral, band = model.volume.neutral(), model.band
        turns, moves = (part.mode(batch).detach() for part in (rotation, shift))
        factor = batch.ctf[:, : len(band)] * shift_phase(band, moves, model.pixel_size)
        images = batch.image[:, : len(band)]

        def score(own: Tensor, turn: Tensor, along: Tensor, image: Tensor) -> Tensor:
            found = neutral.slices(own, turn)
            return (ring_correlation(band, found * along, image) * self.kappa).sum()

        slopes = vmap(grad(score), in_dims=(None, 0, 0, 0))
        own = volume.coefficients.detach()[: model.volume.own]
        found = slopes(own, turns, factor, images)
        return nn.functional.layer_norm(found, found.shape[-1:], eps=1e-12)

    def forward(self, coefficients: Tensor) -> Tensor:
        """Features [N, size] of gradients [N, inputs]."""
        found: Tensor = self.body(coefficients)
        return found
