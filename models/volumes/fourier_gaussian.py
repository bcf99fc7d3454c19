"""Normal laws of maps that are independent in Fourier space."""

from math import pi

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from cryoprob.fourier.transforms import fft3, ifft3
from cryoprob.types import Maps, Sizes

__all__ = ["FourierGaussian"]


class FourierGaussian(TorchDistribution):
    """Normal maps [D, D, D] whose Fourier modes are independent; the density is of the D^3 voxels.

    Parameters
    ----------
    loc
        Mean map, [D, D, D] or a number.
    spectrum
        Mean of ``|V_k - loc_k|^2`` of the centered unitary transform, alike at k and -k,
        [D, D, D]. The cosine and the sine of such a pair of modes have this variance each.
    shape
        Batch shape.

    Notes
    -----
    The divergence of two such laws is closed: :func:`torch.distributions.kl_divergence`.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.real, 3)
    has_rsample = True

    def __init__(self, loc: Tensor, spectrum: Tensor, shape: Sizes = ()) -> None:
        self.loc, self._spectrum = loc, spectrum
        super().__init__(torch.Size(shape), spectrum.shape, validate_args=False)

    def expand(
        self, batch_shape: Sizes, _instance: "FourierGaussian | None" = None
    ) -> "FourierGaussian":
        """The same law of a batch of maps: one map of each particle of an estimator."""
        return FourierGaussian(self.loc, self.spectrum, batch_shape)

    @property
    def spectrum(self) -> Tensor:
        """Variance of every mode, [D, D, D]."""
        return self._spectrum

    @property
    def mean(self) -> Maps:
        """[*batch, D, D, D]."""
        return self.loc.expand(self._extended_shape())

    @property
    def variance(self) -> Maps:
        """Of every voxel, all alike, [*batch, D, D, D]."""
        return self.spectrum.mean().expand(self._extended_shape())

    def rsample(self, sample_shape: Sizes = torch.Size()) -> Maps:
        """Draw maps, [*sample, *batch, D, D, D]."""
        shape, root = self._extended_shape(sample_shape), self.spectrum.sqrt()
        white = torch.randn(shape, dtype=root.dtype).to(root.device)
        return self.loc + ifft3(fft3(white) * root).real

    def log_prob(self, value: Maps) -> Tensor:
        """Log density in nats of maps [*, D, D, D], [*batch]."""
        spectrum, power = self.spectrum, fft3(value - self.loc).abs() ** 2
        each = power / spectrum + torch.log(2 * pi * spectrum)
        found = -each.double().sum((-3, -2, -1)).to(spectrum) / 2
        return found.expand(torch.broadcast_shapes(found.shape, self.batch_shape))


def _divergence(q: FourierGaussian, p: FourierGaussian) -> Tensor:
    """KL(q || p) in nats, [*batch] (float64)."""
    ratio = (q.spectrum / p.spectrum).double()
    away = (fft3(q.mean - p.loc).abs() ** 2 / p.spectrum).double()
    return (ratio + away - 1 - ratio.log()).sum((-3, -2, -1)) / 2


register_kl(FourierGaussian, FourierGaussian)(_divergence)
