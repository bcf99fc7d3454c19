"""The guide: one treatment per latent site."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cryoprob.checks import InputError, require
from cryoprob.fourier.bands import Band, full_band
from cryoprob.inference.encoders.base import Encoder
from cryoprob.inference.guide_rules import check_continuous, check_imaging, check_mixture, names
from cryoprob.inference.treatments.base import Drawn, Treatment
from cryoprob.inference.treatments.conditional_gaussian import ConditionalGaussian
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.importance import Importance
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.treatments.volume import VolumeTreatment
from cryoprob.models import sites
from cryoprob.models.particle_model import ParticleModel
from cryoprob.particles import Batch
from cryoprob.types import Rotations, Shifts

__all__ = ["Guide", "Poses"]


@dataclass(frozen=True, eq=False)
class Poses:
    """K weighted draws of the local sites for each of N images.

    Attributes
    ----------
    rotation, shift
        [K, N, 3, 3] and [K, N, 2] (Angstrom).
    conformation, contrast, defocus
        [K, N, size], [K, N] and [K, N] (Angstrom), or None where the guide has no such site or
        sums it out.
    log_q
        Log density of q at them, [K, N]; Diracs count 0.
    log_weight
        Log of their shares of the expectation under q, adding up to 1 over K, [K, N].
    """

    rotation: Rotations
    shift: Shifts
    log_q: Tensor
    log_weight: Tensor
    conformation: Tensor | None = None
    contrast: Tensor | None = None
    defocus: Tensor | None = None


class Guide(nn.Module):
    """Composes treatments site by site; a family of inference is a row of choices.

    Parameters
    ----------
    rotation, shift, conformation, contrast, defocus
        Treatments of the local sites; none of the last three where the model has no such site.
    volume
        Treatment of the global site.

    Raises
    ------
    InputError
        For a mixture that has no E-step: one pose site searched on a grid and the other not, or
        the two searched in unlike ways. For a contrast or a defocus that is searched for; a
        contrast is summed out by ``ConditionalGaussian``, a defocus (on nodes) by ``Exact``.
    """

    def __init__(
        self,
        *,
        rotation: Treatment,
        shift: Treatment,
        volume: VolumeTreatment,
        conformation: Treatment | None = None,
        contrast: Treatment | None = None,
        defocus: Treatment | None = None,
    ) -> None:
        super().__init__()
        check_mixture(rotation, shift)
        check_imaging(sites.CONTRAST, contrast, Drawn | ConditionalGaussian)
        check_imaging(sites.DEFOCUS, defocus, Drawn | Exact)
        self.rotation, self.shift, self.volume = rotation, shift, volume
        self.conformation, self.contrast, self.defocus = conformation, contrast, defocus

    def forward(self, batch: Batch) -> None:
        """Sample every site that is not enumerated."""
        self.forget()
        self.volume(sites.VOLUME, batch)
        with sites.particles(batch):
            for site, part in self.sites.items():
                part(site, batch)

    @property
    def sites(self) -> dict[str, Treatment]:
        """The treatments of the local sites, by name."""
        parts = self.rotation, self.shift, self.conformation, self.contrast, self.defocus
        named = zip(sites.LATENT[1:], parts, strict=True)
        return {site: part for site, part in named if part is not None}

    def draw(self, batch: Batch, count: int) -> Poses:
        """Draws of the local sites, ``count`` for every head of the rotation's law.

        A contrast or a defocus that is summed out has none; whoever asks for draws sums over it.

        Raises
        ------
        InputError
            If a site gives no draws (it is searched on a grid, or summed out).
        """
        self.forget()
        parts = [*self.drawn, *self._others]
        count = max([count, *(part.draws for part in parts if isinstance(part, Importance))])
        turns = parts[0].draw(batch, count)
        if len(turns.value) > 1:  # else a Dirac, which stands there for every draw of the others
            count = len(turns.value)
        draws = [turns, *(part.draw(batch, count) for part in parts[1:])]
        longest = max(draws, key=lambda one: len(one.value))
        log_q = torch.stack(torch.broadcast_tensors(*(one.log_q for one in draws))).sum(0)
        values = [one.value.expand(len(log_q), *one.value.shape[1:]) for one in draws]
        named = dict(zip(self.drawn_sites, values, strict=True))
        log_weight = longest.log_weight.expand_as(log_q)
        return Poses(**named, log_q=log_q, log_weight=log_weight)

    def log_score(
        self,
        batch: Batch,
        rotation: Rotations,
        shift: Shifts,
        conformation: Tensor | None = None,
        contrast: Tensor | None = None,
        defocus: Tensor | None = None,
    ) -> Tensor:
        """What inclusive objectives raise: log q at given values [*, N, ...], summed, [*, N].

        Sites that have no law of their own count nothing; a Dirac counts a squared distance.
        """
        values = rotation, shift, conformation, contrast, defocus
        named = dict(zip(sites.LATENT[1:], values, strict=True))
        found = [
            part.lawful.law.log_score(part.lawful.numbers_of(batch), value)
            for site, part in self.sites.items()
            if part.lawful is not None and (value := named[site]) is not None
        ]
        got = names(self.rotation, self.shift)
        wanted = "a law at the rotation or the shift"
        remedy = "Use PerImage or Amortized."
        require(bool(found), "guide", expected=wanted, got=got, remedy=remedy)
        return torch.stack(torch.broadcast_tensors(*found)).sum(0)

    @property
    def drawn(self) -> tuple[Drawn, Drawn]:
        """The treatments of rotation and shift, for what needs draws of them.

        Raises
        ------
        InputError
            If one of them is searched on a grid.
        """
        if isinstance(self.rotation, Drawn) and isinstance(self.shift, Drawn):
            return self.rotation, self.shift
        raise InputError(
            "guide",
            expected="treatments of rotation and shift that give draws",
            got=names(self.rotation, self.shift),
            remedy="Use Known, PerImage or Amortized, or the E-step, which sums over the grid.",
        )

    @property
    def _others(self) -> list[Drawn]:
        """The treatments beside the poses', for what needs draws of them.

        Raises
        ------
        InputError
            If one of the sites is summed out.
        """
        found = []
        for site in self.drawn_sites[2:]:
            part = self.sites[site]
            if not isinstance(part, Drawn):
                raise InputError(
                    "guide",
                    expected=f"a treatment of the {site} that gives draws",
                    got=type(part).__name__,
                    remedy="Use Known, PerImage or Amortized, or the E-step, which sums it out.",
                )
            found.append(part)
        return found

    @property
    def kind(self) -> str:
        """What the guide's nats per image are: of which quantity, and whether it is a bound.

        ``log_evidence`` (all local sites summed out, or given), ``elbo``, ``iwae``, or, where a
        continuous site has a Dirac, ``profile_log_joint``, which bounds nothing.
        """
        parts = self.sites.values()
        laws = [p for p in parts if isinstance(p, Drawn) and not isinstance(p, Known | Modal)]
        polished = any(isinstance(p, Modal) and p.polish for p in parts)
        if polished or not all(part.has_density for part in laws):
            return "profile_log_joint"
        if self.reweights:
            return "iwae"
        return "elbo" if laws or isinstance(self.rotation, Modal) else "log_evidence"

    @property
    def sums_imaging(self) -> bool:
        """Contrast or defocus is summed out, in closed form or on nodes."""
        return self.sums_contrast or self.sums_defocus

    @property
    def sums_contrast(self) -> bool:
        """The contrast is integrated out."""
        return isinstance(self.contrast, ConditionalGaussian)

    @property
    def sums_defocus(self) -> bool:
        """The nodes of the defocus are summed over."""
        return isinstance(self.defocus, Exact)

    @property
    def drawn_sites(self) -> list[str]:
        """The local sites that draws have values of: all but what is summed out of the image."""
        summed = {sites.CONTRAST: self.sums_contrast, sites.DEFOCUS: self.sums_defocus}
        return [site for site in self.sites if not summed.get(site)]

    @property
    def reweights(self) -> bool:
        """Draws are weighted by importance."""
        return any(isinstance(part, Importance) for part in self.sites.values())

    def replaced(self, **parts: Any) -> "Guide":
        """The same guide, all other parts shared, with these treatments of some sites."""
        own = {sites.VOLUME: self.volume, **self.sites}
        return Guide(**{**own, **parts})

    def log_prior(self, model: ParticleModel, poses: Poses) -> Tensor:
        """Log prior density of the draws, [K, N]; given ones are conditioned on and count 0.

        Raises
        ------
        InputError
            If q is a density or a free Dirac, and the model's prior lives on a grid.
        """
        total = torch.zeros_like(poses.log_q)
        for site in self.drawn_sites:
            if isinstance(self.sites[site], Known):
                continue
            prior = model.local_priors[site]
            check_continuous(site, prior)
            total = total + prior.prior().log_prob(getattr(poses, site))
        return total

    def check(self, model: ParticleModel) -> None:
        """Raise unless every conformation, contrast and defocus fits its treatment.

        Raises
        ------
        InputError
            If the model has one of these sites and the guide does not treat it, or the other way
            round; or a density is to fit a prior on nodes, or Exact to sum over what has none.
        """
        priors, parts = model.local_priors, self.sites
        for site in sites.LATENT[3:]:
            have = site in priors, site in parts
            wanted = f"a treatment of the {site} where the model has that site, and only there"
            got = f"{'a' if have[0] else 'no'} site, {'a' if have[1] else 'no'} treatment"
            remedy = f"Give Guide({site}=...), or leave {site} out of both model and guide."
            require(have[0] == have[1], "guide", expected=wanted, got=got, remedy=remedy)
        part, prior = parts.get(sites.DEFOCUS), priors.get(sites.DEFOCUS)
        if part is None or prior is None or isinstance(part, Known):
            return
        if isinstance(part, Drawn):
            check_continuous(sites.DEFOCUS, prior)
        elif not prior.enumerable:
            raise InputError(
                "defocus prior",
                expected="nodes, which Exact sums over",
                got="a continuous prior",
                remedy="Use GaussianDefocus(scale_A, nodes=9), or PerImage in the guide.",
            )

    def shares(
        self, poses: Poses, log_prior: Tensor, log_likelihood: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Log weights of the poses [K, N], and the bound on each image's evidence [N] (float64).

        Weights are the draws' own, and the bound is the ELBO; with ``Importance`` they are
        proportional to p / q, and the bound is that of Burda et al. 2016, eq. 8 (IWAE).
        """
        ratio = (log_likelihood + log_prior - poses.log_q).double()
        weighted = ratio + poses.log_weight
        if self.reweights:
            bound = torch.logsumexp(weighted, 0)
            return (weighted - bound).to(log_likelihood), bound
        share = poses.log_weight.exp().double()
        return poses.log_weight, (share * ratio).sum(0)

    def band(self, model: ParticleModel) -> Band:
        """The frequencies of images that the model or an encoder looks at."""
        looks = (part.band.radius for part in self.modules() if isinstance(part, Encoder))
        return full_band(model.band.box).prefix(max([model.band.radius, *looks]))

    def forget(self) -> None:
        """Look anew at the next batch."""
        for part in self.modules():
            if isinstance(part, Encoder):
                part.forget()
