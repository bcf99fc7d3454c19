"""What a scene's reference map starts: its gray scale, and volumes that are no maps."""

from dataclasses import replace

import torch

from cryoprob.inference.amplitude import match_amplitude, regressed_amplitude
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.presets.base import Built, Scene
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.point import Point
from cryoprob.inference.warm_start import imitate
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.types import Maps

__all__ = ["POSES_ONLY", "found_factor", "held_first", "warmed"]

POSES_ONLY = 0.3
"""Share of the training in which encoders learn poses alone."""


def held_first(scene: Scene) -> dict[str, float]:
    """Encoders of poses learn at a reference that is held in a first phase (``Joint.held``)."""
    return {"volume": POSES_ONLY} if scene.references else {}


def found_factor(scene: Scene, density: Maps) -> float:
    """By how much a map [D, D, D] is to be multiplied, by evidence on a grid of poses."""
    search = Exact()
    guide = Guide(rotation=search, shift=search, volume=Point(density))
    volume = FourierVoxels(density.shape[-1], **scene.kind)
    half = Half(scene.model(volume), guide, scene.everything)
    match_amplitude(half, scene.stack, scene.given, "C1")
    found = guide.volume.coefficients.detach()
    return float((found * density).sum() / density.square().sum())


def warmed(scene: Scene, built: Built, *, known: bool = False) -> Built:
    """The system with a warm start from the scene's reference, where there is one.

    Its gray scale is regressed at the ``known`` poses of the file, or found by evidence on a grid.
    """
    model, place = built.half.model, built.half.guide.volume.coefficients
    if not scene.references:
        return built
    read = scene.reader
    if scene.sketch:
        read()  # what is wrong with the file is found before any work

    def begin() -> None:
        """Volumes that are maps take it; others learn to give its slices for every z."""
        given = read()
        alone = scene.model(FourierVoxels(len(given), **scene.kind))
        if known:
            wanted = regressed_amplitude(alone, given, scene.stack) * given
        else:
            wanted = found_factor(scene, given) * given
        generator = torch.Generator().manual_seed(scene.seed + 1)
        if not model.volume.is_map:
            wanted = imitate(model.volume, place, wanted, model.conformation, generator=generator)
        place.data.copy_(wanted)

    return replace(built, begin=begin)
