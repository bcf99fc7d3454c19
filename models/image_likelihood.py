"""The observed image as a Pyro distribution: it contracts over pixels before it broadcasts."""

from math import pi, prod

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from cryoprob.fourier.bands import Band
from cryoprob.types import Coefficients, Shifts, Sizes

__all__ = ["ImageLikelihood", "shift_phase"]


def shift_phase(band: Band, shift: Shifts, pixel_size: float) -> Tensor:
    """``exp(-2 pi i k . t)`` of shifts [*, 2] (Angstrom) at the band's frequencies, [*.

    M] complex.
    """
    frequency = torch.stack([band.kx, band.ky]).to(shift) / (band.box * pixel_size)
    angle = -2 * pi * (shift @ frequency)
    return torch.polar(torch.ones_like(angle), angle)


class ImageLikelihood(TorchDistribution):
    """Normal density of all ``D**2`` pixels of an image, its mean held as unexpanded factors.

    The mean of coefficient k is ``ctf_k exp(-2 pi i k.t) slice_k`` inside the band of the slices,
    zero outside; the variance is ``sigma2`` of its shell. ``log_prob`` multiplies the images by
    CTF and shift where those live, then contracts over k by one matrix product with the slices,
    whatever the enumeration dimensions: [T, 1, N] x [Q, 1] gives [T, Q, N] and no (image x pose x
    pixel) ever exists.

    Parameters
    ----------
    slices
        Central slices, [*, m] complex, at the first m coefficients of the band.
    phase
        Shift phases, [*, m] complex (:func:`shift_phase`).
    ctf
        Contrast transfer, [*, m] real.
    sigma2
        Noise variance per shell, [*, S].
    band
        The band of the observed images, M coefficients; values are [*, M] complex.
    shape
        Batch shape to broadcast to.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    support = constraints.independent(constraints.real, 1)

    def __init__(
        self,
        slices: Coefficients,
        phase: Tensor,
        ctf: Tensor,
        sigma2: Tensor,
        band: Band,
        *,
        shape: Sizes = (),
    ) -> None:
        self.slices, self.phase, self.ctf, self.sigma2, self.band = (
            slices,
            phase,
            ctf,
            sigma2,
            band,
        )
        parts = (slices, phase, ctf, sigma2)
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts), shape)
        super().__init__(batch, torch.Size([len(band)]), validate_args=False)

    def expand(
        self, batch_shape: Sizes, _instance: "ImageLikelihood | None" = None
    ) -> "ImageLikelihood":
        """The same distribution over a larger batch; the factors stay as small as they are."""
        parts = (self.slices, self.phase, self.ctf, self.sigma2, self.band)
        return ImageLikelihood(*parts, shape=batch_shape)

    def log_prob(self, value: Coefficients) -> Tensor:
        """Log density in nats of images [*, M], constants included, [*batch]."""
        noise_only, cross, energy = self.parts(value)
        found = noise_only + cross - energy / 2
        return found.expand(torch.broadcast_shapes(found.shape, self.batch_shape))

    def parts(self, value: Coefficients) -> tuple[Tensor, Tensor, Tensor]:
        """``(n, c, e)`` of ``log_prob = n + c - e / 2``, each broadcasts to [*batch].

        The log density of images [*, M] under noise alone, <image, mean> and |mean|^2, both over
        the noise's variance. Of a mean that is ``a`` times as large: ``a c`` and ``a^2 e``.
        """
        inside = self.slices.shape[-1]
        precision = 1 / self._variance(inside)
        filtered = value[..., :inside] * (self.ctf * precision) * self.phase.conj()
        cross = _contract(_reals(filtered), _reals(self.slices))
        energy = _contract(self.ctf**2 * precision, self.slices.abs() ** 2)
        return self._noise_only(value), cross, energy

    def log_prob_lost(self, variance: Tensor) -> Tensor:
        """What a ``variance`` [*, m] of the slices takes off the mean of ``log_prob``, [*batch].

        Half of its power after the CTF, over that of the noise.
        """
        precision = 1 / self._variance(self.slices.shape[-1])
        return _contract(self.ctf**2 * precision, variance) / 2

    def rsample(self, sample_shape: Sizes = torch.Size()) -> Coefficients:
        """Draw images, [*sample, *batch, M] complex."""
        shape = self._extended_shape(sample_shape)
        inside = self.slices.shape[-1]
        scale = self._variance(len(self.band)).sqrt()
        noise = torch.complex(*torch.randn(2, *shape, dtype=scale.dtype).to(scale.device))
        paired = (self.band.weight > 1).to(scale)
        noise = torch.complex(noise.real * scale, noise.imag * scale * paired)
        mean = self.ctf * self.phase * self.slices
        return noise + torch.nn.functional.pad(mean, (0, shape[-1] - inside))

    @property
    def mean(self) -> Coefficients:
        """Noiseless images, [*batch, M]."""
        mean = self.ctf * self.phase * self.slices
        mean = torch.nn.functional.pad(mean, (0, len(self.band) - mean.shape[-1]))
        return mean.expand(*self.batch_shape, -1)

    def _variance(self, count: int) -> Tensor:
        return self.sigma2[..., self.band.shell[:count].to(self.sigma2.device)]

    def _noise_only(self, value: Coefficients) -> Tensor:
        counts = self.band.numbers_per_shell().to(self.sigma2)
        power = value.abs() ** 2 / self._variance(len(self.band))
        constant = (counts * torch.log(2 * pi * self.sigma2)).sum(-1)
        return -(power.sum(-1) + constant) / 2


def _reals(values: Tensor) -> Tensor:
    return torch.view_as_real(values.resolve_conj()).flatten(-2)


def _contract(left: Tensor, right: Tensor) -> Tensor:
    """Sum over the last dimension of a broadcast product, by (batched) matrix products."""
    rank = max(left.dim(), right.dim()) - 1
    left, right = (v[(None,) * (rank + 1 - v.dim())] for v in (left, right))
    pairs = list(zip(left.shape[:-1], right.shape[:-1], strict=True))
    both = [i for i, (a, b) in enumerate(pairs) if a > 1 and b > 1]
    rows = [i for i, (a, b) in enumerate(pairs) if b == 1]
    columns = [i for i, (a, b) in enumerate(pairs) if a == 1 and b > 1]
    shape = [max(pair) for pair in pairs]

    def matrix(values: Tensor, kept: list[int], dropped: list[int]) -> Tensor:
        values = values.permute(*both, *kept, *dropped, rank)
        sizes = [[values.shape[i] for i in span] for span in _spans(len(both), len(kept))]
        return values.reshape(prod(sizes[0]), prod(sizes[1]), values.shape[-1])

    product = matrix(left, rows, columns) @ matrix(right, columns, rows).mT
    order = [*both, *rows, *columns]
    product = product.reshape([shape[i] for i in order])
    return product.permute([order.index(i) for i in range(rank)])


def _spans(first: int, second: int) -> tuple[range, range]:
    return range(first), range(first, first + second)
