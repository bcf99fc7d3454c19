"""The E-step with contrast and defocus summed out together with the poses, exactly.

Each node of the defocus has images of its own, filtered by its CTFs; what an image says of the
nodes is the ratio of their evidences, as with classes. The contrast is linear in the image: at
every pose and node it has a normal posterior in closed form
(:mod:`cryoprob.inference.amplitude_law`).
"""

from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from cryoprob.checks import InputError, require
from cryoprob.fourier.gaussian_map import mean_of, power_of
from cryoprob.inference.amplitude_law import AmplitudeLaw, Amplitudes
from cryoprob.inference.dense import DenseGrid, blocks
from cryoprob.inference.e_step import finest, nothing_yet, portions, whole
from cryoprob.inference.filtered import Filtered, filter_nodes
from cryoprob.inference.guide import Guide
from cryoprob.inference.imaging import Imaging
from cryoprob.inference.members import Expectation
from cryoprob.inference.statistics import PosteriorSummary, reals
from cryoprob.inference.treatments.base import Near
from cryoprob.inference.treatments.conditional_gaussian import ConditionalGaussian
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.known import Known
from cryoprob.models import sites
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack

__all__ = ["imaging_e_step"]

_ALIVE = 5
"""Numbers held of a pose at a node: score, weight, mean contrast, and two on the way to them."""


def imaging_e_step(
    model: ParticleModel,
    guide: Guide,
    stack: ParticleStack,
    index: Tensor | None = None,
    *,
    symmetry: str = "C1",
) -> Expectation:
    """Posteriors of images ``index`` (default all), and the M-step's sums.

    The guide treats a contrast by ``ConditionalGaussian`` and a defocus (on nodes) by ``Exact``,
    beside poses that are ``Known``, or ``Exact``, ``Local`` or ``Proposed`` on a grid. Searches
    take as many times longer as there are nodes; all else costs little. The summary's ``entropy``
    and ``probability`` are those of the pose at a given defocus, on average over its posterior;
    ``cross`` and ``energy`` are NaN.

    Raises
    ------
    InputError
        If poses, contrast or defocus are treated otherwise, or there are conformations.
    """
    guide.check(model)
    _check(guide)
    index = torch.arange(len(stack)) if index is None else index.cpu()
    with torch.no_grad():
        step = _Step(model, guide, stack, symmetry)
        run = _route(step)
        for part in portions(model, stack, index, len(step.log_mass)):
            views = filter_nodes(model, stack, part)
            step.sums.add_power(views[0], model.noise.sigma2)
            run(step, views)
        return replace(Expectation.of(step.sums), imaging=step.found)


def _check(guide: Guide) -> None:
    """Raise InputError unless contrast and defocus, where they are sites, are summed out."""
    contrast = isinstance(guide.contrast, ConditionalGaussian | None)
    summed = contrast and isinstance(guide.defocus, Exact | None)
    require(
        guide.sums_imaging and summed and guide.conformation is None,
        "guide",
        expected="contrast ConditionalGaussian, defocus Exact, or one of them; no conformation",
        got=", ".join(f"{site} {type(part).__name__}" for site, part in guide.sites.items()),
        remedy="Laws of them (PerImage, Amortized) and conformations are fitted by gradients.",
    )


class _Step:
    """What an E-step needs, and what it has found."""

    def __init__(
        self, model: ParticleModel, guide: Guide, stack: ParticleStack, symmetry: str
    ) -> None:
        self.model, self.guide, self.stack = model, guide, stack
        self.volume, self.law = guide.volume.maps, AmplitudeLaw.of(model)
        none = model.noise.sigma2.new_zeros(1)
        prior = model.defocus
        self.nodes, log_mass = (none, none) if prior is None else (prior.points, prior.log_mass)
        self.log_mass = log_mass.double()
        self.sums = nothing_yet(model, len(stack), symmetry)
        self.found = Imaging.empty(model, len(stack))

    def share(self, index: Tensor, evidence: list[Tensor]) -> Tensor:
        """Posterior of the nodes [n, J] (float64) from each one's log evidence [n]."""
        shares = torch.softmax(torch.stack(evidence, 1) + self.log_mass, 1)
        if self.model.defocus is not None:
            places = self.nodes.double()
            self.found.note(sites.DEFOCUS, index, shares @ places, shares @ places**2)
        return shares

    def note_contrast(self, index: Tensor, moments: list[Tensor], shares: Tensor) -> None:
        """Take in means and mean squares [2, n] (float64) of the contrast - 1 at each node."""
        mean, square = (torch.stack(moments, -1) * shares).sum(-1)
        self.found.note(sites.CONTRAST, index, mean, square, around=1.0)

    def join(self, index: Tensor, parts: list[PosteriorSummary], shares: Tensor) -> None:
        """Write the images' summaries from those at each node.

        The mean of the nodes' largest masses of a cell is not below the largest mass of one over
        all nodes. (Of classes it is the best cell's in the best class: other maps, other cells.)
        """
        best, rows = shares.argmax(1), torch.arange(len(index), device=shares.device)
        found = {}
        for item in fields(PosteriorSummary):
            each = torch.stack([getattr(part, item.name) for part in parts], 1)
            weight = shares.view(*shares.shape, *[1] * (each.dim() - 2))
            found[item.name] = (each * weight).sum(1)
        found["rotation"] = torch.stack([part.rotation for part in parts], 1)[rows, best]
        bound = torch.stack([part.bound for part in parts], 1) + self.log_mass
        found["bound"] = bound.logsumexp(1)
        found["cross"] = found["energy"] = torch.full_like(found["bound"], torch.nan)
        self.sums.summary.put(index, PosteriorSummary(**found))


_Run = Callable[[_Step, list[Filtered]], None]
"""Takes in one chunk of images, as each node sees them."""


def _route(step: _Step) -> _Run:
    turns, moves = step.guide.rotation, step.guide.shift
    if isinstance(turns, Known) and isinstance(moves, Known):
        return _known
    if isinstance(turns, Exact):
        return _dense if whole(step.model, step.guide) else _searched
    if isinstance(turns, Near):
        return _searched
    raise InputError(
        "guide",
        expected="poses that are Known, Exact, Local or Proposed beside what is summed out",
        got=f"rotation {type(turns).__name__}, shift {type(moves).__name__}",
        remedy="Give contrast and defocus laws (PerImage) and fit by gradients.",
    )


def _known(step: _Step, views: list[Filtered]) -> None:
    """At given poses: slices once, and the images in the posterior moments of CTF and contrast."""
    model, index, guide = step.model, views[0].index, step.guide
    assert isinstance(guide.rotation, Known) and isinstance(guide.shift, Known)
    rotation, shift = guide.rotation.values[index], guide.shift.values[index]
    slices = model.volume.slices(mean_of(step.volume), rotation)
    power = power_of(step.volume, model.linear_volume.slicer, slices, rotation)
    back = shift_phase(model.band, shift, model.pixel_size).conj()
    posed = reals(back.conj() * slices)
    cross = torch.stack([torch.linalg.vecdot(reals(view.image), posed) for view in views], 1)
    energy = torch.stack([torch.linalg.vecdot(view.transfer, power) for view in views], 1)
    if step.law is None:
        value = cross - energy / 2
        found = Amplitudes(torch.ones_like(cross), torch.zeros_like(cross))
    else:
        value, found = step.law.summed(cross, energy)
    evidence = views[0].noise_only[:, None] + value.double()
    shares = step.share(index, list(evidence.unbind(1)))
    if step.law is not None:
        tilt = found.mean.double() - 1
        moments = torch.stack([tilt, tilt**2 + found.variance])
        step.note_contrast(index, list(moments.unbind(-1)), shares)
    one, count = shares.to(cross), torch.ones_like(cross[:, 0])
    numerator, weight = torch.zeros_like(slices), torch.zeros_like(power)
    first, second = ((one * part)[..., None] for part in (found.mean, found.square))
    for view, once, twice in zip(views, first.unbind(1), second.unbind(1), strict=True):
        numerator += view.image * once
        weight += view.transfer * twice
    group = int(views[0].group[0])
    sums = numerator * back, weight, slices, power / 2, rotation
    step.sums.add_slices(group, *sums, model.band, model.noise.sigma2[group])
    step.sums.shift_power += shift.square().sum().double()
    bound = (evidence + step.log_mass).logsumexp(1)
    none, lost = torch.zeros_like(count), torch.full_like(count, torch.nan)
    summary = PosteriorSummary(bound, rotation, shift, count, none, lost, lost)
    step.sums.summary.put(index, summary)


def _dense(step: _Step, views: list[Filtered]) -> None:
    """The whole grid at every node, block by block of images (one optics group)."""
    assert isinstance(step.guide.rotation, Exact)
    grid = DenseGrid.of(step.model, step.volume)
    numerator, weight = torch.zeros_like(grid.slices), torch.zeros_like(grid.energy)
    held = _ALIVE * 4 * len(grid.shifts) * len(grid.rotations) * len(views)
    size = max(1, step.guide.rotation.block_bytes // held)
    for block in blocks(len(views[0]), size):
        parts = [grid.posterior(view.take(block)) for view in views]
        index = parts[0].images.index
        shares = step.share(index, [part.log_evidence for part in parts])
        for part, share in zip(parts, shares.unbind(1), strict=True):
            part.accumulate(reals(numerator), weight, share)
            step.sums.shift_power += part.shift_power(share)
        step.join(index, [part.summary() for part in parts], shares)
        if step.law is not None:
            step.note_contrast(index, [part.contrast() for part in parts], shares)
    group = int(views[0].group[0])
    sums = numerator, weight, grid.slices, grid.energy, grid.rotations
    step.sums.add_slices(group, *sums, grid.band, step.model.noise.sigma2[group])


def _searched(step: _Step, views: list[Filtered]) -> None:
    """Coarse to fine, or near given poses, at every node; then the nodes share out the images."""
    index, found = views[0].index, [finest(step.model, step.guide, step.stack, v) for v in views]
    kept = [search.scan(keep) for search, keep in found]
    shares = step.share(index, [search.log_evidence for search, _ in found])
    summaries, moments = [], []
    for (search, _), cells, share in zip(found, kept, shares.unbind(1), strict=True):
        search.collect(cells, step.sums, share)
        summaries.append(step.sums.summary.take(index))  # of this node; the next one overwrites it
        moments.append(search.contrast)
    step.join(index, summaries, shares)
    if step.law is not None:
        step.note_contrast(index, moments, shares)
