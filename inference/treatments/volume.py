"""What a treatment of the ``volume`` site is."""

from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from cryoprob.checks import InputError
from cryoprob.fourier.gaussian_map import AnyMap
from cryoprob.fourier.normal import NormalEquations
from cryoprob.inference.treatments.base import Treatment

__all__ = ["VolumeTreatment"]


class VolumeTreatment(Treatment):
    """q of the volume, with a value or a mean at :attr:`coefficients`.

    Parameters
    ----------
    coefficients
        Start of that value.

    Attributes
    ----------
    has_density
        False where q is a Dirac, which has no divergence from the prior.
    """

    has_density: bool = False

    def __init__(self, coefficients: Tensor) -> None:
        super().__init__()
        self.coefficients = nn.Parameter(coefficients.clone())

    @property
    def maps(self) -> AnyMap:
        """The map, or the law of maps, under which images are scored; detached."""
        return self.coefficients.detach()

    def observe(self, equations: NormalEquations) -> None:
        """Note what the data say of q beside its mean: the E-step's normal equations."""

    def settle(self, tau2: Tensor) -> None:
        """Put what q has beside its mean at the optimum for the data last observed.

        ``tau2`` [S] is the prior's variance per shell.
        """

    def kl(self, prior: TorchDistribution) -> Tensor:
        """KL(q || prior) in nats, [] (float64).

        Raises
        ------
        InputError
            If q is a Dirac.
        """
        expected = "a q of the volume with a density (GaussianVolume)"
        raise InputError("volume", expected=expected, got=type(self).__name__)
