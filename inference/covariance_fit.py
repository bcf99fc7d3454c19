"""Modes from the least-squares covariance, in one step of the loop."""

from dataclasses import dataclass
from time import perf_counter
from typing import Any

from cryoprob.inference.covariance import estimate_covariance
from cryoprob.inference.linear_modes_em import ModesEM, ModesState
from cryoprob.inference.linear_posterior import latents
from cryoprob.particles import ParticleStack

__all__ = ["CovarianceFit"]

_RIDGE, _TOLERANCE = 0.03, 1e-3
"""Without a penalty few images leave the covariance open, and rounding errors grow."""


@dataclass(frozen=True)
class CovarianceFit:
    """Mean, noise from its residual, then the covariance; its leading eigenvectors are the modes.

    Anden and Singer 2018, SIAM J. Imaging Sci. 11, 1441.

    Parameters
    ----------
    seed
        Of the fit.
    """

    seed: int

    def step(self, state: ModesState, stack: ParticleStack) -> dict[str, Any]:
        """All of it; returns (and appends) the record."""
        began, half = perf_counter(), state.half
        ModesEM(self.seed).begin(half, stack)
        whose = half.model, half.guide, stack, half.index
        found = estimate_covariance(*whose, ridge=_RIDGE, tolerance=_TOLERANCE)
        values = half.guide.volume.coefficients.data
        values[0] = found.mean_map().to(values)
        values[1:] = found.modes(len(values) - 1).to(values)
        bound = latents(half.model, half.guide, stack).log_evidence
        state.iteration, state.done = 1, True
        band = half.model.band
        record = {
            "iteration": 1,
            "bound": float(bound.mean()),
            "kind": "log_evidence, nats per image, full band",
            "resolution_A": band.box * half.model.pixel_size / band.radius,
            "radius": band.radius,
            "images": len(half.index),
        }
        state.history.append(record)
        return {**record, "seconds": perf_counter() - began}
