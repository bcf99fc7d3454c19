"""Contrast and defocus of every image: which are latent in a fit, and what was found of them."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.inference.treatments.base import Treatment
from cryoprob.inference.treatments.conditional_gaussian import ConditionalGaussian
from cryoprob.inference.treatments.exact import Exact
from cryoprob.models import sites
from cryoprob.models.gaussian_contrast import GaussianContrast
from cryoprob.models.gaussian_defocus import GaussianDefocus
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import ParticleStack

__all__ = ["COLUMNS", "NODES", "Imaging", "Latent", "exact_imaging"]

NODES = 13
"""Half a standard deviation apart: enough for posteriors of a quarter of it, and wider."""

COLUMNS = {
    "contrast": "cryoprobContrast",
    "contrast_std": "cryoprobContrastStd",
    "defocus": "cryoprobDefocusOffset",
    "defocus_std": "cryoprobDefocusOffsetStd",
}
"""Columns of particles.star; the file's own defoci stay as they are."""

_FAR, _SPREAD, _SHARE = 2.5, 1.4, 0.1
"""Of a defocus prior that is too narrow: standard deviations, their excess, images beyond."""


@dataclass(frozen=True)
class Latent:
    """Which of contrast and defocus are latent sites of a fit.

    Attributes
    ----------
    contrast_sd
        Of a normal prior around 1; None where contrasts are taken as 1.
    defocus_sd_A
        Of a normal prior around the file's value, Angstrom; None where that is taken as it is.
    nodes
        On which the errors of the defocus are summed.
    """

    contrast_sd: float | None = None
    defocus_sd_A: float | None = None
    nodes: int = NODES

    def put(self, model: ParticleModel) -> None:
        """Give a model the priors, in its noise's type and place."""
        like = model.noise.sigma2
        kind: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        if self.contrast_sd is not None:
            model.contrast = GaussianContrast(self.contrast_sd, **kind)
        if self.defocus_sd_A is not None:
            model.defocus = GaussianDefocus(self.defocus_sd_A, self.nodes, **kind, even=True)

    def words(self) -> list[str]:
        """What is latent, a sentence each."""
        found = []
        if self.contrast_sd is not None:
            found.append(f"Contrast: latent, 1 +- {self.contrast_sd:g}, summed out (--contrast).")
        if self.defocus_sd_A is not None:
            nodes = f"{self.nodes} nodes summed out (--defocus)"
            found.append(f"Defocus: latent, the file's +- {self.defocus_sd_A:g} A, {nodes}.")
        return found

    def check(self, stack: ParticleStack) -> None:
        """Raise InputError if a defocus is to be summed over and the particles have none."""
        there = self.defocus_sd_A is None or stack.optics is not None
        wanted, remedy = "particles with the columns of their CTF", "Leave --defocus out."
        require(there, "--defocus", expected=wanted, got="none", remedy=remedy)


def exact_imaging(model: ParticleModel) -> dict[str, Treatment]:
    """Treatments that sum out whichever of contrast and defocus is latent, for a guide."""
    found: dict[str, Treatment] = {}
    if sites.CONTRAST in model.local_priors:
        found[sites.CONTRAST] = ConditionalGaussian()
    if sites.DEFOCUS in model.local_priors:
        found[sites.DEFOCUS] = Exact()
    return found


def _nothing() -> Tensor:
    return torch.zeros(0)


@dataclass(eq=False)
class Imaging:
    """Posterior means and standard deviations of contrast and defocus errors, [N] each (float64).

    Of no length where they are no latent sites; the defocus in Angstrom, to be added to both of
    an image's. NaN for images that were not looked at.
    """

    contrast: Tensor = field(default_factory=_nothing)
    contrast_std: Tensor = field(default_factory=_nothing)
    defocus: Tensor = field(default_factory=_nothing)
    defocus_std: Tensor = field(default_factory=_nothing)

    @classmethod
    def empty(cls, model: ParticleModel, count: int) -> "Imaging":
        """Room for ``count`` images."""
        like = model.noise.sigma2.double()
        pairs = [
            like.new_full((count if site in model.local_priors else 0,), torch.nan)
            for site in (sites.CONTRAST, sites.DEFOCUS)
            for _ in range(2)
        ]
        return cls(*pairs)

    def note(
        self, site: str, index: Tensor, mean: Tensor, square: Tensor, around: float = 0.0
    ) -> None:
        """Write means of a site's values less ``around``, and of their squares, [n] (float64)."""
        getattr(self, site)[index] = around + mean
        getattr(self, f"{site}_std")[index] = (square - mean**2).clamp(min=0).sqrt()

    def put(self, rows: Tensor, part: "Imaging") -> None:
        """Take over some images of another, which has as many, in place."""
        for item in fields(self):
            target = getattr(self, item.name)
            if len(target):
                target[rows] = getattr(part, item.name)[rows].to(target)

    def cpu(self) -> "Imaging":
        """The same in the CPU's memory."""
        return Imaging(*(getattr(self, item.name).cpu() for item in fields(self)))

    def columns(self) -> dict[str, Tensor]:
        """Columns of particles.star, where there is something to tell."""
        found = {label: getattr(self, name) for name, label in COLUMNS.items()}
        return {label: values for label, values in found.items() if len(values)}

    def doubt(self, prior: GaussianDefocus | None) -> str:
        """In words, that the nodes of the defocus are too far apart, or too near to 0; or nothing.

        They are too near where errors are larger than the prior has them, or many lie at its ends.
        """
        if prior is None or not len(self.defocus_std):
            return ""
        return f"{self._coarse(prior)} {self._narrow(prior)}".strip()

    def _coarse(self, prior: GaussianDefocus) -> str:
        width = float(self.defocus_std.nanmedian())
        if width > prior.spacing / 2:
            return ""
        return (
            f"The nodes of the defocus lie {prior.spacing:.0f} A apart and half of the images tell"
            f" theirs to {width:.0f} A or better: give more of them (--defocus-nodes N)."
        )

    def _narrow(self, prior: GaussianDefocus) -> str:
        scale, mean = float(prior.scale), self.defocus
        spread = float((mean**2 + self.defocus_std**2).nanmean().sqrt())
        ends = float((mean.abs() > _FAR * scale).sum()) / max(1, int(mean.isfinite().sum()))
        if not (spread > _SPREAD * scale or ends > _SHARE):
            return ""
        return (
            f"The errors of the defocus are {spread:.0f} A (root mean square; {ends:.0%} of the"
            f" images' are at the ends of the nodes), where {scale:.0f} A were expected: give more"
            f" (--defocus {2 * spread:.0f}) and as many nodes to each A."
        )
