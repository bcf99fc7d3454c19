"""Fourier ring correlation as a likelihood: every ring is a direction, von Mises-Fisher."""

from math import log, pi

import torch
from scipy.special import ive
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.bands import Band, full_band
from cryoprob.fourier.gaussian_map import AnyMap, mean_of
from cryoprob.inference.guide import Guide
from cryoprob.inference.objectives.base import Objective
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import Batch
from cryoprob.types import Coefficients

__all__ = ["RingCorrelation", "concentration", "concentration_of_power", "ring_correlation"]

_SURE = 0.95
"""Largest correlation with the truth that a ring of an image is given."""


def ring_correlation(band: Band, one: Coefficients, other: Coefficients) -> Tensor:
    """Correlation of packed images [*, m] in each shell of the band, [*, S]; 0 in empty ones."""
    shell = band.shell[: one.shape[-1]].to(one.device)
    rings = torch.nn.functional.one_hot(shell, band.n_shells).to(one.real.dtype)
    cross = (one.conj() * other).real @ rings
    power = (one.abs().square() @ rings) * (other.abs().square() @ rings)
    tiny = torch.finfo(power.dtype).tiny
    return cross * power.clamp(min=tiny).rsqrt()


def concentration(correlation: Tensor, numbers: Tensor) -> Tensor:
    """The concentration [S] whose mean ring correlation is this one [S], of so many numbers.

    ``r (n - r^2) / (1 - r^2)``; Banerjee et al. 2005, J. Mach. Learn. Res. 6, 1345, eq. 4.4.
    """
    r = correlation.clamp(1e-3, 1 - 1e-6)
    return r * (numbers - r**2) / (1 - r**2)


def concentration_of_power(power: Tensor, box: int) -> Tensor:
    """Concentrations [S] of images of a mean power [S], whose last three rings are white noise.

    The correlation of an image with its noiseless self is the root of the signal's share.
    """
    floor = power[box // 2 - 3 : box // 2].mean()
    share = (1 - floor / power).clamp(0, _SURE**2)
    return concentration(share.sqrt(), full_band(box).numbers_per_shell().clamp(min=2))


class RingCorrelation(Objective):
    """``sum over rings of kappa FRC + log C(kappa)``, whatever the scale of image and volume.

    The direction of a ring's n numbers on the sphere in R^n is von Mises-Fisher around that of the
    expected image. It is no likelihood of the image (powers of rings count nothing), so that its
    nats compare with no other objective's. Chen and Ludtke 2021 (E2GMM) raise the plain mean.

    Parameters
    ----------
    kappa
        Concentration, one number or one for each shell [S].
    first
        The first ring that counts.

    Raises
    ------
    InputError
        If a concentration is not positive.
    """

    kind = "ring_correlation"

    def __init__(self, kappa: Tensor | float, first: int = 4) -> None:
        self.kappa = torch.as_tensor(kappa, dtype=torch.float64)
        fits = bool((self.kappa > 0).all())
        require(fits, "kappa", expected="positive", got=str(self.kappa.tolist()))
        self.first = first

    def __call__(self, model: ParticleModel, guide: Guide, volume: AnyMap, batch: Batch) -> Tensor:
        """The objective of each image, [N]."""
        poses = guide.draw(batch, 1)
        guide.check(model)
        values = {site: getattr(poses, site) for site in guide.sites}
        own = mean_of(volume)
        law = model.likelihood(own, batch=batch, **values)
        mean = law.mean[..., : len(model.band)]
        found = ring_correlation(model.band, mean, batch.image[:, : len(model.band)])
        kappa, constant = (v.to(found) for v in self._rings(model.band))
        score = (found * kappa).sum(-1) + constant
        prior = guide.log_prior(model, poses) + model.log_potential(own, poses.conformation)
        return (poses.log_weight.exp() * (score + prior - poses.log_q)).sum(0)

    def _rings(self, band: Band) -> tuple[Tensor, Tensor]:
        """Concentration of each ring that counts [S] (0 elsewhere), and the constants' sum."""
        numbers = torch.bincount(band.shell, (band.weight**2).round(), band.n_shells)
        counted = (torch.arange(band.n_shells) >= self.first) & (numbers > 1)
        kappa = torch.where(counted, self.kappa, 0)
        each = log_normalizer(kappa[counted], numbers[counted])
        return kappa, each.sum()


def log_normalizer(kappa: Tensor, numbers: Tensor) -> Tensor:
    """``log C_n(kappa)`` of von Mises-Fisher densities on the spheres in R^n, [S] (float64)."""
    order = numbers.double() / 2 - 1
    bessel = torch.from_numpy(ive(order.numpy(), kappa.numpy())).log() + kappa
    return order * kappa.log() - (order + 1) * log(2 * pi) - bessel
