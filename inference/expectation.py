"""The E-step of any guide: one map or classes, contrast and defocus given or summed out."""

from torch import Tensor

from cryoprob.inference.class_e_step import class_e_step
from cryoprob.inference.e_step import e_step
from cryoprob.inference.guide import Guide
from cryoprob.inference.imaging_e_step import imaging_e_step
from cryoprob.inference.members import Expectation
from cryoprob.models.conformations.classes import Classes
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack

__all__ = ["expectation"]


def expectation(
    model: ParticleModel,
    guide: Guide,
    stack: ParticleStack,
    index: Tensor | None = None,
    *,
    symmetry: str = "C1",
    draws: int = 4,
) -> Expectation:
    """Posteriors of images ``index`` (default all), and the M-step's sums.

    ``draws`` per image are taken of a q that has a density and is not on a grid.

    Raises
    ------
    InputError
        If what is latent cannot be treated together.
    """
    if isinstance(model.conformation, Classes):
        return class_e_step(model, guide, stack, index, symmetry=symmetry)
    if guide.sums_imaging:
        return imaging_e_step(model, guide, stack, index, symmetry=symmetry)
    return Expectation.of(e_step(model, guide, stack, index, symmetry=symmetry, draws=draws))
