"""The one generative model of single-particle cryo-EM."""

from collections.abc import Iterable

import pyro
from torch import Tensor, nn

from cryoprob.checks import InputError, require
from cryoprob.fourier.bands import Band
from cryoprob.models import sites
from cryoprob.models.conformations.base import Conformation
from cryoprob.models.contrast import Contrast
from cryoprob.models.gaussian_contrast import GaussianContrast
from cryoprob.models.gaussian_defocus import GaussianDefocus, defocused_ctf
from cryoprob.models.image_likelihood import ImageLikelihood, shift_phase
from cryoprob.models.local_prior import LocalPrior
from cryoprob.models.noises.base import Noise
from cryoprob.models.poses.base import ShiftPrior
from cryoprob.models.structure_factors import Term
from cryoprob.models.volumes.base import LinearVolume, Volume
from cryoprob.particles import Batch

__all__ = ["ParticleModel"]


class ParticleModel(nn.Module):
    """``image = CTF . shift . slice(rotation, volume) + noise``, an ordinary Pyro model.

    Parameters
    ----------
    volume
        Prior and slices of the map (:mod:`cryoprob.models.volumes`).
    rotation, shift
        Pose priors (:mod:`cryoprob.models.poses`); a prior on a grid is enumerated in parallel.
    noise
        Noise spectrum of each optics group (:mod:`cryoprob.models.noises`).
    pixel_size
        Angstrom per pixel.
    contrast
        Amplitude and noise factors per image (default: ones); or a prior of the amplitudes, which
        makes them a site.
    conformation
        Prior of the conformation that the volume's slices take
        (:mod:`cryoprob.models.conformations`); none where they take none.
    terms
        Log potentials beside the priors (:mod:`cryoprob.models.structure_factors`).
    defocus
        Prior of errors of the given defocus, which makes them a site; none where it is taken as
        given.

    Raises
    ------
    InputError
        If the volume takes another conformation than the prior gives, or two sites have one name.

    Notes
    -----
    Sites: ``volume`` (the coefficients, [D, D, D] for voxels), ``rotation`` [3, 3], ``shift`` [2]
    (Angstrom), where there are priors of them ``conformation`` ([size], or a state), ``contrast``
    [] and ``defocus`` [] (Angstrom), and ``image`` [M] (packed half-plane coefficients, see
    :class:`cryoprob.fourier.bands.Band`). papers: Donnat 2022, eq. 1-3.
    """

    def __init__(
        self,
        volume: Volume,
        rotation: LocalPrior,
        shift: ShiftPrior,
        noise: Noise,
        pixel_size: float,
        contrast: Contrast | GaussianContrast | None = None,
        conformation: Conformation | None = None,
        terms: Iterable[Term] = (),
        defocus: GaussianDefocus | None = None,
    ) -> None:
        super().__init__()
        size = 0 if conformation is None else conformation.size
        wanted = f"one of size {volume.conformation_size}, as {type(volume).__name__} takes"
        require(size == volume.conformation_size, "conformation", expected=wanted, got=str(size))
        self.volume, self.rotation, self.shift, self.noise = volume, rotation, shift, noise
        self.pixel_size, self.conformation = pixel_size, conformation
        like = noise.sigma2
        self.contrast = Contrast(0, like.dtype, like.device) if contrast is None else contrast
        self.defocus = defocus
        self.terms = nn.ModuleList(terms)
        own = [term.name for term in self.factors]
        names = {*sites.LATENT, sites.IMAGE, *own}
        wanted = "names that differ from each other and from the sites'"
        alike = len(names) == len(sites.LATENT) + 1 + len(own)
        require(alike, "terms", expected=wanted, got=", ".join(own))

    def forward(self, batch: Batch) -> Tensor:
        """Sample (or score) the latent sites and the images of a batch.

        Returns the images, [N, M]. They are observed; ``poutine.uncondition(model)`` draws them:
        ``Predictive(poutine.uncondition(model), draws)`` is the posterior predictive.

        Raises
        ------
        InputError
            If a guide has drawn other particles than the batch's.
        """
        volume = pyro.sample(sites.VOLUME, self.volume.prior())
        for term in self._of(False):
            pyro.factor(term.name, term(self.volume, volume))
        with sites.particles(batch) as index:
            sites.check_particles(index, batch)
            rotation = pyro.sample(
                sites.ROTATION, self.rotation.prior(), infer=self.rotation.infer
            )
            shift = pyro.sample(sites.SHIFT, self.shift.prior(), infer=self.shift.infer)
            state = self._optional(sites.CONFORMATION)
            for term in self._of(True):
                pyro.factor(term.name, term(self.volume, volume, state))
            seen = self._optional(sites.CONTRAST), self._optional(sites.DEFOCUS)
            observed = self.likelihood(volume, rotation, shift, batch, state, *seen)
            image: Tensor = pyro.sample(sites.IMAGE, observed, obs=batch.image)
        return image

    def _optional(self, site: str) -> Tensor | None:
        part = self.local_priors.get(site)
        if part is None:
            return None
        found: Tensor = pyro.sample(site, part.prior(), infer=part.infer)
        return found

    @property
    def local_priors(self) -> dict[str, LocalPrior]:
        """The priors of the sites that every particle has of its own, by name."""
        parts = self.rotation, self.shift, self.conformation, self.contrast, self.defocus
        named = zip(sites.LATENT[1:], parts, strict=True)
        return {site: part for site, part in named if isinstance(part, LocalPrior)}

    @property
    def factors(self) -> list[Term]:
        """The terms beside the priors."""
        return [term for term in self.terms if isinstance(term, Term)]

    def _of(self, local: bool) -> list[Term]:
        """The terms that count for each particle, or once."""
        moving = self.conformation is not None
        return [term for term in self.factors if local == (term.local and moving)]

    def log_prior_volume(self, coefficients: Tensor) -> Tensor:
        """Log density of the volume's coefficients: the prior's, and terms that count once."""
        found: Tensor = self.volume.prior().log_prob(coefficients)
        for term in self._of(False):
            found = found + term(self.volume, coefficients)
        return found

    def log_potential(self, coefficients: Tensor, conformation: Tensor | None) -> Tensor:
        """Sum of the terms that count for each particle, at conformations [*, size], [*]."""
        found = coefficients.new_zeros(() if conformation is None else conformation.shape[:-1])
        for term in self._of(True):
            found = found + term(self.volume, coefficients, conformation)
        return found

    def likelihood(
        self,
        volume: Tensor,
        rotation: Tensor,
        shift: Tensor,
        batch: Batch,
        conformation: Tensor | None = None,
        contrast: Tensor | None = None,
        defocus: Tensor | None = None,
    ) -> ImageLikelihood:
        """Distribution of the images given every latent site.

        Raises
        ------
        InputError
            If the model has a site of the contrast or the defocus, and no values [*, N] are given;
            or the batch has no optics to shift the defocus of.
        """
        given = {sites.CONTRAST: contrast, sites.DEFOCUS: defocus}
        self._refuse([site for site in self._imaging if given[site] is None])
        slices = self.volume.slices(volume, rotation, conformation)
        phase = shift_phase(self.band, shift, self.pixel_size)
        ctf, sigma2 = batch.ctf[:, : len(self.band)], self.noise(batch.group)
        if defocus is not None:
            ctf = defocused_ctf(batch, self.band, self.pixel_size, defocus)
        if isinstance(self.contrast, Contrast):
            scale, spread = self.contrast(batch.index)
            ctf, sigma2 = ctf * scale[:, None], sigma2 * spread[:, None] ** 2
        if contrast is not None:
            ctf = ctf * contrast[..., None]
        return ImageLikelihood(slices, phase, ctf, sigma2, batch.band)

    @property
    def _imaging(self) -> list[str]:
        """Which of contrast and defocus are latent sites."""
        return [site for site in (sites.CONTRAST, sites.DEFOCUS) if site in self.local_priors]

    @property
    def known_contrast(self) -> Contrast:
        """The factors per image, for what takes contrast and defocus as given.

        Raises
        ------
        InputError
            If one of them is a latent site.
        """
        self.require_known_imaging()
        assert isinstance(self.contrast, Contrast)
        return self.contrast

    def require_known_imaging(self) -> None:
        """Raise InputError if contrast or defocus is a latent site."""
        self._refuse(self._imaging)

    def _refuse(self, latent: list[str]) -> None:
        """Raise InputError if there are sites in the list."""
        remedy = (
            "This cannot treat these sites. Exact EM sums them out (imaging_e_step, with"
            " ConditionalGaussian for the contrast and Exact for a defocus on nodes); or fit by"
            " gradients (Joint with Elbo, Iwae or ProfileLogJoint) or by Pyro's own algorithms, or"
            " leave the sites out (Contrast() holds amplitudes that exact EM re-estimates)."
        )
        where, wanted = " and ".join(latent), "known numbers, or values of the site"
        require(not latent, where, expected=wanted, got="a latent site", remedy=remedy)

    def as_given(self) -> "ParticleModel":
        """The same model, all other parts shared, without contrast and defocus as latent sites.

        The contrast is then 1 and the defocus the file's; itself where there are no such sites.
        """
        if not self._imaging:
            return self
        known = self.contrast if isinstance(self.contrast, Contrast) else None
        own = self.volume, self.rotation, self.shift, self.noise, self.pixel_size
        return ParticleModel(*own, known, self.conformation, self.factors)

    def on(self, volume: Volume, rotation: LocalPrior, shift: ShiftPrior) -> "ParticleModel":
        """The same model, all other parts shared, with another volume and priors of poses."""
        own = self.noise, self.pixel_size, self.contrast, self.conformation
        parts = volume, rotation, shift, *own
        return ParticleModel(*parts, terms=self.factors, defocus=self.defocus)

    @property
    def band(self) -> Band:
        """The band in which the volume explains the images; beyond it they are noise only."""
        return self.volume.band

    @property
    def linear_volume(self) -> LinearVolume:
        """The volume, for what needs slices that are linear in its coefficients.

        Raises
        ------
        InputError
            If they are not, or there are terms beside the prior that closed forms know nothing of.
        """
        got = ", ".join(term.name for term in self.factors)
        require(not got, "terms", expected="none, in closed-form updates", got=got)
        if isinstance(self.volume, LinearVolume):
            return self.volume
        raise InputError(
            "volume",
            expected="a volume whose slices are linear in its coefficients (FourierVoxels)",
            got=type(self.volume).__name__,
        )
