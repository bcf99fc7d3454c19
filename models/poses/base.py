"""What the prior of a shift is."""

from torch import Tensor

from cryoprob.models.local_prior import LocalPrior

__all__ = ["ShiftPrior"]


class ShiftPrior(LocalPrior):
    """Prior of a shift.

    Attributes
    ----------
    sigma
        Its width, Angstrom, which the M-step updates in place.
    """

    sigma: Tensor
