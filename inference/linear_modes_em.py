"""EM of linear conformational modes at known poses: probabilistic PCA of what moves."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.shells import shell_mean, spread
from cryoprob.fourier.transforms import fft3, ifft3
from cryoprob.inference.half import Half
from cryoprob.inference.linear_posterior import linear_modes_of, prior_scale
from cryoprob.inference.m_step import update_contrast, update_noise
from cryoprob.inference.modes_m_step import (
    BlockEquations,
    ModesSolution,
    expanded,
    mode_tau2,
    modes_divergence,
    solve_modes,
)
from cryoprob.inference.modes_statistics import ModesStatistics, modes_e_step
from cryoprob.inference.treatments.conditional_gaussian import ConditionalGaussian
from cryoprob.masks import sphere
from cryoprob.particles import ParticleStack
from cryoprob.types import Maps

__all__ = ["ModesEM", "ModesState", "Principal", "principal", "random_modes"]

_PLAIN = ("iteration", "best", "stalled", "done", "history", "covariance")
_MEAN_ROUNDS = 3
_NOTHING = 1e-12
"""Least variance along a mode, in units of the largest."""


@dataclass(frozen=True, eq=False)
class Principal:
    """Linear modes in the gauge that names them: orthogonal, sorted, with ``z ~ N(0, I)``.

    Attributes
    ----------
    coefficients
        The mean and the turned modes, [1 + K, D, D, D]; a mode's largest voxel is positive.
    singular_values
        Their norms, falling: the maps' standard deviations along them, [K].
    turn
        [K, K]: ``z @ turn`` are the coordinates along them.
    """

    coefficients: Maps
    singular_values: Tensor
    turn: Tensor

    def latent(self, mean: Tensor) -> Tensor:
        """Coordinates [n, K] of conformations [n, K]."""
        return mean @ self.turn.to(mean)

    def covariance(self, covariance: Tensor) -> Tensor:
        """Their covariances, [n, K, K]."""
        turn = self.turn.to(covariance)
        return turn.mT @ covariance @ turn


def principal(coefficients: Maps, scale: Tensor | None = None) -> Principal:
    """The principal axes of linear modes [1 + K, D, D, D] and their standard deviations.

    Modes are only defined up to a rotation of z: ``W z = (W Q) (Q^T z)``.

    Parameters
    ----------
    scale
        Prior standard deviations of z, [K]; default ones.
    """
    modes = coefficients[1:].double().flatten(1)
    scale = torch.ones_like(modes[:, 0]) if scale is None else scale.to(modes)
    left, values, right = torch.linalg.svd(scale[:, None] * modes, full_matrices=False)
    sign = right.gather(1, right.abs().argmax(1, keepdim=True))[:, 0].sign()
    turned = (right * (sign * values)[:, None]).reshape(coefficients[1:].shape)
    maps = torch.cat([coefficients[:1], turned.to(coefficients)])
    return Principal(maps, values, left * sign / scale[:, None])


def random_modes(mean: Maps, size: int, scale: float, generator: torch.Generator) -> Maps:
    """Noise [size, D, D, D] with the power spectrum of a map, in the ball that images see.

    Parameters
    ----------
    mean
        [D, D, D].
    scale
        Norm of each, in units of the mean's.
    generator
        On the CPU.
    """
    box = mean.shape[-1]
    white = torch.randn(size, box, box, box, generator=generator, dtype=torch.float64).to(mean)
    root = spread(shell_mean(fft3(mean).abs() ** 2).sqrt(), box)
    modes = ifft3(fft3(white) * root).real * sphere(box, 0.4 * box, 0.05 * box).to(mean)
    norm = modes.flatten(1).norm(dim=1)[:, None, None, None]
    found: Maps = modes * (scale * mean.norm() / norm)
    return found


@dataclass(eq=False)
class ModesState:
    """Where the fit stands.

    Attributes
    ----------
    half
        Model (a ``LinearModes`` volume, a ``GaussianConformation``), guide (``Known`` poses,
        ``ConditionalGaussian``, a ``Point`` at [1 + K, D, D, D]) and images.
    iteration
        Steps taken.
    best, stalled
        Largest bound per image so far, and steps without progress.
    done
        Nothing more to gain.
    history
        One record per step.
    covariance
        Of the components' modes after the last step, [S, 1 + K, 1 + K] (float64), with ``doubt``.
    """

    half: Half
    iteration: int = 0
    best: float = -torch.inf
    stalled: int = 0
    done: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)
    covariance: Tensor | None = None

    def pack(self) -> dict[str, Any]:
        """Everything a checkpoint needs, as tensors and plain values."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        model, guide = self.half.model, self.half.guide
        parts = {"model": model.state_dict(), "guide": guide.state_dict()}
        return {**plain, **parts, "radius": model.band.radius}

    def unpack(self, content: dict[str, Any]) -> None:
        """Take up the state of a checkpoint; the half's parts are there already."""
        for name in _PLAIN:
            setattr(self, name, content[name])
        self.half.model.load_state_dict(content["model"])
        self.half.model.volume.set_band(content["radius"])
        self.half.guide.load_state_dict(content["guide"])


@dataclass(frozen=True)
class ModesEM:
    """EM for ``V_0 + sum_k z_k V_k``: exact posteriors of z, then all components at once.

    Modes that are zero start at noise of the mean's spectrum (with ``tau2``, so do their prior
    powers), and a mean that is zero at its own reconstruction. With
    ``noise``, ``tau2``, ``contrast`` and ``expand`` off and the covariance in, the log posterior
    of the components never falls.

    Parameters
    ----------
    seed
        Of the noise.
    scale
        Norm of the modes at the start, in units of the mean's.
    mean, noise, tau2, contrast
        What is updated beside the modes: the mean map, the noise spectra (from the expected
        residual), the prior powers (empirical Bayes), the images' amplitudes.
    expand
        Also fit the mean and covariance of all z and put them into the modes, which makes their
        scale converge in a few steps (Liu, Rubin and Wu 1998, Biometrika 85, 755). Exact
        posteriors only.
    doubt
        Count the components' own uncertainty in the posteriors of z: variational Bayes of both
        (Bishop 1999, ICANN 509), less prone to take noise for modes where images are few. The
        bound is then the mean of log densities, short of the evidence by ``volume_kl``. Exact
        posteriors only.
    hard
        Drop the covariance of z (3DVA's EM): the scales of modes and z then drift apart without
        end, ``(V_k, z_k) -> (a V_k, z_k / a)``, for a prior of z asks for small z only; subspaces
        are right, amplitudes are not.
    orthonormal
        With ``hard``: modes are made orthonormal after each step, and z has no prior. That holds
        the scale (Punjani and Fleet 2021). They are the principal axes of the maps found, and
        the model's prior of z is told the standard deviations along them, without being used.
    tolerance
        Of the M-step's conjugate gradients.
    gain
        Nats per image; two steps that gain less end the fit.
    max_iterations
        Steps at most.

    Raises
    ------
    InputError
        If modes are to be orthonormal and the covariance stays in, or ``hard`` meets ``doubt``.
    """

    seed: int
    scale: float = 0.2
    mean: bool = True
    noise: bool = True
    tau2: bool = True
    contrast: bool = False
    expand: bool = True
    doubt: bool = False
    hard: bool = False
    orthonormal: bool = False
    tolerance: float = 1e-3
    gain: float = 1e-3
    max_iterations: int = 50

    def __post_init__(self) -> None:
        require(
            not (self.hard and self.doubt),
            "doubt",
            expected="exact posteriors of z",
            got="hard EM, which knows no doubt",
        )
        require(
            self.hard or not self.orthonormal,
            "orthonormal modes",
            expected="hard EM, whose scale they hold",
            got="exact posteriors, which hold the scale by themselves",
        )

    def step(self, state: ModesState, stack: ParticleStack) -> dict[str, Any]:
        """One E-step and M-step; returns (and appends) the step's record."""
        began, half = perf_counter(), state.half
        part = half.guide.conformation
        wanted, got = "ConditionalGaussian in the guide", type(part).__name__
        exact = isinstance(part, ConditionalGaussian)
        require(exact, "conformation", expected=wanted, got=got)
        if state.iteration == 0:
            self.begin(half, stack)
        sums = modes_e_step(
            half.model,
            half.guide,
            stack,
            half.index,
            hard=self.hard,
            flat=self.orthonormal,
            covariance=state.covariance,
        )
        record = self._record(state, sums)
        free = torch.ones(1 + sums.mean.shape[1], dtype=torch.bool)
        free[0] = self.mean
        solution = self._m_step(half, sums, free)
        if self.doubt:
            state.covariance = solution.covariance.double()
        self._judge(state, record["bound"] - record.get("volume_kl", 0.0) / record["images"])
        state.history.append(record)
        return {**record, "seconds": perf_counter() - began}

    def begin(self, half: Half, stack: ParticleStack) -> None:
        """Give the mean and the modes a start where they have none."""
        values = half.guide.volume.coefficients.data
        if not values[0].any():
            for _ in range(_MEAN_ROUNDS if self.tau2 or self.noise else 1):
                sums = modes_e_step(half.model, half.guide, stack, half.index, modes=False)
                self._m_step(half, sums, torch.ones(1, dtype=torch.bool))
        if not values[1:].any():
            generator = torch.Generator().manual_seed(self.seed)
            values[1:] = random_modes(values[0], len(values) - 1, self.scale, generator)
            tau2 = linear_modes_of(half.model).tau2
            if self.tau2:
                tau2[1:] = tau2[0] * self.scale**2  # else they would begin by fitting noise
            if self.orthonormal:
                tau2[1:] /= values[1].square().sum()  # all have this norm
                values[1:], _ = _orthonormal(values[1:])

    def _m_step(self, half: Half, sums: ModesStatistics, free: Tensor) -> ModesSolution:
        model, values = half.model, half.guide.volume.coefficients.data
        count = len(free)  # a start leaves modes away
        tau2 = linear_modes_of(model).tau2[:count]
        equations, start = BlockEquations.of(sums), values[:count]
        solution = solve_modes(equations, tau2, start, free=free, tolerance=self.tolerance)
        values[:count] = solution.coefficients
        if self.expand and count > 1 and not self.hard:
            law = sums.mean[half.index], sums.covariance[half.index]
            solution = expanded(solution, *law, prior_scale(model), move_mean=self.mean)
            values.copy_(solution.coefficients)
        if self.tau2:
            found = mode_tau2(tau2, solution, model.band.radius, doubt=self.doubt)
            tau2.copy_(torch.where(free.to(tau2.device)[:, None], found, tau2))
        if self.orthonormal and count > 1:
            values[1:], along = _orthonormal(values[1:], sums.mean[half.index])
            prior_scale(model).copy_(along)
        if self.noise:
            update_noise(model, sums.common)
        if self.contrast:
            update_contrast(model, sums.common)
        return solution

    def _record(self, state: ModesState, sums: ModesStatistics) -> dict[str, Any]:
        """What the E-step found, at the components before the M-step."""
        model, index = state.half.model, state.half.index
        values = state.half.guide.volume.coefficients.detach()
        bound = sums.common.summary.bound[index]
        state.iteration += 1
        kind = "profile_log_joint" if self.hard else "log_evidence"
        kl = {}
        if state.covariance is not None:
            tau2 = linear_modes_of(model).tau2
            kind, kl["volume_kl"] = "elbo", modes_divergence(values, state.covariance, tau2)
        z = sums.mean[index]
        return {
            "iteration": state.iteration,
            "bound": float(bound.mean()),
            "kind": f"{kind}, nats per image, full band",
            "log_posterior": float(bound.sum() + model.volume.prior().log_prob(values).double()),
            "singular_values": principal(values, prior_scale(model)).singular_values.tolist(),
            "z_variance": float(z.var(0, correction=0).mean()),
            "resolution_A": model.band.box * model.pixel_size / max(model.band.radius, 1),
            "radius": model.band.radius,
            "images": len(index),
            **kl,
        }

    def _judge(self, state: ModesState, bound: float) -> None:
        """Count steps without progress; two end the fit."""
        state.stalled = 0 if bound > state.best + self.gain else state.stalled + 1
        state.best = max(state.best, bound)
        state.done = state.stalled >= 2 or state.iteration >= self.max_iterations


def _orthonormal(modes: Maps, z: Tensor | None = None) -> tuple[Maps, Tensor]:
    """Orthonormal modes [K, D, D, D] of the same span, along which maps differ most, first.

    And the standard deviations [K] along them of the maps at z [n, K], where z is given.
    """
    root = torch.eye(len(modes), dtype=torch.float64, device=modes.device)
    if z is not None:
        values, vectors = torch.linalg.eigh(z.double().T.cov(correction=0).reshape(root.shape))
        root = (vectors * values.clamp(min=_NOTHING * values[-1]).sqrt()).mT.to(root)
    turned = torch.einsum("kl,lzyx->kzyx", root, modes.double())
    found = principal(torch.cat([turned[:1], turned]))
    norms = found.singular_values.clamp(min=_NOTHING * found.singular_values[0])
    return (found.coefficients[1:] / norms[:, None, None, None]).to(modes), norms
