"""Importance weights on the draws of a proposal."""

from torch import Tensor

from cryoprob.checks import require
from cryoprob.inference.laws.base import Draws
from cryoprob.inference.treatments.base import Drawn, Lawful
from cryoprob.particles import Batch

__all__ = ["Importance"]


class Importance(Drawn):
    """q = K draws of a proposal, weighted by p / q: as K grows, the exact posterior.

    The bound is the IWAE's, ``E log (1/K) sum_k p(x, h_k) / q(h_k)``, which does not fall with K
    and stays below the log evidence. If one pose site has it, the weights are those of both.
    Burda et al. 2016, eq. 8.

    Parameters
    ----------
    proposal
        A treatment with a density: ``PerImage``, ``Amortized`` or ``Prior``.
    draws
        K (per head of the proposal).

    Raises
    ------
    InputError
        If the proposal is a Dirac or K is not positive.
    """

    def __init__(self, proposal: Drawn, draws: int) -> None:
        super().__init__()
        got = type(proposal).__name__
        require(proposal.has_density, "proposal", expected="one with a density", got=got)
        require(draws > 0, "draws", expected="a positive number", got=str(draws))
        self.proposal, self.draws, self.heads = proposal, draws, proposal.heads

    @property
    def lawful(self) -> Lawful | None:
        """What learns."""
        return self.proposal.lawful

    def forward(self, site: str, batch: Batch) -> None:
        """The proposal."""
        self.proposal(site, batch)

    def draw(self, batch: Batch, count: int) -> Draws:
        """The proposal's draws, at least K."""
        return self.proposal.draw(batch, max(count, self.draws))

    def mode(self, batch: Batch) -> Tensor:
        """The proposal's mode."""
        return self.proposal.mode(batch)
