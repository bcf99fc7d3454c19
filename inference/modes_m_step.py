"""Closed-form updates of linear modes: all components at once, and their prior powers."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from cryoprob.fourier.normal import NormalEquations
from cryoprob.fourier.shells import shell_counts, shell_mean, spread
from cryoprob.fourier.transforms import fft3, ifft3
from cryoprob.inference.conjugate_gradients import conjugate_gradients
from cryoprob.inference.m_step import fourier_weight
from cryoprob.inference.modes_statistics import ModesStatistics
from cryoprob.types import Maps

__all__ = [
    "BlockEquations",
    "ModesSolution",
    "determined",
    "expanded",
    "mode_tau2",
    "modes_divergence",
    "solve_modes",
]


@dataclass(frozen=True, eq=False)
class BlockEquations:
    """``sum_b A_ab V_b = b_a`` of all components.

    Attributes
    ----------
    blocks
        ``A_ab`` for a <= b; (0, b) has the right-hand side ``b_b``.
    """

    blocks: dict[tuple[int, int], NormalEquations]

    @classmethod
    def of(cls, statistics: ModesStatistics) -> "BlockEquations":
        """The equations of the sums of an E-step, whose memory is given back."""
        pairs = statistics.blocks.items()
        return cls({pair: insertion.equations(release=True) for pair, insertion in pairs})

    @property
    def size(self) -> int:
        """Components, 1 + K."""
        return 1 + max(b for _, b in self.blocks)

    def right_side(self) -> Maps:
        """``b``, [1 + K, D, D, D]."""
        return torch.stack([self.blocks[0, b].right_side() for b in range(self.size)])

    def apply(self, coefficients: Maps) -> Maps:
        """``A V``, [1 + K, D, D, D]."""
        found = torch.zeros_like(coefficients)
        for (a, b), block in self.blocks.items():
            found[a] += block.apply(coefficients[b])
            if a < b:
                found[b] += block.apply(coefficients[a])
        return found

    def weights(self) -> Tensor:
        """Diagonal approximations of all blocks in Fourier space, [D, D, D, 1 + K, 1 + K]."""
        rows: list[list[Tensor]] = [[torch.empty(0)] * self.size for _ in range(self.size)]
        for (a, b), block in self.blocks.items():
            rows[a][b] = rows[b][a] = fourier_weight(block)
        return torch.stack([torch.stack(row, -1) for row in rows], -2)


@dataclass(frozen=True, eq=False)
class ModesSolution:
    """The new components and what the solver knows about them.

    Attributes
    ----------
    coefficients
        [1 + K, D, D, D].
    weight
        Diagonal approximation of the data's precision of each component, [1 + K, D, D, D].
    covariance
        Approximate posterior covariance of the components' modes, means of shells,
        [S, 1 + K, 1 + K].
    iterations
        Conjugate-gradient steps taken.
    """

    coefficients: Maps
    weight: Tensor
    covariance: Tensor
    iterations: int


def solve_modes(
    equations: BlockEquations,
    tau2: Tensor,
    start: Maps,
    *,
    free: Tensor | None = None,
    tolerance: float = 1e-3,
    max_iterations: int = 100,
) -> ModesSolution:
    """Maximize ``-1/2 V^T A V + b^T V + log p(V)`` over all components jointly.

    Conjugate gradients from ``start``, preconditioned by the inverse of a matrix of components
    for each mode of the map: no step lowers the maximum's distance in value, so EM with few of
    them never falls either.

    Parameters
    ----------
    equations
        ``A`` and ``b`` of the E-step.
    tau2
        Prior variances, [1 + K, S].
    start
        First guess, [1 + K, D, D, D].
    free
        Which components to solve for, [1 + K] of bool; the others stay. Default all.
    tolerance, max_iterations
        As of :func:`~cryoprob.inference.conjugate_gradients.conjugate_gradients`.
    """
    prior = 1 / spread(tau2, start.shape[-1])
    weights = equations.weights()
    precise = weights.double() + torch.diag_embed(prior.movedim(0, -1).double())
    leak = 0.03 * weights.mean((0, 1, 2)).double()
    inverse = torch.linalg.inv(precise + leak).to(start)
    mask = torch.ones_like(tau2[:, 0]) if free is None else free.to(tau2)
    mask = mask[:, None, None, None]
    operate = partial(_precision, equations, prior)
    right = mask * (equations.right_side() - operate((1 - mask) * start))
    found, steps = conjugate_gradients(
        lambda maps: mask * operate(mask * maps),
        right,
        mask * start,
        lambda maps: mask * _mixed(mask * maps, inverse),
        tolerance,
        max_iterations,
    )
    covariance = shell_mean(torch.linalg.inv(precise).movedim((-2, -1), (0, 1))).movedim(-1, 0)
    weight = weights.diagonal(dim1=-2, dim2=-1).movedim(-1, 0)
    return ModesSolution(found + (1 - mask) * start, weight, covariance, steps)


def mode_tau2(
    tau2: Tensor, solution: ModesSolution, radius: int, *, doubt: bool = False
) -> Tensor:
    """Prior power per component and shell from the components' own, [1 + K, S].

    MacKay's fixed point, ``|V|^2 / gamma`` with gamma the part of a shell's numbers that the data
    determine; beyond the band the last shell's value goes on. A shell of a mode in which the
    images tell nothing of it goes to 0 and stays there: what is left open fits noise, for the
    E-step takes the modes for certain. MacKay 1992, Neural Comput. 4, 415, eq. 4.9.

    With ``doubt`` (an E-step that does not) the update of EM, ``|V|^2`` and its variance.
    """
    found = shell_mean(fft3(solution.coefficients).abs() ** 2)
    own = solution.covariance.diagonal(dim1=-2, dim2=-1).T.to(found)
    found = found + own if doubt else found / (1 - own / tau2).clamp(min=0.02)
    found[:, radius + 1 :] = found[:, radius, None]
    floor = 1e-3 / solution.weight.amax((1, 2, 3)).clamp(min=1e-30)
    floor = torch.maximum(1e-8 * found.amax(1), floor)
    return torch.maximum(found, floor[:, None])


def determined(equations: BlockEquations, coefficients: Maps, tau2: Tensor) -> float:
    """How many of the components' numbers images determine beside priors ``tau2`` [1 + K, S].

    The trace of ``A (A + 1 / tau2)^-1``, blocks of modes by their diagonals (MacKay 1992); where
    the components have more power than their prior it is that of the power.
    """
    weights = equations.weights().double()
    power = shell_mean(fft3(coefficients.double()).abs() ** 2)
    prior = 1 / spread(torch.maximum(power, tau2.to(power)), coefficients.shape[-1])
    precise = weights + torch.diag_embed(prior.movedim(0, -1))
    found = torch.linalg.solve(precise, weights).diagonal(dim1=-2, dim2=-1)
    return float(found.sum())


def expanded(
    solution: ModesSolution, mean: Tensor, covariance: Tensor, scale: Tensor, *, move_mean: bool
) -> ModesSolution:
    """Components for which z of a general normal law has the prior's again.

    ``W z`` with ``z ~ N(m, S)``, both at their optimum, is ``W m + W S^(1/2) e``: parameter
    expansion (Liu, Rubin and Wu 1998, Biometrika 85, 755).

    Parameters
    ----------
    mean, covariance
        Posteriors of z, [n, K] and [n, K, K].
    scale
        Prior standard deviations of z, [K].
    move_mean
        False keeps V_0 and takes m to be 0.
    """
    center = mean.mean(0) * move_mean
    scale, away = scale.to(mean), mean - center
    second = away.mT @ away / len(mean) + covariance.mean(0)
    values, vectors = torch.linalg.eigh(second / (scale * scale[:, None]))
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.mT
    old = solution.coefficients
    turn = torch.eye(1 + len(scale), dtype=mean.dtype, device=mean.device)
    turn[1:, 0], turn[1:, 1:] = center, root * scale[:, None] / scale
    return replace(
        solution,
        coefficients=torch.einsum("ba,bzyx->azyx", turn.to(old), old),
        covariance=turn.mT @ solution.covariance.to(turn) @ turn,
    )


def modes_divergence(coefficients: Maps, covariance: Tensor, tau2: Tensor) -> float:
    """KL(q || prior) of the components in nats, q normal of covariances [S, 1 + K, 1 + K]."""
    box = coefficients.shape[-1]
    tau2, covariance = tau2.double(), covariance.double()
    power = shell_mean(fft3(coefficients.double()).abs() ** 2)
    own = covariance.diagonal(dim1=-2, dim2=-1).T
    each = ((power + own) / tau2 + tau2.log() - 1).sum(0) - torch.logdet(covariance)
    return float((shell_counts(box).to(each) * each).sum() / 2)


def _precision(equations: BlockEquations, prior: Tensor, maps: Maps) -> Maps:
    return equations.apply(maps) + ifft3(fft3(maps) * prior).real


def _mixed(maps: Maps, matrix: Tensor) -> Maps:
    """Maps [P, D, D, D] with every mode multiplied by a matrix, [D, D, D, P, P]."""
    spectra = torch.einsum("zyxab,bzyx->azyx", matrix.to(fft3(maps)), fft3(maps))
    return ifft3(spectra).real
