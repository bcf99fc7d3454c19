"""The end of gradient training: q of every image, the map of the mean conformation, a path."""

from collections.abc import Iterator

import torch
from torch import Tensor

from cryoprob.fourier.bands import full_band
from cryoprob.inference.build import noise_log_density
from cryoprob.inference.common_factor import common_factor
from cryoprob.inference.finish import verdict
from cryoprob.inference.half import Half
from cryoprob.inference.imaging import Imaging
from cryoprob.inference.imaging_draws import note_imaging
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
_DRAWS = 4
"""Of poses and conformation, where q has a density; they hardly move contrast and defocus."""

_SETTLING, _SETTLED, _ROUNDS = 1000, 1e-3, 8
"""Images that tell the contrasts' common factor, when it is 1, and rounds at most."""

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
    is. Up to a thousand images tell it. A volume that cannot be scaled stays, as does one whose
    contrasts are given.
    """
    point, volume = half.guide.volume.coefficients, half.model.volume
    if not half.guide.sums_contrast or volume.scaled(point.data, 1.0) is None:
        return
    found, factor, rounds = Imaging.empty(half.model, len(stack)), 0.0, 0
    some = half.index[:: -(-len(half.index) // _SETTLING)]
    with torch.no_grad():
        while abs(factor - 1) > _SETTLED and rounds < _ROUNDS:
            with seeded(seed):
                for batch in _batches(half, stack, some):
                    note_imaging(found, half, answer(half, objective, batch)[2], 1)
            factor, rounds = common_factor(half, found, some), rounds + 1
            scaled = volume.scaled(point.data, factor)
            assert scaled is not None
            point.data.copy_(scaled)
    half.guide.forget()


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
    model, guide, found = half.model, half.guide, []
    for batch in _batches(half, stack, half.index):
        guide.forget()
        bound = objective(model, guide, guide.volume.coefficients.detach(), batch)
        turns, moves, seen = answer(half, objective, batch)
        found.append((bound.double(), turns, moves, *_conformation(guide.conformation, seen)))
        if imaging is not None:
            note_imaging(imaging, half, seen, _DRAWS)
    guide.forget()
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def _batches(half: Half, stack: ParticleStack, index: Tensor) -> Iterator[Batch]:
    """Images ``index`` block by block; fewer at a time where each has nodes of a defocus."""
    like, defocus = half.model.noise.sigma2, half.model.defocus
    nodes = len(defocus.points) if half.guide.sums_defocus and defocus is not None else 1
    for part in index.split(max(1, _BLOCK // nodes)):
        yield stack.batch(part, full_band(stack.box), like.dtype, like.device)


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
