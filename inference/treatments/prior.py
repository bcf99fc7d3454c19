"""The prior itself as q: no inference at all, or a proposal that needs none."""

from math import log

import pyro
from torch import Tensor

from cryoprob.checks import require
from cryoprob.inference.laws.base import Draws
from cryoprob.inference.treatments.base import Drawn
from cryoprob.models.local_prior import LocalPrior
from cryoprob.particles import Batch

__all__ = ["Prior"]


class Prior(Drawn):
    """q = the model's prior of the site.

    Parameters
    ----------
    prior
        The model's own (``model.rotation`` or ``model.shift``), continuous.

    Raises
    ------
    InputError
        If it is on a grid; use ``Exact`` there.
    """

    def __init__(self, prior: LocalPrior) -> None:
        super().__init__()
        require(not prior.enumerable, "prior", expected="a continuous one", got="a grid")
        self.prior = prior

    def forward(self, site: str, batch: Batch) -> None:
        """A draw of the prior."""
        pyro.sample(site, self.prior.prior())

    def draw(self, batch: Batch, count: int) -> Draws:
        """Draws of the prior."""
        law = self.prior.prior()
        value: Tensor = law.sample((count, len(batch.index)))
        log_q = law.log_prob(value)
        return Draws(value, log_q, log_q.new_full(log_q.shape, -log(count)))
