"""The most probable pose of a grid by branch and bound with frequency marching."""

from cryoprob.checks import require
from cryoprob.inference.bounds import BOUNDS
from cryoprob.inference.treatments.modal import Modal

__all__ = ["Bounded"]


class Bounded(Modal):
    """:class:`Modal` whose search gives up a set of poses only where a bound allows it.

    A beam finds a good pose; then the grids are searched from coarse to fine in growing bands, and
    what cannot beat the best pose known is given up (:mod:`cryoprob.inference.branch_and_bound`).

    Parameters
    ----------
    bound
        What a score in a band at a cell's center says of the whole images at all poses inside:

        - ``"probable"``: they explain no more than a signal and noise do at odds of 3e-5 (Punjani
          et al. 2017, with what varies inside the cell counted too).
        - ``"cells"``: they explain no more than any image could. The result is the best pose of
          the whole grid, always.
        - ``"points"``: the center stands for the cell (Zhong et al. 2020, algorithm 1). Sure on
          one grid, in growing bands; from grid to grid a cell may go for its center's sake.
    beam
        Width of the beam that looks for the pose to beat (not used by ``"points"``).
    coarse_order, polish, block_bytes
        As of :class:`Modal`.

    Raises
    ------
    InputError
        If there is no such bound, and as :class:`Modal` does.

    Notes
    -----
    Measured on bead walks of 32 pixels, 7.5 degrees, SNR 10 to 0.1, in parts of the grid scored:
    ``"probable"`` 5 to 8 % and never another pose than the whole grid's, ``"cells"`` 6 to 35 %,
    ``"points"`` 0.6 % to all of it, twice over. A beam of 32 missed up to 3 %. Bounds need the
    slices of the whole fine grid once for every map: with few images that costs most.
    """

    def __init__(
        self,
        bound: str = "probable",
        *,
        beam: int = 8,
        coarse_order: int = 2,
        polish: int = 0,
        block_bytes: int = 2**23,
    ) -> None:
        require(bound in BOUNDS, "bound", expected=" or ".join(BOUNDS), got=repr(bound))
        super().__init__(beam, coarse_order=coarse_order, polish=polish, block_bytes=block_bytes)
        self.bound = BOUNDS[bound]
        if not self.bound.inside:
            self.beam = None
