"""The levels of a coarse-to-fine search: grids, bands, and what their cells cannot tell."""

from dataclasses import dataclass
from typing import TypeVar

from cryoprob.checks import InputError, require
from cryoprob.fourier.bands import Band
from cryoprob.fourier.gaussian_map import AnyMap
from cryoprob.inference.blur import Blur
from cryoprob.inference.filtered import Filtered
from cryoprob.models.local_prior import LocalPrior
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import ShiftGridPrior
from cryoprob.models.poses.uniform_rotation import RotationGridPrior

__all__ = ["Level", "levels"]

_Grid = TypeVar("_Grid", RotationGridPrior, ShiftGridPrior)


@dataclass(frozen=True, eq=False)
class Level:
    """One grid of a coarse-to-fine search, and the band (largest shell) in which it is scored.

    ``blur`` says what its cells cannot tell; the finest level's stand for their centers alone.
    """

    rotation: RotationGridPrior
    shift: ShiftGridPrior
    radius: int
    blur: Blur | None = None

    @classmethod
    def of(cls, model: ParticleModel) -> "Level":
        """The model's own grids, in its own band.

        Raises
        ------
        InputError
            If a pose prior is continuous.
        """
        rotation = _grid(model.rotation, RotationGridPrior, "rotation", "order")
        shift = _grid(model.shift, ShiftGridPrior, "shift", "extent, step")
        return cls(rotation, shift, model.band.radius)

    def finer(self) -> "Level":
        """Both grids one step finer, in the same band."""
        return Level(self.rotation.finer(), self.shift.finer(), self.radius)

    def view(self, images: Filtered, band: Band) -> Filtered:
        """The images as a search of this level sees them; ``band`` is its own."""
        return images if self.blur is None else self.blur.apply(images, band)


def levels(model: ParticleModel, volume: AnyMap, coarse_order: int) -> list[Level]:
    """Grids from ``coarse_order`` to the model's own; each coarser one with its blur and band.

    Raises
    ------
    InputError
        If a pose prior is continuous, or the shift grid has too few levels.
    """
    found = [Level.of(model)]
    rotation, shift = found[0].rotation, found[0].shift
    while rotation.order > coarse_order:
        got = f"{shift.grid.level} refinements of the shift grid"
        remedy = "Discretize the shift with refine= the number of finer rotation orders."
        expected = f"{found[-1].rotation.order - coarse_order} or more"
        require(shift.grid.level > 0, "shift prior", expected=expected, got=got, remedy=remedy)
        rotation, shift = rotation.coarser(), shift.coarser()
        blur = Blur.inside(model, volume, rotation, shift)
        found.insert(0, Level(rotation, shift, blur.radius(model.band.radius), blur))
    return found


def _grid(prior: LocalPrior, kind: type[_Grid], site: str, arguments: str) -> _Grid:
    if isinstance(prior, kind):
        return prior
    raise InputError(
        f"{site} prior",
        expected="a prior on a grid, over which the E-step sums",
        got=f"{type(prior).__name__}, which is continuous",
        remedy=f"Discretize it: model.{site} = model.{site}.discretize({arguments}).",
    )
