"""Which model predicts images better: leave-one-out by ArviZ, or images that were held out."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cryoprob.checks import InputError, require
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.result import FitResult
from cryoprob.inference.treatments.base import Treatment
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.local import Local
from cryoprob.inference.volume_draws import log_likelihood
from cryoprob.models.contrast import Contrast
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack

__all__ = ["HeldOut", "held_out", "loo"]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Log evidence of images that a map was not fitted to.

    Attributes
    ----------
    nats
        ``log p(image | volume)``, poses summed out (or given), [n] float64.
    """

    nats: Tensor

    @property
    def mean(self) -> float:
        """Nats per image."""
        return float(self.nats.mean())

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return float(self.nats.std() / len(self.nats) ** 0.5)

    def above(self, other: "HeldOut") -> "HeldOut":
        """Nats of this one less another's, image by image (of the same images)."""
        got = f"{len(self.nats)} and {len(other.nats)}"
        alike = self.nats.shape == other.nats.shape
        require(alike, "held-out images", expected="the same ones", got=got)
        return HeldOut(self.nats - other.nats)


def held_out(
    result: FitResult,
    particles: ParticleStack,
    *,
    index: Tensor | None = None,
    order: int | None = None,
    symmetry: str = "C1",
) -> HeldOut:
    """Log evidence of images that were not fitted, at the fitted map, noise and priors.

    It needs no draws of the map, and so it compares fits with a Point volume too.

    Parameters
    ----------
    result
        A fit; with half sets its first half counts.
    particles
        Images that the fit did not see; or all, with ``index``.
    index
        Which of them, [n]; default all. With half sets: those not in ``result.fitted.index``.
    order
        Of the rotation grid on which the poses are summed out; None leaves that to the fit's
        guide.
    symmetry
        Point group of the map.

    Raises
    ------
    InputError
        If the fit's guide needs poses that the particles do not have, or sums nothing out and no
        ``order`` is given.
    """
    half = _fitted(result)
    old, index = half.model, torch.arange(len(particles)) if index is None else index
    parts = old.volume, old.rotation, old.shift, old.noise, old.pixel_size
    known = Contrast(0, old.noise.sigma2.dtype, old.noise.sigma2.device)  # new images have none
    seen = known if isinstance(old.contrast, Contrast) else old.contrast
    model = ParticleModel(*parts, seen, old.conformation, defocus=old.defocus)
    guide = half.guide if order is not None else _moved(half.guide, particles)
    volume = half.guide.volume.coefficients.detach()
    here = Half(model, guide, index)
    return HeldOut(log_likelihood(here, volume, particles, order=order, symmetry=symmetry))


def loo(data: Any, **options: Any) -> Any:
    """Leave-one-out predictive density by importance sampling: :func:`arviz.loo`, if it applies.

    One observation is one image, its pose summed out. Vehtari, Gelman and Gabry 2017, Stat.
    Comput. 27, 1413.

    Parameters
    ----------
    data
        What :meth:`FitResult.to_arviz` gave.
    options
        Of :func:`arviz.loo`.

    Raises
    ------
    InputError
        If the map is a point: one value says nothing of what the map owes to an image.
    """
    groups = getattr(data, "groups", ())
    names = groups() if callable(groups) else groups
    if any(str(name).strip("/") == "log_likelihood" for name in names):
        import arviz

        return arviz.loo(data, **options)  # type: ignore[no-untyped-call]
    raise InputError(
        "leave-one-out",
        expected="draws of the map",
        got="a map that is a point",
        remedy="Give result.to_arviz(particles, volume_draws=result.draw_volumes(particles, ...),"
        " ...); or compare held_out(result, particles) of images that were not fitted.",
    )


def _fitted(result: FitResult) -> Half:
    if result.fitted is not None:
        return result.fitted
    raise InputError("result", expected="one that a fit gave", got="one without its model")


def _moved(guide: Guide, particles: ParticleStack) -> Guide:
    """The guide for other particles: their own poses in the place of the fitted ones'."""
    rotation, shift = guide.rotation, guide.shift
    return guide.replaced(
        rotation=_for(rotation, particles.rotation), shift=_for(shift, particles.shift)
    )


def _for(part: Treatment, values: Tensor | None) -> Treatment:
    if not isinstance(part, Known | Local):
        return part
    require(values is not None, "particles", expected="poses, as the fit had", got="none")
    assert values is not None
    values = values.to(part.values)
    return Known(values) if isinstance(part, Known) else Local(values, part.radius)
