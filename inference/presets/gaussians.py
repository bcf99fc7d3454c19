"""Molecules of Gaussians: what CryoFold, E2GMM and atomVAE share."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from cryoprob.checks import require
from cryoprob.gaussians import narrowest
from cryoprob.inference.amplitude import regressed_amplitude
from cryoprob.inference.presets.base import Scene
from cryoprob.inference.presets.networks import coordinates
from cryoprob.inference.presets.references import found_factor
from cryoprob.io.structures import is_structure, read_structure
from cryoprob.models.structure_factors import Bonds
from cryoprob.models.volumes.displacements import ResidualDisplacements
from cryoprob.models.volumes.gaussian_mixture import GaussianMixture
from cryoprob.models.volumes.residues import Residues, residues

__all__ = ["VOLUME_RATE", "bonds", "cloud", "molecule", "structure"]

VOLUME_RATE = 0.01
"""Of Adam for Gaussians and their displacement, in standard deviations of their priors."""

_WIDTH_A = 2.0
_STRETCH_A = 0.3


def structure(scene: Scene, *, docked: bool) -> Residues:
    """Residues of the scene's reference, as it lies or with its center at the origin voxel.

    Raises
    ------
    InputError
        If there is none, if it is a map, or if it is to be docked and lies outside of the box.
    """
    path = scene.references[0] if scene.references else "none"
    remedy = "Give --reference model.pdb."
    wanted = "an atomic structure (.pdb, .cif) to start from"
    require(is_structure(path), "--reference", expected=wanted, got=path, remedy=remedy)
    found, stack = residues(read_structure(path)), scene.stack
    center = (found.electrons @ found.positions) / found.electrons.sum()
    if not docked:
        return replace(found, positions=found.positions - center)
    half = stack.box * stack.pixel_size / 2
    require(
        bool((found.positions.abs() < half).all()),
        f"--reference {path}",
        expected=f"a structure in the frame of the poses, within {half:.0f} A of the origin",
        got=f"one about ({', '.join(f'{x:.0f}' for x in center.tolist())}) A",
        remedy="Dock it into a map of these poses whose middle voxel is at (0, 0, 0).",
    )
    return found


def cloud(scene: Scene) -> GaussianMixture:
    """Gaussians at random places, all numbers of them free, displaced by z; of mass 1 together."""
    plan, stack = scene.plan, scene.stack
    place = plan.gaussians, stack.box, stack.pixel_size, scene.generator
    moves = _displacement(scene, plan.gaussians)
    return GaussianMixture.random(*place, displacement=moves, **scene.kind)


def _displacement(scene: Scene, count: int) -> ResidualDisplacements:
    plan = scene.plan
    size: dict[str, Any] = {"width": plan.width, "layers": plan.layers}
    return ResidualDisplacements(plan.zdim, count, **size, **scene.kind)


def molecule(
    scene: Scene, found: Residues, *, docked: bool, free: Iterable[str] = ()
) -> GaussianMixture:
    """Gaussians at the residues, displaced by z, on the images' gray scale.

    That is regressed at the poses of the file; or, undocked, found by evidence on a pose grid.
    """
    stack, width = scene.stack, max(narrowest(scene.stack.pixel_size), _WIDTH_A)

    def made(factor: float) -> GaussianMixture:
        return GaussianMixture(
            stack.box,
            stack.pixel_size,
            found.positions,
            found.electrons * factor,
            width,
            displacement=_displacement(scene, len(found.positions)),
            free=free,
            **scene.kind,
        )

    if scene.sketch:
        return made(1.0)
    return made((_regressed if docked else _found)(scene, made(1.0)))


def _regressed(scene: Scene, volume: GaussianMixture) -> float:
    start = volume.start(scene.generator)
    return regressed_amplitude(scene.model(volume, coordinates(scene)), start, scene.stack)


def _found(scene: Scene, volume: GaussianMixture) -> float:
    neutral = scene.put(torch.zeros(scene.plan.zdim))
    return found_factor(scene, volume.density(volume.start(scene.generator), neutral))


def bonds(scene: Scene, found: Residues) -> Bonds:
    """The structure's own bonds."""
    return Bonds(found.bonds, found.lengths, _STRETCH_A).to(scene.kind["device"])
