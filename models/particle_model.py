"""The one generative model of single-particle cryo-EM."""

from collections.abc import Iterable

import pyro
from torch import Tensor, nn

from cryoprob.checks import InputError, require
from cryoprob.fourier.bands import Band
from cryoprob.models import sites
from cryoprob.models.conformations.base import Conformation
from cryoprob.models.contrast import Contrast
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
        Amplitude and noise factors per image (default: ones).
    conformation
        Prior of the conformation that the volume's slices take
        (:mod:`cryoprob.models.conformations`); none where they take none.
    terms
        Log potentials beside the priors (:mod:`cryoprob.models.structure_factors`).

    Raises
    ------
    InputError
        If the volume takes another conformation than the prior gives, or two sites have one name.

    Notes
    -----
    Sites: ``volume`` (the coefficients, [D, D, D] for voxels), ``rotation`` [3, 3], ``shift`` [2]
    (Angstrom), ``conformation`` ([size], or a state), ``image`` [M] (packed half-plane
    coefficients, see :class:`cryoprob.fourier.bands.Band`). papers: Donnat 2022, eq. 1-3.
    """

    def __init__(
        self,
        volume: Volume,
        rotation: LocalPrior,
        shift: ShiftPrior,
        noise: Noise,
        pixel_size: float,
        contrast: Contrast | None = None,
        conformation: Conformation | None = None,
        terms: Iterable[Term] = (),
    ) -> None:
        super().__init__()
        size = 0 if conformation is None else conformation.size
        wanted = f"one of size {volume.conformation_size}, as {type(volume).__name__} takes"
        require(size == volume.conformation_size, "conformation", expected=wanted, got=str(size))
        self.volume, self.rotation, self.shift, self.noise = volume, rotation, shift, noise
        self.pixel_size, self.conformation = pixel_size, conformation
        self.contrast = Contrast() if contrast is None else contrast
        self.terms = nn.ModuleList(terms)
        names = [*sites.LATENT, sites.IMAGE, *(term.name for term in self.factors)]
        wanted = "names that differ from each other and from the sites'"
        alike = len(set(names)) == len(names)
        require(alike, "terms", expected=wanted, got=", ".join(names[5:]))

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
            state = self._conformation()
            for term in self._of(True):
                pyro.factor(term.name, term(self.volume, volume, state))
            observed = self.likelihood(volume, rotation, shift, batch, state)
            image: Tensor = pyro.sample(sites.IMAGE, observed, obs=batch.image)
        return image

    def _conformation(self) -> Tensor | None:
        part = self.conformation
        if part is None:
            return None
        found: Tensor = pyro.sample(sites.CONFORMATION, part.prior(), infer=part.infer)
        return found

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

    def likelihood(
        self,
        volume: Tensor,
        rotation: Tensor,
        shift: Tensor,
        batch: Batch,
        conformation: Tensor | None = None,
    ) -> ImageLikelihood:
        """Distribution of the images given every latent site."""
        slices = self.volume.slices(volume, rotation, conformation)
        phase = shift_phase(self.band, shift, self.pixel_size)
        scale, spread = self.contrast(batch.index)
        ctf = batch.ctf[:, : len(self.band)] * scale[:, None]
        sigma2 = self.noise(batch.group) * spread[:, None] ** 2
        return ImageLikelihood(slices, phase, ctf, sigma2, batch.band)

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
