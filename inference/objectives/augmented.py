"""Augmentation: every image turned in its plane by a random multiple of 90 degrees."""

from dataclasses import replace

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.gaussian_map import AnyMap
from cryoprob.fourier.quarter_turns import turn_coefficients, turn_even
from cryoprob.inference.guide import Guide
from cryoprob.inference.objectives.base import Objective
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.base import Treatment
from cryoprob.inference.treatments.known import Known
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import Batch

__all__ = ["Augmented", "turn_batch"]


def turn_batch(batch: Batch, quarters: Tensor) -> Batch:
    """The batch with its images turned by 90 degrees ``quarters`` [N] times; CTFs turn along."""
    image = turn_coefficients(batch.band, batch.image, quarters)
    return replace(batch, image=image, ctf=turn_even(batch.band, batch.ctf, quarters), optics=None)


class Augmented(Objective):
    """Another objective, at images each turned by 0, 90, 180 or 270 degrees at random.

    A particle lies on the grid in any direction, so a turned image is as good an image: pixels
    only change places, and its pose is the image's with psi raised by that angle. Encoders that
    do not turn with the image by their making (all but ``Polar``) see four times as many.

    Parameters
    ----------
    objective
        Of real images: ``Elbo``, ``Iwae``, ``ProfileLogJoint``, ``Symmetric`` or ``Distillation``.
    """

    def __init__(self, objective: Objective) -> None:
        self.objective, self.kind = objective, objective.kind
        self.is_density = objective.is_density

    def __call__(self, model: ParticleModel, guide: Guide, volume: AnyMap, batch: Batch) -> Tensor:
        """The objective of each turned image, [N].

        Raises
        ------
        InputError
            If a pose is tied to the image as it lies: given ones, and numbers per image.
        """
        parts = guide.rotation, guide.shift
        require(
            all(_turns_along(part) for part in parts),
            "guide",
            expected="poses that encoders read off the image (Amortized), or shifts of 0",
            got=", ".join(type(part).__name__ for part in parts),
            remedy="Leave Augmented out.",
        )
        quarters = torch.randint(4, (len(batch),)).to(batch.ctf.device)
        turned = turn_batch(batch, quarters)
        return self.objective.turned(batch.index, quarters)(model, guide, volume, turned)

    def weighted(self, beta: float) -> "Augmented":
        """Of the objective with this weight on its divergence."""
        return Augmented(self.objective.weighted(beta))


def _turns_along(part: Treatment) -> bool:
    return isinstance(part, Amortized) or isinstance(part, Known) and not part.values.any()
