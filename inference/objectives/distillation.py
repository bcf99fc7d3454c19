"""Learning from exact posteriors: draws of the grid's, image by image."""

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.gaussian_map import AnyMap
from cryoprob.geometry.rotations import about_z
from cryoprob.inference.guide import Guide
from cryoprob.inference.objectives.base import Objective
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import Batch
from cryoprob.types import Rotations, Shifts

__all__ = ["Distillation"]


class Distillation(Objective):
    """Mean ``log q`` at S draws of each real image's exact posterior.

    Up to a constant ``-KL(p(pose | image) || q)``, at the volume of the E-step that drew them.

    Parameters
    ----------
    rotation, shift
        Draws for all images of the stack, [N, S, 3, 3] and [N, S, 2] (Angstrom).
    """

    kind = "inclusive"

    def __init__(self, rotation: Rotations, shift: Shifts) -> None:
        got = f"shapes {list(rotation.shape)}, {list(shift.shape)}"
        fits = rotation.dim() == 4 and rotation.shape[:2] == shift.shape[:2]
        require(fits, "posterior draws", expected="[N, S, 3, 3] and [N, S, 2]", got=got)
        self.rotation, self.shift = rotation, shift

    def __call__(self, model: ParticleModel, guide: Guide, volume: AnyMap, batch: Batch) -> Tensor:
        """Mean log q at each image's draws, [N]."""
        guide.forget()
        rows = self._rows(batch.index.to(self.rotation.device))
        rotation = self.rotation[rows].transpose(0, 1).to(batch.ctf)
        shift = self.shift[rows].transpose(0, 1).to(batch.ctf)
        return guide.log_score(batch, rotation, shift).mean(0)

    def turned(self, index: Tensor, quarters: Tensor) -> Objective:
        """The draws of these images, turned along."""
        rows = self._rows(index.to(self.rotation.device))
        turn = about_z(90.0 * quarters.to(self.rotation))[:, None]
        shift = (turn[..., :2, :2] @ self.shift[rows][..., None])[..., 0]
        return _OfBatch(turn @ self.rotation[rows], shift)

    def _rows(self, index: Tensor) -> Tensor:
        return index


class _OfBatch(Distillation):
    """Draws of the images of one batch, in its order."""

    def _rows(self, index: Tensor) -> Tensor:
        return torch.arange(len(index), device=index.device)
