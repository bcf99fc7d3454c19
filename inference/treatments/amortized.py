"""Numbers that an encoder reads off the image: amortized inference."""

import torch
from torch import Tensor, nn

from cryoprob.checks import require
from cryoprob.inference.encoders.base import Encoder
from cryoprob.inference.laws.base import Law
from cryoprob.inference.treatments.base import Lawful
from cryoprob.particles import Batch

__all__ = ["Amortized"]


class Amortized(Lawful):
    """q = ``law`` with numbers that are a linear function of an encoder's features.

    Parameters
    ----------
    encoder
        Shared with the treatments of other sites that were given the same one; it then looks at
        a batch only once.
    law
        The family of q.
    start
        Values at which the heads start (one each), [heads, *event].

    Raises
    ------
    InputError
        If the encoder has features of several in-plane angles, and the law's numbers do not come
        in as many like parts.
    """

    def __init__(self, encoder: Encoder, law: Law, start: Tensor) -> None:
        super().__init__(law)
        self.encoder = encoder
        parts, bias = encoder.positions, law.starting(start)
        own = law.size // parts
        alike = law.size == own * parts and bias.equal(bias[:own].repeat(parts))
        wanted = f"numbers in {parts} like parts, one for each angle (Cells of the same order)"
        got = f"{law.size} numbers of {type(law).__name__}"
        require(alike, "law", expected=wanted, got=got)
        self.head = nn.Linear(encoder.size, own, dtype=start.dtype).to(start.device)
        with torch.no_grad():
            self.head.weight.mul_(0.1)
            self.head.bias.copy_(bias[:own])

    def numbers_of(self, batch: Batch) -> Tensor:
        """The law's numbers of each image, [N, size]."""
        found: Tensor = self.head(self.encoder.look(batch)).flatten(1)
        return found
