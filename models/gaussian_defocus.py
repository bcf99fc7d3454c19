"""Errors of the given defocus as a latent site, on the line or on quadrature nodes."""

from math import inf
from typing import Any

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor

from cryoprob.checks import InputError, require
from cryoprob.fourier.bands import Band
from cryoprob.models.local_prior import LocalPrior
from cryoprob.models.poses.grid import GridDistribution
from cryoprob.optics import ctf
from cryoprob.particles import Batch
from cryoprob.quadrature import even_rule, normal_rule

__all__ = ["GaussianDefocus", "defocused_ctf"]

_MOST = 64


class GaussianDefocus(LocalPrior):
    """``defocus ~ N(0, scale_A^2)``: what is added to both defoci of an image, Angstrom.

    Parameters
    ----------
    scale_A
        Standard deviation.
    nodes
        0 for the line; else as many Gauss-Hermite nodes with their weights (5 to 9 are usual),
        which are enumerated. Sums over n nodes are exact for polynomials of degree 2n - 1 in the
        defocus; they need likelihoods that are not much narrower than the prior.
    even
        The nodes are spaced evenly over three standard deviations to either side, for narrower
        likelihoods: down to half of the ``spacing``.

    Raises
    ------
    InputError
        If ``scale_A`` is not positive, or ``nodes`` is 1, negative or above 64.
    """

    scale: Tensor
    points: Tensor
    log_mass: Tensor

    def __init__(
        self,
        scale_A: float,
        nodes: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        even: bool = False,
    ) -> None:
        super().__init__()
        wanted = "a positive length (Angstrom)"
        require(0 < scale_A < inf, "defocus scale", expected=wanted, got=str(scale_A))
        fits = nodes == 0 or 2 <= nodes <= _MOST
        require(fits, "defocus nodes", expected=f"0, or 2 to {_MOST}", got=str(nodes))
        self.enumerable = nodes > 0
        rule = even_rule if even else normal_rule
        place, mass = rule(nodes) if nodes else (torch.zeros(0), torch.zeros(0))
        kind: dict[str, Any] = {"dtype": dtype, "device": device}
        self.register_buffer("scale", torch.tensor(scale_A, **kind))
        self.register_buffer("points", scale_A * place.to(**kind))
        self.register_buffer("log_mass", mass.to(**kind))

    @property
    def spacing(self) -> float:
        """Least distance of two nodes, Angstrom; 0 on the line."""
        return float(self.points.diff().min()) if len(self.points) else 0.0

    def prior(self) -> TorchDistribution:
        """The normal distribution of a number, or its nodes."""
        if self.enumerable:
            return GridDistribution(self.points, self.log_mass)
        found: TorchDistribution = Normal(torch.zeros_like(self.scale), self.scale)
        return found


def defocused_ctf(batch: Batch, band: Band, pixel_size: float, defocus: Tensor) -> Tensor:
    """CTFs [*, N, m] of a batch in a band at defocus errors [*, N] (A), differentiable in them.

    Raises
    ------
    InputError
        If the batch has no optics.
    """
    if batch.optics is None:
        raise InputError(
            "defocus",
            expected="particles with optics, whose defocus can be shifted",
            got="none",
            remedy="Read particles with the columns of their CTF, or leave the defocus out of the"
            " model. (Augmented turns the CTFs and drops the optics: leave it out, too.)",
        )
    optics = batch.optics.defocused(defocus)
    return ctf(optics, band.kx, band.ky, pixel_size, band.box, dtype=batch.ctf.dtype)
