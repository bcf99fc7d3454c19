"""The most probable pose of a grid: modal EM by search."""

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor

from cryoprob.checks import InputError, require
from cryoprob.inference.bounds import Bound
from cryoprob.inference.laws.base import Draws
from cryoprob.inference.treatments.base import Drawn
from cryoprob.particles import Batch

__all__ = ["Modal"]


class Modal(Drawn):
    """q = a Dirac at the best pose, which each E-step searches anew and writes down here.

    On a grid with cell masses that is an ELBO, ``log p(x, h)`` of the best cell, below the log
    evidence by minus the log of the cell's posterior mass. With ``polish`` the pose leaves the
    grid and the objective is the ``profile_log_joint``, which bounds nothing.

    Parameters
    ----------
    beam
        Rotation cells kept per image at each coarser level, and half as many shifts (cryoDRGN2
        keeps 8); None searches the whole fine grid.
    coarse_order
        Order of the coarsest rotation grid, searched completely (used with ``beam``).
    polish
        Gauss-Newton steps from the best cell, on SO(3) x R^2.
    block_bytes
        Memory of one block of scores.

    Raises
    ------
    InputError
        If ``beam`` is not positive or ``polish`` is negative.
    """

    searches = True
    has_density = False
    values: Tensor
    bound: Bound | None

    def __init__(
        self,
        beam: int | None = None,
        *,
        coarse_order: int = 2,
        polish: int = 0,
        block_bytes: int = 2**23,
    ) -> None:
        super().__init__()
        require(beam is None or beam > 0, "beam", expected="a positive number", got=str(beam))
        require(polish >= 0, "polish", expected="0 or more steps", got=str(polish))
        self.beam, self.coarse_order, self.polish = beam, coarse_order, polish
        self.block_bytes, self.bound = block_bytes, None
        self.register_buffer("values", torch.zeros(0), persistent=False)

    def note(self, index: Tensor, found: Tensor, total: int) -> None:
        """Write down the poses ``found`` of images ``index`` [n] of ``total``."""
        if len(self.values) != total:
            self.values = found.new_full((total, *found.shape[1:]), torch.nan)
        self.values[index] = found.to(self.values)

    def forward(self, site: str, batch: Batch) -> None:
        """A Dirac at what the last search found."""
        value = self._found(batch)
        pyro.sample(site, Delta(value, event_dim=value.dim() - 1))

    def draw(self, batch: Batch, count: int) -> Draws:
        """What the last search found, once."""
        return Draws.at(self._found(batch))

    def _found(self, batch: Batch) -> Tensor:
        value = self.values[batch.index] if len(self.values) == batch.total else None
        if value is not None and not bool(value.isnan().any()):
            return value
        raise InputError(
            "modal poses",
            expected="poses that a search has found",
            got="images that were not searched",
            remedy="Run e_step(model, guide, stack) first.",
        )
