"""The noise of an image as a distribution of all its real pixels: white, or shell by shell."""

from math import log, pi
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from cryoprob.checks import require
from cryoprob.fourier.bands import full_band
from cryoprob.types import Images

__all__ = ["RadialNoise", "WhiteNoise", "shell_power"]

_ONE = torch.Size()


def shell_power(images: Images) -> Tensor:
    """Sum of squares of the independent numbers of each shell, [*, S] float64.

    For images [*, D, D]; ``S = D // 2 + 2``, corners lumped in the last. The shells add up to the
    sum of squared pixels.
    """
    band = full_band(images.shape[-1])
    values = torch.view_as_real(band.pack(images)).double().square().sum(-1)
    totals = values.new_zeros(*values.shape[:-1], band.n_shells)
    return totals.index_add(-1, band.shell.to(images.device), values)


class _ImageNoise(Distribution):
    """What the two noises share: a real, zero-mean image ``[D, D]`` as the event."""

    support = constraints.independent(constraints.real, 2)  # type: ignore[no-untyped-call]
    has_rsample = True
    sigma2: Tensor
    box: int

    @property
    def mean(self) -> Tensor:
        """Zero, [*, D, D]."""
        return self.sigma2.new_zeros(()).expand(self._extended_shape())

    def power(self, images: Images) -> Tensor:
        """:func:`shell_power` of images, [*, S]; its mean is sigma2 times the count of numbers."""
        return shell_power(images)

    def sample(self, sample_shape: Any = _ONE, generator: torch.Generator | None = None) -> Tensor:
        """Images ``[*sample_shape, *batch, D, D]``; see ``rsample``."""
        with torch.no_grad():
            return self.rsample(sample_shape, generator)

    def rsample(
        self, sample_shape: Any = _ONE, generator: torch.Generator | None = None
    ) -> Tensor:
        """Images ``[*sample_shape, *batch, D, D]``, differentiable in ``sigma2``.

        ``generator`` makes them repeatable; without one, torch's own random state is used, as in
        every torch distribution.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        drawn = "cpu" if generator is None else generator.device
        white = torch.randn(shape, generator=generator, dtype=self.sigma2.dtype, device=drawn)
        return self._color(white.to(self.sigma2.device))

    def log_prob(self, value: Images) -> Tensor:
        """Exact Gaussian log density of all ``D**2`` pixels, nats, [*batch].

        Summed in float64; returned in the wider type of ``value`` and ``sigma2``.
        """
        if self._validate_args:
            self._validate_sample(value)
        kind = torch.promote_types(value.dtype, self.sigma2.dtype)
        return self._log_density(value).to(kind)

    def _color(self, white: Images) -> Images:
        raise NotImplementedError

    def _log_density(self, images: Images) -> Tensor:
        raise NotImplementedError

    def _copy(self, instance: Distribution | None, batch: Any, tail: list[int]) -> Any:
        """The bookkeeping of ``expand``: sigma2 broadcast to ``[*batch, *tail]``."""
        new = self._get_checked_instance(type(self), instance)  # type: ignore[no-untyped-call]
        new.box, new.sigma2 = self.box, self.sigma2.expand([*batch, *tail])
        Distribution.__init__(new, torch.Size(batch), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new


class WhiteNoise(_ImageNoise):
    """Independent pixels N(0, sigma2).

    Parameters
    ----------
    sigma2
        Variance of a pixel, positive, [*] (the batch shape).
    box
        Pixels along a side, even.
    """

    arg_constraints = {"sigma2": constraints.positive}

    def __init__(self, sigma2: Tensor, box: int, validate_args: bool | None = None) -> None:
        self.sigma2, self.box = sigma2, full_band(box).box
        super().__init__(sigma2.shape, torch.Size((box, box)), validate_args)

    @property
    def variance(self) -> Tensor:
        """Variance of each pixel, [*, D, D]."""
        return self.sigma2[..., None, None].expand(self._extended_shape())

    def whiten(self, images: Images) -> Images:
        """Images divided by the standard deviation: noise becomes white with variance 1."""
        return images / self.sigma2.sqrt()[..., None, None]

    def expand(self, batch_shape: Any, _instance: Distribution | None = None) -> "WhiteNoise":
        """The same noise with a larger batch shape."""
        return self._copy(_instance, batch_shape, [])  # type: ignore[no-any-return]

    def _color(self, white: Images) -> Images:
        return white * self.sigma2.sqrt()[..., None, None]

    def _log_density(self, images: Images) -> Tensor:
        sigma2, square = self.sigma2.double(), images.double().square().sum((-2, -1))
        return -(square / sigma2 + self.box**2 * (log(2 * pi) + sigma2.log())) / 2


class RadialNoise(_ImageNoise):
    """Stationary noise with one variance for every shell of frequencies.

    Every packed number of shell s (see :class:`~cryoprob.fourier.bands.Band`) is an independent
    N(0, sigma2[s]); the image is real and has no symmetry.

    Parameters
    ----------
    sigma2
        Variance per shell, positive, [*, S]; ``S = box // 2 + 2`` (corners lumped in the last).
    box
        Pixels along a side, even.

    Raises
    ------
    InputError
        If the box is odd or ``sigma2`` has another number of shells.
    """

    arg_constraints = {
        "sigma2": constraints.independent(constraints.positive, 1)  # type: ignore[no-untyped-call]
    }

    def __init__(self, sigma2: Tensor, box: int, validate_args: bool | None = None) -> None:
        shells = full_band(box).n_shells
        require(
            sigma2.ndim > 0 and sigma2.shape[-1] == shells,
            "sigma2 of RadialNoise",
            expected=f"{shells} shells for a box of {box}",
            got=f"shape {tuple(sigma2.shape)}",
            remedy="Give one variance per shell 0 ... box // 2 + 1, the corners last.",
        )
        self.sigma2, self.box = sigma2, box
        super().__init__(sigma2.shape[:-1], torch.Size((box, box)), validate_args)

    @property
    def variance(self) -> Tensor:
        """Variance of each pixel, [*, D, D]: the mean of sigma2 over all ``D**2`` numbers."""
        mean = (self.sigma2 * self._numbers().to(self.sigma2)).sum(-1) / self.box**2
        return mean[..., None, None].expand(self._extended_shape())

    def whiten(self, images: Images) -> Images:
        """Images with every frequency divided by its standard deviation: white with variance 1."""
        return self._scale(images, self.sigma2.rsqrt())

    def expand(self, batch_shape: Any, _instance: Distribution | None = None) -> "RadialNoise":
        """The same noise with a larger batch shape."""
        return self._copy(_instance, batch_shape, [self.sigma2.shape[-1]])  # type: ignore[no-any-return]

    def _numbers(self) -> Tensor:
        return full_band(self.box).numbers_per_shell().to(self.sigma2.device)

    def _scale(self, images: Images, factor: Tensor) -> Images:
        """Images with the frequencies of shell s multiplied by ``factor[..., s]``."""
        band = full_band(self.box)
        return band.unpack(band.pack(images) * factor[..., band.shell.to(factor.device)])

    def _color(self, white: Images) -> Images:
        return self._scale(white, self.sigma2.sqrt())

    def _log_density(self, images: Images) -> Tensor:
        sigma2, numbers = self.sigma2.double(), self._numbers()
        terms = shell_power(images) / sigma2 + numbers * (log(2 * pi) + sigma2.log())
        return -terms.sum(-1) / 2
