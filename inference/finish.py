"""The end of a fit: joint map, its uncertainty, every image's posterior.

And a verdict in words.
"""

from math import isfinite, log
from typing import Any

import torch
from torch import Tensor

from cryoprob.fourier.normal import NormalEquations
from cryoprob.inference.build import noise_log_density
from cryoprob.inference.common_factor import common_factor
from cryoprob.inference.em import EM, EMState
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.imaging import Imaging
from cryoprob.inference.m_step import posterior_std
from cryoprob.inference.members import Expectation
from cryoprob.inference.result import FitResult
from cryoprob.inference.states import States
from cryoprob.inference.statistics import PosteriorSummary
from cryoprob.inference.treatments.base import Drawn
from cryoprob.inference.treatments.known import Known
from cryoprob.models.volumes.mixture import Mixture
from cryoprob.particles import ParticleStack

__all__ = ["finish", "verdict"]

_DRAWS = 4


def finish(
    algorithm: EM,
    state: EMState,
    stack: ParticleStack,
    earlier: list[dict[str, Any]],
    ranking: list[float],
    seed: int,
) -> FitResult:
    """Posteriors at the final map(s), the map's uncertainty, and how far to trust it."""
    generator = torch.Generator().manual_seed(seed)
    first, pixel_size = state.halves[0], stack.pixel_size
    found = [_look(algorithm, half, n, stack, generator) for n, half in enumerate(state.halves)]
    posterior, equations, noise, states, imaging = found[0]
    for half, (more, part, added, _, seen) in zip(state.halves[1:], found[1:], strict=True):
        posterior.put(half.index, more.take(half.index))
        if imaging is not None and seen is not None:
            imaging.put(half.index, seen)
        equations, noise = equations + part, noise + added
    posterior, heaviest = posterior.cpu(), 0 if states is None else states.heaviest
    maps = [half.members[heaviest].guide.volume.coefficients.data for half in state.halves]
    tau2 = first.members[heaviest].model.linear_volume.tau2
    halves, volume = maps if len(maps) == 2 else [], maps[0]
    scale, everyone = 1.0, torch.arange(len(stack))
    if halves and imaging is not None:  # the factor that the halves' maps have taken up
        scale = common_factor(first, imaging, everyone)
    if halves:
        volume = algorithm.solvent(scale * algorithm.solve(first, equations).volume, pixel_size)
    known = isinstance(first.guide.rotation, Known)
    width = stack.box * pixel_size
    trust = verdict(posterior, noise_log_density(stack), ranking, known, first.guide.kind)
    doubt = "" if imaging is None else imaging.doubt(first.model.defocus)
    return FitResult(
        volume=volume.cpu(),
        volume_std=(scale * posterior_std(equations, tau2, noise, generator)).cpu(),
        pixel_size=pixel_size,
        resolution_A=width / max(state.shell, 1),
        criterion="FSC of half sets = 0.143" if halves else "signal = noise / 3 in the map",
        posterior=_widths_known(posterior, first.guide),
        history=[*earlier, *state.history],
        trust=f"{trust} {doubt}".rstrip(),
        halves=[half.cpu() for half in halves],
        curve=state.curve.cpu(),
        fitted=first,
        states=states,
        imaging=None if imaging is None else imaging.cpu(),
    )


def _look(
    algorithm: EM, half: Half, number: int, stack: ParticleStack, generator: torch.Generator
) -> tuple[PosteriorSummary, NormalEquations, Tensor, States | None, Imaging | None]:
    """Posterior of every image of a half at its map, and its normal equations with noise.

    Noise [K, D, D, D] is of the data's precision; of classes both are the heaviest one's.
    """
    found = algorithm.e_step(half, stack, number)
    states = _classes(half, found) if isinstance(half.model.volume, Mixture) else None
    part = found.parts[0 if states is None else states.heaviest].insertion
    noise = part.noise(_DRAWS, generator)
    return found.summary, part.equations(release=True), noise, states, found.imaging


def _widths_known(posterior: PosteriorSummary, guide: Guide) -> PosteriorSummary:
    """Without the widths of poses that q does not have: a Dirac has none, a law no cells."""
    parts = [part for part in (guide.rotation, guide.shift) if isinstance(part, Drawn)]
    if not parts:
        return posterior
    laws = [part for part in parts if not isinstance(part, Known)]
    return posterior.without_widths(entropy=bool(laws) and all(p.has_density for p in laws))


def _classes(half: Half, found: Expectation) -> States:
    """Every class's map, and every image's shares."""
    maps = {
        f"class_{k}": part.guide.volume.coefficients.data.cpu()
        for k, part in enumerate(half.members, 1)
    }
    return States(shares=found.shares.cpu(), maps=maps)


def verdict(
    posterior: PosteriorSummary,
    noise_only: Tensor,
    ranking: list[float],
    known: bool,
    kind: str = "log_evidence",
    numbers: float = 0.0,
) -> str:
    """Say whether the map explains the images, the starts agree and the poses are decided.

    A fit of ``numbers`` that the images determine gains about as many nats from noise (measured:
    up to 1.15; Akaike 1974, IEEE Trans. Automat. Contr. 19, 716): twice as many are asked for.
    """
    if kind == "ring_correlation":
        return (
            "A score of rings is no likelihood of images and is not held against noise alone; see"
            " whether the maps along the path are those of a molecule before trusting it."
        )
    gain = float((posterior.bound - noise_only).mean())
    doubts = []
    if not isfinite(gain):
        return f"Do not trust this map: the images' nats are no number ({gain})."
    if gain < 1:
        doubts.append(
            f"the map explains the images hardly better than noise ({gain:+.2f} nats per image)"
        )
    elif gain * len(posterior.bound) < 2 * numbers:
        doubts.append(
            f"{gain * len(posterior.bound):.0f} nats in all are little for a fit of {numbers:.0f}"
            " numbers, which gains as much from noise: take more images, fewer modes (zdim) or a"
            " smaller band"
        )
    if not known and float(posterior.entropy.mean()) > log(500):
        doubts.append("the poses are undecided (several hundred per image)")
    if len(ranking) > 1 and ranking[0] - ranking[1] > 5:
        doubts.append(
            f"the best start stands alone, {ranking[0] - ranking[1]:.1f} nats per image above the"
            " next:"
            " run it again with more starts (--set starts=8) and see whether it is found again"
        )
    agree = sum(ranking[0] - value < 1 for value in ranking)
    if len(ranking) > 1 and agree > 1:
        close = f"{agree} of {len(ranking)} starts ended within 1 nat per image of the best. "
    else:
        close = ""
    if doubts:
        return f"{close}Do not trust this map yet: " + "; ".join(doubts) + "."
    if kind == "profile_log_joint":
        best, lack = (
            "poses",
            "`cryoprob compare`, or of a preset `cryoprob latent DIR --price 100`",
        )
        if known:
            best, lack = "conformations", "--preset ppca has exact posteriors"
        return (
            f"{close}At their best {best} the images lie {gain:.1f} nats each above noise alone; a"
            f" profile log joint bounds nothing: count what it lacks ({lack}) before trusting it."
        )
    return (
        f"{close}The map explains the images by {gain:.1f} nats per image more than noise alone."
    )
