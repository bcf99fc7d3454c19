"""Closed-form updates: the volume by conjugate gradients, noise, prior power, shift width.

Contrast.
"""

from dataclasses import dataclass, replace
from math import pi

import torch
from torch import Tensor
from torch.nn.functional import avg_pool3d

from cryoprob.checks import require
from cryoprob.fourier.bands import full_band
from cryoprob.fourier.normal import NormalEquations
from cryoprob.fourier.shells import frequency_3d, shell_mean, spread
from cryoprob.fourier.transforms import fft3, ifft3
from cryoprob.inference.conjugate_gradients import conjugate_gradients
from cryoprob.inference.least_noise import least_noise
from cryoprob.inference.statistics import Statistics
from cryoprob.models.particle_model import ParticleModel
from cryoprob.types import Maps

__all__ = [
    "Solution",
    "lift_tau2",
    "posterior_sample",
    "posterior_std",
    "power",
    "solve_volume",
    "tau2_from_fsc",
    "update_contrast",
    "update_noise",
    "update_shift_sigma",
    "update_tau2",
]


_AHEAD = 3
"""Shells beyond the resolved one that :func:`lift_tau2` keeps open."""


@dataclass(frozen=True, eq=False)
class Solution:
    """The new map and what the solver knows about it.

    Attributes
    ----------
    volume
        [D, D, D].
    weight
        Diagonal approximation of the data's precision per Fourier voxel, [D, D, D].
    iterations
        Conjugate-gradient steps taken (0 for the diagonal update).
    """

    volume: Maps
    weight: Tensor
    iterations: int

    def scaled(self, factor: float) -> "Solution":
        """The same of a map times a factor, by which the images' contrasts are divided."""
        return replace(self, volume=factor * self.volume, weight=self.weight / factor**2)


def solve_volume(
    equations: NormalEquations,
    tau2: Tensor,
    start: Maps,
    *,
    exact: bool = True,
    tolerance: float = 1e-4,
    max_iterations: int = 100,
) -> Solution:
    """Maximize ``-1/2 V^T A V + b^T V + log p(V)`` over maps.

    Parameters
    ----------
    equations
        ``A`` and ``b`` of the E-step.
    tau2
        Prior variance per shell, [S].
    start
        First guess, [D, D, D].
    exact
        Conjugate gradients preconditioned by the diagonal; False takes the diagonal alone, which
        is RELION's update and not the maximizer when slices interpolate.
    tolerance
        Stop when the preconditioned residual fell to this part of the right-hand side's.
    max_iterations
        Stop at the latest after so many steps.
    """
    right = equations.right_side()
    if not exact:
        weight = fourier_weight(equations)
        prior = 1 / spread(tau2, start.shape[-1])
        return Solution(_scaled(right, 1 / (weight + prior)), weight, 0)
    return _solve(equations, tau2, right, start, tolerance, max_iterations)


def posterior_sample(
    equations: NormalEquations,
    tau2: Tensor,
    right: Maps,
    start: Maps,
    generator: torch.Generator,
    tolerance: float = 1e-4,
) -> Maps:
    """Perturb and solve: ``(A + 1 / tau2) V = right + noise of the prior's precision``.

    With ``right = b + noise of covariance A`` (:meth:`Insertion.noise`) it is a draw of the map's
    posterior at the E-step's weights, exact but for the tolerance; with the noise alone, of its
    distance from the posterior's mean. Papandreou and Yuille 2010, NIPS 23.

    Parameters
    ----------
    equations
        ``A`` of the E-step.
    tau2
        Prior variance per shell, [S].
    right
        Right-hand side, [D, D, D].
    start
        First guess, [D, D, D].
    generator
        Of the prior's noise, on the CPU.
    tolerance
        As in :func:`solve_volume`.

    Returns
    -------
    The draw, [D, D, D].
    """
    white = torch.randn(start.shape, generator=generator, dtype=torch.float64).to(start)
    right = right + _scaled(white, spread(tau2, start.shape[-1]).rsqrt())
    return _solve(equations, tau2, right, start, tolerance, 1000).volume


def posterior_std(
    equations: NormalEquations, tau2: Tensor, noise: Maps, generator: torch.Generator
) -> Maps:
    """Standard deviation of every voxel of the map at the E-step's weights, [D, D, D].

    From a draw of the map for each of ``noise`` [K, D, D, D] (:meth:`Insertion.noise`). Variances
    are averaged over neighbors, a Gaussian of one voxel: they change slowly over the map, and four
    draws then give the deviation to some 10 %.
    """
    box, start = noise.shape[-1], torch.zeros_like(noise[0])
    draws = [posterior_sample(equations, tau2, one, start, generator, 0.03) for one in noise]
    square = torch.stack(draws).square().mean(0)
    kernel = torch.exp(-2 * (pi * frequency_3d(box) / box) ** 2).to(square)
    return _scaled(square, kernel).clamp(min=0).sqrt()


def _solve(
    equations: NormalEquations,
    tau2: Tensor,
    right: Maps,
    start: Maps,
    tolerance: float,
    max_iterations: int,
) -> Solution:
    """Solve ``(A + 1 / tau2) V = right`` by conjugate gradients."""
    weight = fourier_weight(equations)
    prior = 1 / spread(tau2, start.shape[-1])

    def precision(volume: Maps) -> Maps:
        return equations.apply(volume) + _scaled(volume, prior)

    leak = 0.03 * weight.mean()
    inverse = 1 / (weight + prior + leak)
    found, steps = conjugate_gradients(
        precision,
        right,
        start,
        lambda volume: _scaled(volume, inverse),
        tolerance,
        max_iterations,
    )
    return Solution(found, weight, steps)


def fourier_weight(equations: NormalEquations) -> Tensor:
    """Diagonal approximation of ``A`` in the unitary Fourier basis of the map, [D, D, D].

    A mode of the map spreads over the neighbors of its point in the padded grid; its precision is
    the mean of the row sums there, times the energy of the transform.
    """
    slicer = equations.slicer
    box, pad, reach = slicer.band.box, slicer.pad, slicer.reach
    half = equations.diagonal()
    full = half.new_zeros(2 * reach + 1, 2 * reach + 1, 2 * reach + 1)
    full[..., reach:] += half
    full += full.flip(0, 1, 2)
    mean = avg_pool3d(full[None, None], 3, stride=1, padding=1)[0, 0]
    radius = slicer.band.radius
    at = reach + pad * torch.arange(-radius, radius + 1, device=full.device)
    weight = full.new_zeros(box, box, box)
    inside = slice(box // 2 - radius, box // 2 + radius + 1)
    weight[inside, inside, inside] = mean[at][:, at][:, :, at]
    return weight * (pad**3 * box / 2)


def update_noise(model: ParticleModel, statistics: Statistics, rate: float = 1.0) -> None:
    """Noise spectra from the expected residual; ``rate`` moves part of the way (geometric).

    Nowhere below what its type can tell from none (:func:`least_noise`).
    """
    band = full_band(model.band.box)
    numbers = band.numbers_per_shell().to(statistics.residual)
    seen = statistics.counts > 0
    images = statistics.counts[:, None].clamp(min=1)
    found = statistics.residual / (images * numbers)
    require(
        bool(torch.isfinite(found[seen]).all()),
        "noise spectrum",
        expected="a finite residual",
        got="NaN or infinity",
        remedy="Look for images of extreme values with `cryoprob info`.",
    )
    sigma2 = model.noise.sigma2
    least = least_noise(statistics.power / images, numbers, sigma2.dtype)
    found = found.maximum(least).to(sigma2)
    mixed = torch.exp((1 - rate) * sigma2.log() + rate * found.log())
    sigma2[seen] = mixed[seen]


def update_contrast(model: ParticleModel, statistics: Statistics) -> None:
    """Amplitude and noise factors per image from its posterior means, each with median 1.

    The amplitude is the regression of the image on its expected noiseless image; the noise factor
    is the root of its expected residual power per number, in units of its group's noise.
    """
    contrast, summary = model.known_contrast, statistics.summary
    seen = torch.isfinite(summary.bound)
    ratio = summary.cross[seen] / summary.energy[seen].clamp(min=1e-12)
    contrast.scale[seen] *= (ratio / ratio.median().clamp(min=1e-3)).clamp(0.5, 2.0)
    contrast.scale[seen] /= contrast.scale[seen].median()
    residual = statistics.whitened[seen] - 2 * summary.cross[seen] + summary.energy[seen]
    factor = (residual / model.band.box**2).clamp(0.25, 4.0).sqrt()
    contrast.spread[seen] *= factor.to(contrast.spread)
    contrast.spread[seen] /= contrast.spread[seen].median()


def update_tau2(model: ParticleModel, solution: Solution) -> None:
    """Prior power per shell from the map's own, by empirical Bayes (MacKay's fixed point).

    ``tau2 = |V|^2 / gamma`` with gamma the part of a shell's numbers that the data determine;
    beyond the band the last shell's value goes on. A map of which the data tell nothing (a class
    without images) keeps its prior. MacKay 1992, Neural Comput. 4, 415, eq. 4.9.
    """
    tau2, box = model.linear_volume.tau2, solution.volume.shape[-1]
    if _untold(tau2, solution):
        return
    prior = 1 / spread(tau2, box)
    determined = shell_mean(solution.weight / (solution.weight + prior))
    found = power(solution.volume) / determined.clamp(min=0.02)
    last = model.band.radius
    found[last + 1 :] = found[last]
    floor = 1e-3 / float(solution.weight.max())  # a thousandth of the noise, where it is least
    tau2.copy_(found.clamp(min=max(1e-8 * float(found.max()), floor)))


def _untold(tau2: Tensor, solution: Solution) -> bool:
    """Whether the data determine less than 1e-4 of any number: a tenth of what a floor leaves."""
    return float(tau2.max()) * float(solution.weight.max()) < 1e-4


def lift_tau2(model: ParticleModel, solution: Solution, shell: int) -> None:
    """Give the shells just beyond the resolved one a prior of half the noise, if theirs is less.

    A shell whose prior power has fallen to nothing stays empty, since the expected images of the
    E-step are empty there too: zero is a fixed point of empirical Bayes under unknown poses, and
    frequency marching would end at it. What the data then say of the shells counts, not this.
    A map of which the data tell nothing keeps its prior.
    """
    tau2, last = model.linear_volume.tau2, model.band.radius
    if _untold(tau2, solution):
        return
    weight = shell_mean(solution.weight).clamp(min=1e-12)
    ahead = slice(shell + 1, min(shell + _AHEAD, last) + 1)
    tau2[ahead] = torch.maximum(tau2[ahead], 0.5 / weight[ahead])
    tau2[last + 1 :] = tau2[last]


def tau2_from_fsc(model: ParticleModel, solution: Solution, curve: Tensor) -> None:
    """Prior power per shell from the half maps' FSC [D / 2 + 1] (gold standard).

    ``tau2 = FSC / (1 - FSC) / weight``, FSC clamped to [0.001, 0.999]. Scheres 2012, eq. 10-12.
    """
    tau2 = model.linear_volume.tau2
    clamped = curve.to(tau2).clamp(0.001, 0.999)
    weight = shell_mean(solution.weight)
    count = min(len(clamped), model.band.radius + 1)
    found = clamped[:count] / (1 - clamped[:count]) / weight[:count].clamp(min=1e-12)
    tau2[:count] = found
    tau2[count:] = found[-1]


def update_shift_sigma(model: ParticleModel, statistics: Statistics) -> None:
    """Width of the shift prior from the posterior's second moment (at least half a pixel)."""
    images = statistics.counts.sum()
    variance = statistics.shift_power / (2 * images)
    sigma = variance.sqrt().clamp(min=model.pixel_size / 2)
    model.shift.sigma.fill_(float(sigma))


def power(volume: Maps) -> Tensor:
    """Mean of |V_k|^2 per shell, [S]."""
    return shell_mean(fft3(volume).abs() ** 2)


def _scaled(volume: Maps, gain: Tensor) -> Maps:
    return ifft3(fft3(volume) * gain).real
