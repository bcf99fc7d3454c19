"""The symmetric loss of CryoAI: an image, and the same turned by 180 degrees."""

from dataclasses import replace

import torch
from torch import Tensor

from cryoprob.fourier.gaussian_map import AnyMap
from cryoprob.inference.guide import Guide, Poses
from cryoprob.inference.objectives.base import Weighed, log_terms
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import Batch
from cryoprob.types import Rotations, Shifts

__all__ = ["Symmetric", "turned", "turned_back"]


def turned(batch: Batch, where: Tensor | None = None) -> Batch:
    """The batch with every image (``where`` [N] says so) turned by 180 degrees in its plane.

    The transform of a turned image is the complex conjugate; the CTF is even and stays.
    """
    other = batch.image.conj().resolve_conj()
    if where is not None:
        other = torch.where(where[:, None], other, batch.image)
    return replace(batch, image=other)


class Symmetric(Weighed):
    """The better of two candidates per image, or their log mean: both are read off by q.

    The encoder looks at the image and at the image turned by 180 degrees; what it says of the
    latter, turned back, is a second hypothesis for the former. It keeps encoders from minima
    with a spurious planar symmetry. Levy et al. 2022 (CryoAI), sec. 3.4.

    Parameters
    ----------
    smooth
        ``log (p_1 + p_2) / 2`` of the candidates (between the better one minus log 2, and it), in
        place of the better one.
    """

    kind = "profile_log_joint"

    def __init__(self, *, smooth: bool = False) -> None:
        self.smooth = smooth

    def __call__(self, model: ParticleModel, guide: Guide, volume: AnyMap, batch: Batch) -> Tensor:
        """The objective of each image, [N]."""
        both = self._candidates(model, guide, volume, batch)
        if self.smooth:
            return torch.logsumexp(both, 0) - torch.log(both.new_tensor(2.0))
        return both.max(0).values

    def flipped(self, model: ParticleModel, guide: Guide, volume: AnyMap, batch: Batch) -> Tensor:
        """Images whose second candidate is the better one, [N]."""
        both = self._candidates(model, guide, volume, batch)
        return both[1] > both[0]

    def _candidates(
        self, model: ParticleModel, guide: Guide, volume: AnyMap, batch: Batch
    ) -> Tensor:
        """Of the image and of the turned one, [2, N]."""
        ratios = []
        for poses in (guide.draw(batch, 1), _back(guide.draw(turned(batch), 1))):
            terms = log_terms(model, guide, volume, poses, batch)
            ratios.append((poses.log_weight.exp() * terms.over(poses, self.beta)).sum(0))
        return torch.stack(ratios)


def turned_back(rotation: Rotations, shift: Shifts) -> tuple[Rotations, Shifts]:
    """Poses [*, 3, 3] and [*, 2] of images, from those of the images turned by 180 degrees."""
    half = torch.tensor([-1.0, -1.0, 1.0]).to(rotation)
    return half[:, None] * rotation, -shift


def _back(poses: Poses) -> Poses:
    rotation, shift = turned_back(poses.rotation, poses.shift)
    return replace(poses, rotation=rotation, shift=shift)
