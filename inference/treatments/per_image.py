"""Free numbers for every image: auto-decoding, or variational EM with tables."""

from torch import Tensor, nn

from cryoprob.inference.laws.base import Law
from cryoprob.inference.treatments.base import Lawful
from cryoprob.particles import Batch

__all__ = ["PerImage"]


class PerImage(Lawful):
    """q = ``law`` with numbers of its own for every image.

    Parameters
    ----------
    law
        The family of q.
    values
        Where the laws of all N images start, [N, *event].
    """

    def __init__(self, law: Law, values: Tensor) -> None:
        super().__init__(law)
        self.numbers = nn.Parameter(law.numbers(values).clone())

    def numbers_of(self, batch: Batch) -> Tensor:
        """The batch's rows of the table, [N, size]."""
        return self.numbers[batch.index]
