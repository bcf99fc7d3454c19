"""A normal law of the volume, independent from one Fourier mode to the next."""

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import kl_divergence

from cryoprob.checks import require
from cryoprob.fourier.gaussian_map import GaussianMap
from cryoprob.fourier.modes import opposite
from cryoprob.fourier.normal import NormalEquations
from cryoprob.fourier.shells import spread
from cryoprob.inference.treatments.volume import VolumeTreatment
from cryoprob.models.volumes.fourier_gaussian import FourierGaussian
from cryoprob.particles import Batch
from cryoprob.types import Maps

__all__ = ["GaussianVolume"]


class GaussianVolume(VolumeTreatment):
    """q(volume) = normal, a mean and a variance for every real Fourier mode of the map.

    Slices are linear in the map, so the expectation of an image's energy is closed,

        E_q |x - H V|^2 = |x - H mu|^2 + sum_k (H^T H)_kk v_k,

    and the E-step scores poses by it, exactly. The M-step puts the mean where the scored weights
    have a point estimate's and ``v_k = 1 / ((H^T W H)_kk + 1 / tau2_k)``, the exact optimum. With
    the grid, the band, ``tau2`` and the noise held and no mask, ``sum_i bound_i - KL(q || prior)``
    rises at every step and stays below the log evidence of the whole data set. Ullrich et al. 2019
    (FSTdiff), with expectations in the place of draws.

    A solvent mask multiplies the mean alone, after the M-step: the bound is then that of the
    masked mean, still a bound, and no longer the largest.

    Parameters
    ----------
    mean
        Start of the mean, [D, D, D].
    variance
        Start of the modes' variances, as :class:`GaussianMap` has them, [D, D, D].

    Raises
    ------
    InputError
        If a variance is negative, or their shape is not the map's.

    Notes
    -----
    The best factorized law is too narrow: ``v_k`` is the variance of a mode when all others are
    given, which is the marginal one only where slices do not mix them. ``volume_std.mrc`` comes
    from exact draws (:func:`~cryoprob.inference.m_step.posterior_std`) whatever the treatment, and
    is the wider of the two; both leave out what the poses would give way. Measured, q's deviation
    over that of exact draws by shell: 0.85 to 0.99 at the end of a fit (200 images of 16^3, SNR
    0.5); where data outweigh the prior everywhere 0.9 inside the band and 0.2 to 0.6 at its rim.

    Poses summed out by enumeration in Pyro (``TraceEnum_ELBO``) are so at every draw of the map,
    which gives more than the streamed bound: that one has a single q of the poses for all draws.
    """

    has_density = True
    weight: Tensor

    def __init__(self, mean: Maps, variance: Maps) -> None:
        super().__init__(mean)
        got = f"{list(variance.shape)} for {list(mean.shape)}"
        alike = variance.shape == mean.shape
        require(alike, "variance of the volume", expected="the map's shape", got=got)
        least = float(variance.min())
        require(least >= 0, "variance of the volume", expected="0 or more", got=f"{least:g}")
        both = (variance + opposite(variance)) / 2
        self.log_variance = nn.Parameter(both.to(mean).log())
        self.register_buffer("weight", torch.zeros_like(mean), persistent=False)

    @property
    def variance(self) -> Maps:
        """Of every mode, alike at k and -k, [D, D, D]."""
        return self.log_variance.exp()

    @property
    def maps(self) -> GaussianMap:
        """The law of maps under which images are scored; detached."""
        return GaussianMap(self.coefficients.detach(), self.variance.detach())

    def law(self) -> FourierGaussian:
        """The same as a Pyro distribution."""
        return FourierGaussian(self.coefficients, self.variance)

    def forward(self, site: str, batch: Batch) -> None:
        """A draw of the law."""
        pyro.sample(site, self.law())

    def observe(self, equations: NormalEquations) -> None:
        """Note the data's precision of every mode."""
        self.weight = equations.mode_weights().clamp(min=0)  # rounding, where there are no data

    def settle(self, tau2: Tensor) -> None:
        """The variances that maximize the evidence lower bound under a prior's ``tau2`` [S]."""
        precision = self.weight + 1 / spread(tau2, self.weight.shape[-1])
        self.log_variance.data = -torch.log(precision)

    def kl(self, prior: TorchDistribution) -> Tensor:
        """KL(q || prior) in nats, [] (float64)."""
        found: Tensor = kl_divergence(self.law(), prior)
        return found
