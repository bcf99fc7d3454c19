"""Which treatments of the sites go together in a guide."""

from types import UnionType

from cryoprob.checks import require
from cryoprob.inference.treatments.base import Drawn, Treatment
from cryoprob.inference.treatments.modal import Modal
from cryoprob.models import sites
from cryoprob.models.local_prior import LocalPrior

__all__ = ["check_continuous", "check_imaging", "check_mixture", "names"]


def check_mixture(rotation: Treatment, shift: Treatment) -> None:
    """Raise InputError unless there is an E-step for the two."""
    searched = rotation.searches, shift.searches
    alike = type(rotation) is type(shift)
    require(
        alike if any(searched) else True,
        "guide",
        expected="rotation and shift both searched, in the same way, or neither",
        got=names(rotation, shift),
        remedy="Use Exact, Modal, Local or Proposed for both; Known, PerImage and Amortized mix.",
    )
    heads = shift.heads if isinstance(shift, Drawn) else 1
    require(
        heads == 1,
        "guide",
        expected="heads at the rotation only",
        got=f"{heads} heads at the shift",
        remedy="Give Heads to the rotation's law; each of its heads gets shifts of its own.",
    )


def check_imaging(site: str, part: Treatment | None, fitting: type | UnionType) -> None:
    """Raise InputError unless a contrast's or defocus' treatment is one of those that fit."""
    alone = not isinstance(part, Drawn) or part.heads == 1
    fits = isinstance(part, fitting) and not isinstance(part, Modal) and alone
    require(
        part is None or fits,
        "guide",
        expected=f"a treatment of the {site} without a search and heads",
        got=f"{type(part).__name__}{'' if alone else ' with heads'}",
        remedy="Use Known, PerImage, Amortized or Prior; ConditionalGaussian for a contrast; Exact"
        " with GaussianDefocus on nodes.",
    )


def check_continuous(site: str, prior: LocalPrior) -> None:
    """Raise InputError if a prior lives on a grid."""
    pose = site in (sites.ROTATION, sites.SHIFT)
    other = "Use a continuous prior (GaussianDefocus without nodes), or Exact in the guide."
    require(
        not prior.enumerable,
        f"{site} prior",
        expected="a continuous prior, as the guide's law is",
        got="a grid",
        remedy="Use UniformRotation and GaussianShift, without discretize." if pose else other,
    )


def names(rotation: Treatment, shift: Treatment) -> str:
    """The treatments of the poses, in words."""
    return f"rotation {type(rotation).__name__}, shift {type(shift).__name__}"
