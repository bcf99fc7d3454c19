"""What a conformation is: a few numbers, or one of several states, of every particle."""

from cryoprob.models.local_prior import LocalPrior

__all__ = ["Conformation"]


class Conformation(LocalPrior):
    """Prior of the ``conformation`` site.

    Attributes
    ----------
    size
        Numbers of a continuous conformation (its values are [size]), or states of a discrete one
        (its values are whole numbers below ``size``).
    """

    size: int
