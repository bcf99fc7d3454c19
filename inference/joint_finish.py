"""The end of gradient training: q of every image, the map of the mean conformation, a path."""

import torch
from torch import Tensor

from cryoprob.fourier.bands import full_band
from cryoprob.inference.build import noise_log_density
from cryoprob.inference.finish import verdict
from cryoprob.inference.half import Half
from cryoprob.inference.imaging import Imaging
from cryoprob.inference.imaging_draws import note_imaging
from cryoprob.inference.imaging_e_step import common_factor
from cryoprob.inference.joint import JointState
from cryoprob.inference.latent import collapse, line
from cryoprob.inference.learn import seeded
from cryoprob.inference.objectives.base import Objective
from cryoprob.inference.objectives.symmetric import turned, turned_back
from cryoprob.inference.result import FitResult
from cryoprob.inference.states import States
from cryoprob.inference.statistics import PosteriorSummary
from cryoprob.inference.treatments.base import Drawn, Lawful
from cryoprob.inference.treatments.known import Known
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.particles import Batch, ParticleStack
from cryoprob.types import Maps, Rotations, Shifts

__all__ = ["answer", "finish_joint", "settle_contrasts", "states_of", "summary_at"]

_BLOCK = 128
_PATH = 10


def finish_joint(
    state: JointState, stack: ParticleStack, objective: Objective, seed: int
) -> FitResult:
    """What :class:`~cryoprob.inference.joint.Joint` found, image by image and in maps.

    First the volume takes up what the contrasts have in common (:func:`settle_contrasts`).
    """
    settle_contrasts(state.half, stack, objective, seed)
    half, imaging = state.half, None
    if half.guide.sums_imaging:
        imaging = Imaging.empty(half.model, len(stack))
    with torch.no_grad(), seeded(seed):
        bound, rotation, shift, mean, std = _look(half, stack, objective, imaging)
        volume = half.guide.volume.coefficients.detach()
        states = states_of(half, mean, std) if mean.shape[1] else None
        doubt = ""
        if isinstance(half.model.conformation, GaussianConformation):
            doubt = collapse(mean, std)
        if imaging is not None:
            doubt = f"{doubt} {imaging.doubt(half.model.defocus)}".strip()
        if states is None:
            density = half.model.volume.density(volume)
        else:
            density = half.model.volume.density(volume, mean.mean(0).to(volume))
    posterior = summary_at(bound, rotation, shift)
    known, noise = isinstance(half.guide.rotation, Known), noise_log_density(stack)
    last = half.model.band
    return FitResult(
        volume=density.cpu(),
        volume_std=None,
        pixel_size=stack.pixel_size,
        resolution_A=last.box * stack.pixel_size / last.radius,
        criterion="the band of the training; no half sets",
        posterior=posterior,
        history=state.history,
        trust=f"{verdict(posterior, noise, [], known, objective.kind)} {doubt}".rstrip(),
        fitted=half,
        states=states,
        imaging=None if imaging is None else imaging.cpu(),
    )


def settle_contrasts(half: Half, stack: ParticleStack, objective: Objective, seed: int) -> None:
    """Let the volume take up the factor that the images' contrasts have in common, in place.

    The two can trade it for less than a nat per image, so that gradient steps leave it where it
    is. A volume without a gray scale of its own stays, as does one whose contrasts are given.
    """
    if not half.guide.sums_contrast:
        return
    found, point = Imaging.empty(half.model, len(stack)), half.guide.volume.coefficients
    with torch.no_grad(), seeded(seed):
        _look(half, stack, objective, found)
        factor = common_factor(half, found, half.index)
        scaled = half.model.volume.scaled(point.data, factor)
    if scaled is not None:
        point.data.copy_(scaled)


def states_of(half: Half, mean: Tensor, std: Tensor) -> States:
    """Conformations [N, size] of all images, and maps along their first principal axis."""
    volume = half.guide.volume.coefficients.detach()
    places = line(mean, _PATH)
    maps: dict[str, Maps] = {}
    for number, place in enumerate(places, 1):
        maps[f"path_{number:02d}"] = half.model.volume.density(volume, place.to(volume)).cpu()
    return States(mean=mean.cpu(), std=std.cpu(), maps=maps, places=places.cpu())


def _look(
    half: Half, stack: ParticleStack, objective: Objective, imaging: Imaging | None
) -> tuple[Tensor, ...]:
    """Bound [N], rotation, shift, and mean and deviation of the conformation, block by block.

    And, where it is given, what the images' contrasts and defoci are.
    """
    model, guide = half.model, half.guide
    like, found = model.noise.sigma2, []
    for index in half.index.split(_BLOCK):
        batch = stack.batch(index, full_band(stack.box), like.dtype, like.device)
        guide.forget()
        bound = objective(model, guide, guide.volume.coefficients.detach(), batch)
        turns, moves, seen = answer(half, objective, batch)
        found.append((bound.double(), turns, moves, *_conformation(guide.conformation, seen)))
        if imaging is not None:
            note_imaging(imaging, half, seen)
    guide.forget()
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def answer(
    half: Half, objective: Objective | None, batch: Batch
) -> tuple[Rotations, Shifts, Batch]:
    """Modes of q's poses, [n, 3, 3] and [n, 2], and the batch as q has then seen it.

    Where the objective prefers what q says of an image turned by 180 degrees, it is that, turned
    back.
    """
    guide, volume = half.guide, half.guide.volume.coefficients.detach()
    guide.forget()
    if objective is None:
        turns, moves = (part.mode(batch) for part in guide.drawn)
        return turns, moves, batch
    flip = objective.flipped(half.model, guide, volume, batch)
    guide.forget()
    seen = turned(batch, flip)
    turns, moves = (part.mode(seen) for part in guide.drawn)
    back, away = turned_back(turns, moves)
    pair = torch.where(flip[:, None, None], back, turns), torch.where(flip[:, None], away, moves)
    return *pair, seen


def _conformation(part: object, batch: Batch) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of q, [n, size] each."""
    if not isinstance(part, Drawn):
        nothing = batch.ctf[:, :0]
        return nothing, nothing
    mean = part.mode(batch)
    if isinstance(part, Lawful) and part.has_density:
        return mean, part.law(part.numbers_of(batch)).variance.sqrt()
    return mean, torch.zeros_like(mean)


def summary_at(bound: Tensor, rotation: Tensor, shift: Tensor) -> PosteriorSummary:
    """A summary of q's modes: nothing is known of masses of cells, nor of widths."""
    nothing = torch.zeros_like(shift[:, 0])
    parts = (bound, rotation, shift, *(nothing,) * 4)
    return PosteriorSummary(*(part.cpu() for part in parts)).without_widths()
