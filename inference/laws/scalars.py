"""Laws of one real number, the contrast or the defocus of an image: a Dirac and a normal one."""

from pyro.distributions import Delta, Normal, TorchDistribution
from torch import Tensor

from cryoprob.inference.laws.vectors import DiracVector, NormalVector

__all__ = ["DiracScalar", "NormalScalar"]


class DiracScalar(DiracVector):
    """:class:`DiracVector` of values [] in place of [1].

    Parameters
    ----------
    unit
        As there: about 0.1 for a contrast, 100 Angstrom for a defocus.
    """

    def __init__(self, unit: float = 1.0) -> None:
        super().__init__(1, unit)

    def forward(self, numbers: Tensor) -> Delta:
        """The Dirac."""
        return Delta(self.mode(numbers))

    def numbers(self, value: Tensor) -> Tensor:
        """The value in units, [*, 1]."""
        return super().numbers(value[..., None])

    def mode(self, numbers: Tensor) -> Tensor:
        """The value, [*]."""
        return super().mode(numbers)[..., 0]


class NormalScalar(NormalVector):
    """:class:`NormalVector` of values [] in place of [1].

    Parameters
    ----------
    unit
        As there: about 0.1 for a contrast, 100 Angstrom for a defocus.
    width
        Standard deviation at the start (or for good, if ``fixed``); default a unit.
    fixed
        Keep that width for all images.
    """

    def __init__(
        self, unit: float = 1.0, width: float | None = None, *, fixed: bool = False
    ) -> None:
        super().__init__(1, unit, width, fixed=fixed)

    def forward(self, numbers: Tensor) -> TorchDistribution:
        """The normal law."""
        found: TorchDistribution = Normal(self.mode(numbers), self.widths(numbers)[..., 0])
        return found

    def numbers(self, value: Tensor) -> Tensor:
        """The value in units, and the starting width, [*, size]."""
        return super().numbers(value[..., None])

    def around(self, value: Tensor, covariance: Tensor) -> Tensor:
        """Numbers of the law of mean ``value`` [*] and variance ``covariance`` [*, 1, 1]."""
        return super().around(value[..., None], covariance)

    def mode(self, numbers: Tensor) -> Tensor:
        """The mean, [*]."""
        return super().mode(numbers)[..., 0]
