"""Families of inference: each a row of treatments, and how its q is learned.

The table of Donnat et al. 2022 (Table 4), on one model.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from cryoprob.fourier.shells import spread
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.encoders.centering import Centering
from cryoprob.inference.encoders.polar import Polar
from cryoprob.inference.guide import Guide
from cryoprob.inference.imaging import exact_imaging
from cryoprob.inference.laws.cells import Cells
from cryoprob.inference.laws.rotations import ConcentratedLaw
from cryoprob.inference.laws.shifts import NormalShift, TurningShift
from cryoprob.inference.learn import EncoderLearner, Learner, seeded
from cryoprob.inference.natural_learner import NaturalLearner
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.objectives.profile_log_joint import ProfileLogJoint
from cryoprob.inference.objectives.sleep import Sleep
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.base import Treatment
from cryoprob.inference.treatments.bounded import Bounded
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.gaussian_volume import GaussianVolume
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.inference.treatments.proposed import Proposed
from cryoprob.inference.treatments.volume import VolumeTreatment
from cryoprob.models.particle_model import ParticleModel
from cryoprob.types import Maps

__all__ = ["Family", "Recipe", "family", "families"]

_NARROW = 1e-3
"""Variance of the map before the first M-step, in units of the prior's: poses are sought at a map
that is nearly given, as with a point estimate."""

_REACH_DEG = 12.0
"""Of the local search around an encoder's hypotheses."""

_ENCODER_BOX = 18
"""Eight shells: enough for poses within some degrees, which then can be refined."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """What a family is built from.

    Attributes
    ----------
    model
        Of the particles.
    start
        Map at which the volume starts; one for each class.
    plan
        Settings; a family fills in its own where the user left them at 0.
    total
        Images of the stack.
    seed, symmetry
        Of random starts; point group.
    """

    model: ParticleModel
    start: Maps
    plan: Schedule
    total: int
    seed: int
    symmetry: str = "C1"

    @property
    def volume(self) -> VolumeTreatment:
        """The volume at its start, treated as the plan has it."""
        start = self.start.to(self.model.noise.sigma2)
        if self.plan.volume == "point":
            return Point(start)
        narrow = _NARROW * spread(self.model.linear_volume.tau2, start.shape[-1])
        return GaussianVolume(start, narrow)

    @property
    def conformation(self) -> Treatment | None:
        """Classes are summed out."""
        return None if self.model.conformation is None else Exact()

    @property
    def unit_A(self) -> float:
        """Length of a usual shift, Angstrom."""
        return float(self.model.shift.sigma)

    def rotations(self, count: int) -> Tensor:
        """Random rotations to start from, [count, 3, 3]."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = random_rotations(count, generator, dtype=torch.float64)
        return drawn.to(self.model.noise.sigma2)


@dataclass(frozen=True)
class Family:
    """One row of the taxonomy.

    Attributes
    ----------
    name
        As on the command line.
    review
        What Donnat et al. 2022 call it.
    poses
        q of rotation and shift, in words.
    guide
        Builds the guide.
    learner
        Builds what trains q, or None where the E-step finds it.
    defaults
        Settings of its own.
    """

    name: str
    review: str
    poses: str
    guide: Callable[[Recipe], Guide]
    learner: Callable[[Recipe], Learner] | None = None
    defaults: tuple[tuple[str, float], ...] = ()

    def settle(self, plan: Schedule) -> Schedule:
        """The plan with this family's settings where it has 0."""
        own = {name: value for name, value in self.defaults if not getattr(plan, name)}
        kinds = {name: type(getattr(plan, name)) for name in own}
        return replace(plan, **{name: kinds[name](value) for name, value in own.items()})


def family(name: str) -> Family:
    """The family of a name that :mod:`cryoprob.inference.config` lists."""
    return families()[name]


def families() -> dict[str, Family]:
    """All of them, in the order of the taxonomy."""
    return {row.name: row for row in _ROWS}


def _exact(recipe: Recipe) -> Guide:
    plan = recipe.plan
    mass = None if plan.mass == 1 else plan.mass
    exact = Exact(mass, coarse_order=plan.coarse_order)
    volume, states = recipe.volume, recipe.conformation
    poses = {"rotation": exact, "shift": exact}
    return Guide(**poses, volume=volume, conformation=states, **exact_imaging(recipe.model))


def _modal(recipe: Recipe) -> Guide:
    plan = recipe.plan
    kind = Modal if plan.bound == "none" else partial(Bounded, plan.bound)
    rotation, shift = (
        kind(beam=plan.beam, coarse_order=plan.coarse_order, polish=plan.polish) for _ in "Rt"
    )
    return Guide(rotation=rotation, shift=shift, volume=recipe.volume)


def _svi(recipe: Recipe) -> Guide:
    nowhere = recipe.start.new_zeros(recipe.total, 2).to(recipe.volume.coefficients)
    rotation = PerImage(ConcentratedLaw(), recipe.rotations(recipe.total))
    shift = PerImage(NormalShift(recipe.unit_A), nowhere)
    return Guide(rotation=rotation, shift=shift, volume=recipe.volume)


def _svi_learner(recipe: Recipe) -> Learner:
    return NaturalLearner(recipe.plan, recipe.seed, recipe.symmetry)


def _encoders(recipe: Recipe, *, modal: bool, heads: int) -> tuple[Amortized, Amortized]:
    """Encoders that turn with the image: one of the shift, one that sees centered images."""
    sigma2, like = recipe.model.noise.sigma2.mean(0), recipe.volume.coefficients
    box = min(_ENCODER_BOX, recipe.model.band.box)
    center = like.new_zeros(1, 2)
    with seeded(recipe.seed):
        below = Polar(box, sigma2, channels=64).to(like)
        moves = Amortized(below, TurningShift(1, recipe.unit_A, modal=modal), center)
        centering = Centering(moves, recipe.model.pixel_size)
        above = Polar(box, sigma2, channels=128, centering=centering).to(like)
        law = Cells(1, heads=heads, modal=modal)
        turns = Amortized(above, law, recipe.rotations(1))
    return turns.to(like), moves.to(like)


def _amortized_modal(recipe: Recipe) -> Guide:
    turns, moves = _encoders(recipe, modal=True, heads=1)
    return Guide(rotation=turns, shift=moves, volume=recipe.volume)


def _amortized_vi(recipe: Recipe) -> Guide:
    turns, moves = _encoders(recipe, modal=False, heads=4)
    return Guide(rotation=turns, shift=moves, volume=recipe.volume)


def _amortized_local(recipe: Recipe) -> Guide:
    turns, moves = _encoders(recipe, modal=True, heads=8)
    reach_A = 2 * recipe.plan.shift_step * recipe.model.pixel_size
    order = recipe.plan.coarse_order
    rotation = Proposed(turns, _REACH_DEG, coarse_order=order)
    shift = Proposed(moves, reach_A, coarse_order=order)
    return Guide(rotation=rotation, shift=shift, volume=recipe.volume)


def _modal_learner(recipe: Recipe) -> Learner:
    own = (Sleep(), Sleep(), Sleep(), ProfileLogJoint())
    return EncoderLearner(recipe.plan, Sleep(), own, recipe.symmetry)


def _local_learner(recipe: Recipe) -> Learner:
    return EncoderLearner(recipe.plan, Sleep(), (Sleep(),), recipe.symmetry)


def _vi_learner(recipe: Recipe) -> Learner:
    own = (Elbo(recipe.plan.learn_draws),)
    return EncoderLearner(recipe.plan, Sleep(), own, recipe.symmetry)


_TRAINING = (
    ("learn_rate", 2e-3),
    ("warm_steps", 1200),
    ("learn_steps", 100),
    ("batch", 512),
    ("draws", 1),
)

_ROWS = (
    Family("exact-em", "EM", "exact posterior on a grid", _exact),
    Family("modal-em", "modal EM", "best pose of a grid", _modal),
    Family(
        "amortized-modal",
        "autoencoder",
        "Diracs that encoders read off the image",
        _amortized_modal,
        _modal_learner,
        _TRAINING,
    ),
    Family(
        "svi",
        "variational EM",
        "concentrated law and normal, free numbers per image",
        _svi,
        _svi_learner,
        (("learn_steps", 5), ("draws", 4)),
    ),
    Family(
        "amortized-vi",
        "variational autoencoder",
        "mixture over cells and normal that encoders read off the image",
        _amortized_vi,
        _vi_learner,
        _TRAINING,
    ),
    Family(
        "amortized-local",
        "amortized variational EM, then local search",
        "exact posterior on a grid near what encoders propose",
        _amortized_local,
        _local_learner,
        _TRAINING,
    ),
)
