"""Amplitudes of normal modes at a temperature."""

from typing import Self

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.models.conformations.gaussian import GaussianConformation

__all__ = ["NormalModeAmplitudes"]


class NormalModeAmplitudes(GaussianConformation):
    """``z_k ~ N(0, kT / eigenvalue_k)``, A: every mode has an energy of kT / 2 in the mean.

    The conformation of a volume whose sites move along the modes of
    :func:`cryoprob.elastic_network.normal_modes`
    (:class:`~cryoprob.models.volumes.displacements.LinearDisplacements`).

    Parameters
    ----------
    eigenvalues
        Of the modes, [size], in units of the springs.
    temperature
        kT over the strength of a spring, A^2; :meth:`moving` finds the one of a wanted
        displacement.

    Raises
    ------
    InputError
        If an eigenvalue or the temperature is not positive.

    Notes
    -----
    Equipartition of a harmonic molecule. HEMNMA (Jin et al. 2014) searches the same amplitudes
    without a prior.
    """

    def __init__(self, eigenvalues: Tensor, temperature: float = 1.0) -> None:
        fits = eigenvalues.dim() == 1 and bool((eigenvalues > 0).all())
        wanted = "positive numbers, [size] (no rigid motions)"
        require(fits, "eigenvalues", expected=wanted, got=str(eigenvalues.tolist()))
        hot = 0 < temperature < torch.inf
        require(hot, "temperature", expected="a positive number, A^2", got=f"{temperature:g}")
        super().__init__((temperature / eigenvalues).sqrt())
        self.temperature = temperature

    @classmethod
    def moving(cls, eigenvalues: Tensor, sites: int, rms_A: float) -> Self:
        """At the temperature at which ``sites`` are displaced by ``rms_A`` along these modes.

        ``rms_A^2 = kT sum_k (1 / eigenvalue_k) / sites``: the mean over draws and sites, for
        orthonormal modes.

        Raises
        ------
        InputError
            If a number is not positive.
        """
        fits = sites > 0 and 0 < rms_A < torch.inf
        got = f"{sites} sites, {rms_A:g} A"
        require(fits, "displacement", expected="sites, and a positive number of A", got=got)
        spread = float((1 / eigenvalues.double()).sum())
        return cls(eigenvalues, rms_A**2 * sites / spread)
