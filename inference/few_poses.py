"""A few weighted poses per image: scores, and their share of the M-step's sums."""

from collections.abc import Callable

import roma
import torch
from torch import Tensor

from cryoprob.fourier.gaussian_map import AnyMap, mean_of, power_of
from cryoprob.inference.filtered import Filtered
from cryoprob.inference.guide import Poses
from cryoprob.inference.statistics import PosteriorSummary, Statistics, reals
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel
from cryoprob.types import Rotations

__all__ = ["Scores", "add_few", "score_few"]

Scores = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From log p(image | pose) over noise, [K, n], to log weights [K, n] and the bound over noise [n]
(float64)."""


def add_few(
    model: ParticleModel,
    volume: AnyMap,
    images: Filtered,
    poses: Poses,
    scores: Scores,
    to: Statistics,
    share: Tensor | None = None,
) -> None:
    """Insert images of one optics group at K poses each, in the weights that ``scores`` gives.

    Each image counts by its ``share`` [n] in the sums, where given, and whole in its summary.
    """
    slices, power, numerator, cross, energy = _compared(model, volume, images, poses)
    log_weight, bound = scores(cross - energy / 2)
    weight = log_weight.exp()
    each = weight[..., None]
    counted = each if share is None else each * share.to(each)[:, None]
    group = int(images.group[0])
    to.add_slices(
        group,
        (numerator * counted).flatten(0, 1),
        (images.transfer * counted).flatten(0, 1),
        slices.flatten(0, 1),
        power.div_(2).flatten(0, 1),
        poses.rotation.flatten(0, 1),
        model.band,
        model.noise.sigma2[group],
    )
    to.shift_power += (counted[..., 0] * poses.shift.square().sum(-1)).double().sum()
    summary = PosteriorSummary(
        bound=images.noise_only + bound,
        rotation=_mean(poses.rotation, weight),
        shift=(each * poses.shift).sum(0),
        probability=weight.max(0).values,
        entropy=-(weight * poses.log_q).sum(0),
        cross=(weight * cross).sum(0),
        energy=(weight * energy).sum(0),
    )
    to.summary.put(images.index, summary)


def score_few(model: ParticleModel, volume: AnyMap, images: Filtered, poses: Poses) -> Tensor:
    """Log p(image | pose) over noise of images at K poses each, [K, n] (float64)."""
    *_, cross, energy = _compared(model, volume, images, poses)
    return (cross - energy / 2).double()


def _compared(
    model: ParticleModel, volume: AnyMap, images: Filtered, poses: Poses
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Slices and their power, images shifted back, [K, n, m]; cross terms and energies, [K, n]."""
    slices = model.volume.slices(mean_of(volume), poses.rotation)
    power = power_of(volume, model.linear_volume.slicer, slices, poses.rotation)
    phase = shift_phase(model.band, poses.shift, model.pixel_size)
    numerator = (images.image * phase.conj()).resolve_conj()
    cross: Tensor = torch.linalg.vecdot(reals(numerator), reals(slices))
    energy: Tensor = torch.linalg.vecdot(images.transfer, power)
    return slices, power, numerator, cross, energy


def _mean(rotation: Rotations, weight: Tensor) -> Rotations:
    """Weighted mean over the first axis; one rotation is its own, to the last bit."""
    if len(rotation) == 1:
        return rotation[0]
    mean: Rotations = roma.special_procrustes((weight[..., None, None] * rotation).sum(0))
    return mean
