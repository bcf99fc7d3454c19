"""Families of inference: each a row of treatments, and how its q is learned.

The table of Donnat et al. 2022 (Table 4), on one model.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.encoders.base import Encoder
from cryoprob.inference.encoders.convolutional import Convolutional
from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.base import Law
from cryoprob.inference.laws.heads import Heads
from cryoprob.inference.laws.rotations import ConcentratedLaw, DiracRotation
from cryoprob.inference.laws.shifts import DiracShift, NormalShift
from cryoprob.inference.learn import EncoderLearner, Learner, TableLearner
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.objectives.profile_log_joint import ProfileLogJoint
from cryoprob.inference.objectives.sleep import Sleep
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.treatments.amortized import Amortized
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.models.particle_model import ParticleModel
from cryoprob.types import Maps

__all__ = ["Family", "Recipe", "family", "families"]

_HEADS = 4
_ENCODER_BOX = 32


@dataclass(frozen=True, eq=False)
class Recipe:
    """What a family is built from.

    Attributes
    ----------
    model
        Of the particles.
    start
        Map at which the volume starts.
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
    def point(self) -> Point:
        """The volume as a point estimate."""
        return Point(self.start.to(self.model.linear_volume.tau2))

    @property
    def unit_A(self) -> float:
        """Length of a usual shift, Angstrom."""
        return float(self.model.shift.sigma)

    def rotations(self, count: int) -> Tensor:
        """Random rotations to start from, [count, 3, 3]."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = random_rotations(count, generator, dtype=torch.float64)
        return drawn.to(self.model.linear_volume.tau2)


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
    """The family of a name that :data:`cryoprob.inference.config.FAMILIES` lists."""
    return families()[name]


def families() -> dict[str, Family]:
    """All of them, in the order of the taxonomy."""
    return {row.name: row for row in _ROWS}


def _exact(recipe: Recipe) -> Guide:
    plan = recipe.plan
    mass = None if plan.mass == 1 else plan.mass
    exact = Exact(mass, coarse_order=plan.coarse_order)
    return Guide(rotation=exact, shift=exact, volume=recipe.point)


def _modal(recipe: Recipe) -> Guide:
    plan = recipe.plan
    rotation, shift = (
        Modal(plan.beam, coarse_order=plan.coarse_order, polish=plan.polish) for _ in "Rt"
    )
    return Guide(rotation=rotation, shift=shift, volume=recipe.point)


def _svi(recipe: Recipe) -> Guide:
    nowhere = recipe.start.new_zeros(recipe.total, 2).to(recipe.point.coefficients)
    rotation = PerImage(ConcentratedLaw(), recipe.rotations(recipe.total))
    shift = PerImage(NormalShift(recipe.unit_A), nowhere)
    return Guide(rotation=rotation, shift=shift, volume=recipe.point)


def _svi_learner(recipe: Recipe) -> Learner:
    objective = Elbo(recipe.plan.learn_draws)
    return TableLearner(recipe.plan, objective, recipe.seed, recipe.symmetry)


def _amortized(rotation: Law, shift: Law) -> Callable[[Recipe], Guide]:
    def build(recipe: Recipe) -> Guide:
        encoder = _encoder(recipe)
        starts = recipe.rotations(rotation.heads)
        nowhere = starts.new_zeros(1, 2)
        turns, moves = Amortized(encoder, rotation, starts), Amortized(encoder, shift, nowhere)
        return Guide(rotation=turns, shift=moves, volume=recipe.point)

    return build


def _encoder(recipe: Recipe) -> Encoder:
    sigma2 = recipe.model.noise.sigma2.mean(0)
    box = min(_ENCODER_BOX, recipe.model.band.box)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return Convolutional(box, sigma2).to(sigma2)


def _amortized_modal(recipe: Recipe) -> Guide:
    laws = Heads(DiracRotation(), _HEADS), DiracShift(recipe.unit_A)
    return _amortized(*laws)(recipe)


def _amortized_vi(recipe: Recipe) -> Guide:
    laws = Heads(ConcentratedLaw(30.0), _HEADS), NormalShift(recipe.unit_A)
    return _amortized(*laws)(recipe)


def _modal_learner(recipe: Recipe) -> Learner:
    return EncoderLearner(recipe.plan, Sleep(), (Sleep(), ProfileLogJoint()))


def _vi_learner(recipe: Recipe) -> Learner:
    return EncoderLearner(recipe.plan, Sleep(), (Sleep(), Elbo(recipe.plan.learn_draws)))


_TRAINING = (("learn_rate", 1e-3), ("warm_steps", 3000), ("learn_steps", 300))

_ROWS = (
    Family("exact-em", "EM", "exact posterior on a grid", _exact),
    Family("modal-em", "modal EM", "best pose of a grid", _modal),
    Family(
        "amortized-modal",
        "autoencoder",
        "Diracs that an encoder reads off the image",
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
        (("learn_rate", 0.03), ("learn_steps", 20)),
    ),
    Family(
        "amortized-vi",
        "variational autoencoder",
        "concentrated laws and normal that an encoder reads off the image",
        _amortized_vi,
        _vi_learner,
        _TRAINING,
    ),
)
