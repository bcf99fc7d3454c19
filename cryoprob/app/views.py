"""Where images are seen from, as each family's q has it: masses on the sphere."""

import torch
from torch import Tensor

from cryoprob.app.posteriors import Directions
from cryoprob.inference.cells import masses_of
from cryoprob.inference.compare import gridded
from cryoprob.inference.e_step import chunks, neighborhood
from cryoprob.inference.evidence import scores
from cryoprob.inference.half import Half
from cryoprob.inference.levels import Level
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.treatments.base import Near
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.uniform_rotation import RotationGridPrior
from cryoprob.particles import ParticleStack

__all__ = ["family_views"]

_ORDER = 2


def family_views(
    half: Half, stack: ParticleStack, index: Tensor, plan: Schedule, symmetry: str
) -> Directions:
    """Masses of viewing directions for images ``index``, as a fitted guide's q has them."""
    model = gridded(half.model, plan, _ORDER, symmetry)
    rotation = model.rotation
    assert isinstance(rotation, RotationGridPrior)
    if half.guide.rotation.enumerates:
        volume = half.guide.volume.maps
        parts = [p.log_posterior.logsumexp(1) for p in scores(model, volume, stack, index)]
        log_mass = torch.cat(parts)
        if isinstance(half.guide.rotation, Near):
            log_mass = _reached(half, model, stack, index, log_mass)
    else:
        like = half.model.noise.sigma2
        band = half.guide.band(half.model)
        batch = stack.batch(index, band, like.dtype, like.device)
        with torch.no_grad():
            half.guide.forget()
            log_mass = masses_of(half.guide, batch, Level.of(model)).rotation
    seen, place = torch.unique(rotation.cells() // rotation.grid.n_psi, return_inverse=True)
    mass = log_mass.exp().float()
    mass = mass.new_zeros(len(mass), len(seen)).index_add_(1, place, mass)
    return Directions(rotation.grid.directions()[seen.cpu()], mass.cpu())


def _reached(
    half: Half, model: ParticleModel, stack: ParticleStack, index: Tensor, log_mass: Tensor
) -> Tensor:
    """The masses [n, Q] of the cells that a local search sums over, the others left out."""
    rotation, inside = model.rotation, torch.zeros_like(log_mass, dtype=torch.bool)
    assert isinstance(rotation, RotationGridPrior)
    place, cells = {int(image): row for row, image in enumerate(index)}, rotation.cells()
    column = cells.new_full((len(rotation.grid),), -1)
    column[cells] = torch.arange(len(cells), device=cells.device)
    with torch.no_grad():
        for images in chunks(model, stack, index):
            near = neighborhood(model, half.guide, stack, images)
            rows = cells.new_tensor([place[int(image)] for image in images.index])
            at = column[near.cell]
            inside[rows[near.row][at >= 0], at[at >= 0]] = True
    return log_mass.masked_fill(~inside, -torch.inf).log_softmax(1)
