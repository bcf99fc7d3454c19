"""The contrast of an image summed out at every pose: linear, so normal, in closed form."""

from dataclasses import dataclass
from math import log

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from cryoprob.models.gaussian_contrast import GaussianContrast
from cryoprob.models.particle_model import ParticleModel

__all__ = ["AmplitudeLaw", "Amplitudes", "expanded_scale"]


@dataclass(frozen=True, eq=False)
class Amplitudes:
    """Normal posteriors of the contrast at poses: ``mean``, and ``variance`` that broadcasts."""

    mean: Tensor
    variance: Tensor

    @property
    def square(self) -> Tensor:
        """Mean squares, which the energies of poses count by."""
        return self.mean.square() + self.variance

    def moments(self, weights: Tensor) -> Tensor:
        """Sums of weights [n, T, Q], and of these times the contrast - 1 and its square, [3, n].

        In float64, from distances to each image's mean: the contrast of a strong signal is known
        better than a mean square in single precision tells from a squared mean.
        """
        mass = weights.sum((1, 2)).double()
        center = (weights * self.mean).sum((1, 2)) / mass.to(weights).clamp(min=1e-30)
        away = self.mean - center[:, None, None]
        first = (weights * away).sum((1, 2)).double()
        second = (weights * (away.square_() + self.variance)).sum((1, 2)).double()
        shift = center.double() - 1
        square = second + shift * (2 * first + mass * shift)
        return torch.stack([mass, first + mass * shift, square])


@dataclass(frozen=True)
class AmplitudeLaw:
    """``a ~ N(1, variance)`` beside the likelihood ``exp(a cross - a^2 energy / 2)`` of a pose."""

    variance: float

    @classmethod
    def of(cls, model: ParticleModel) -> "AmplitudeLaw | None":
        """The prior of a model whose contrast is a latent site; None where it is given."""
        prior = model.contrast
        return cls(float(prior.scale) ** 2) if isinstance(prior, GaussianContrast) else None

    def summed(self, cross: Tensor, energy: Tensor) -> tuple[Tensor, Amplitudes]:
        """Log of the mean likelihood over the prior, and the posterior.

        ``cross`` is <filtered image, pose> and ``energy`` the pose's whole whitened energy, which
        broadcasts; both at contrast 1. With a = 1 + u nothing large cancels: the value is that of
        contrast 1 and what u adds. Differentiable in both.
        """
        spread = self.variance / (1 + self.variance * energy)
        tilt = cross - energy
        lift = tilt.square().mul_(spread / 2)
        lift += cross - (energy + torch.log1p(self.variance * energy)) / 2
        return lift, Amplitudes(tilt * spread + 1, spread)


def expanded_scale(law: AmplitudeLaw, mean: Tensor, std: Tensor, divergence: float) -> float:
    """The factor on a map that lets the images' contrasts, [n], be as their prior has them.

    Map and contrasts can trade a factor, which plain EM shifts by little at each step. So the
    model is expanded by one, ``contrast ~ N(f, f^2 variance)``, f has an M-step of its own, and
    the map takes it up (PX-EM; Liu, Rubin, Wu 1998, Biometrika 85, 755).

    Parameters
    ----------
    mean, std
        Of the contrasts' posteriors.
    divergence
        Of the map from its prior: half of its whitened power, in nats, which f^2 multiplies; with
        it the step never lowers the log posterior.
    """
    count = len(mean)
    first, second = float(mean.mean()), float((mean**2 + std**2).mean())

    def lost(scale: float) -> float:
        around = second / scale**2 - 2 * first / scale + 1
        return count * (log(scale) + around / (2 * law.variance)) + divergence * scale**2

    found = minimize_scalar(lost, bounds=(0.5, 2.0), method="bounded", options={"xatol": 1e-6})
    return float(found.x)
