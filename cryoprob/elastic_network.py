"""Normal modes of an elastic network: springs between all sites that lie near to each other."""

import numpy as np
import torch
from scipy import linalg
from torch import Tensor

from cryoprob.checks import InputError, require

__all__ = ["elastic_hessian", "normal_modes"]

_RIGID = 6
"""Modes of no energy of a rigid body: three shifts, three turns."""


def elastic_hessian(positions: Tensor, cutoff_A: float = 15.0) -> Tensor:
    """Second derivatives [3n, 3n] of ``sum (d_ij - d0_ij)^2 / 2`` over pairs nearer than a cutoff.

    The block of a pair is ``-e e^T`` of its direction e; a site's own block is minus the sum of
    its pairs'. Order: (x, y, z) of the first site, of the second, ... The anisotropic network
    model of Tirion (1996) and Atilgan et al. (2001), with springs of 1.

    Parameters
    ----------
    positions
        [n, 3], A: C-alpha atoms, or any sites.
    cutoff_A
        Longest spring, A; 15 is usual for C-alpha atoms.

    Raises
    ------
    InputError
        If positions are not [n, 3] and finite, two of them coincide, or the cutoff is not
        positive.
    """
    got = f"shape {list(positions.shape)}"
    fits = positions.dim() == 2 and positions.shape[-1] == 3 and len(positions) > 1
    require(fits, "positions", expected="[n, 3], n of 2 or more", got=got)
    finite = bool(torch.isfinite(positions).all())
    require(finite, "positions", expected="finite numbers of A", got="NaN or infinity")
    require(cutoff_A > 0, "cutoff", expected="a positive length, A", got=f"{cutoff_A:g}")
    apart = positions[:, None] - positions
    distance = torch.linalg.vector_norm(apart, dim=-1).fill_diagonal_(torch.inf)
    alike = bool((distance > 0).all())
    require(alike, "positions", expected="sites that are apart", got="two at one place")
    ends = apart / distance[..., None] * (distance <= cutoff_A)[..., None]
    blocks = -ends[..., :, None] * ends[..., None, :]
    own = torch.arange(len(positions), device=positions.device)
    blocks[own, own] = -blocks.sum(1)
    found: Tensor = blocks.transpose(1, 2).reshape(3 * len(positions), -1)
    return found


def normal_modes(positions: Tensor, count: int, cutoff_A: float = 15.0) -> tuple[Tensor, Tensor]:
    """The modes of least energy: the collective motions that a network of springs allows.

    The six rigid motions, which cost nothing, are left out. Computed in float64.

    Parameters
    ----------
    positions, cutoff_A
        As for :func:`elastic_hessian`.
    count
        How many, from the softest on.

    Returns
    -------
    modes
        [count, n, 3]: displacements, orthonormal over all numbers of a mode, each with its
        largest number positive; times an amplitude in A they are displacements in A.
    eigenvalues
        [count], ascending: energy is ``sum_k eigenvalue_k amplitude_k^2 / 2``.

    Raises
    ------
    InputError
        As :func:`elastic_hessian`; if there are not as many modes; or if the network is not
        rigid, so that other motions cost nothing either.
    """
    most = 3 * len(positions) - _RIGID
    fits = 0 < count <= most
    require(
        fits, "modes", expected=f"1 to {max(most, 0)} of {len(positions)} sites", got=f"{count}"
    )
    hessian = elastic_hessian(positions.double(), cutoff_A).cpu().numpy()
    none = _rounding(hessian)
    last = _RIGID + count - 1
    energies, vectors = linalg.eigh(hessian, subset_by_index=[0, last])
    if energies[_RIGID] <= none:
        free = len(linalg.eigvalsh(hessian, subset_by_value=[-np.inf, none])) - _RIGID
        raise InputError(
            "elastic network",
            expected="springs that leave only the 6 rigid motions free",
            got=f"{free} more at a cutoff of {cutoff_A:g} A",
            remedy="Take a longer cutoff, or leave out sites that hang loosely.",
        )
    found = vectors[:, _RIGID:].T
    largest = np.take_along_axis(found, np.abs(found).argmax(1)[:, None], 1)
    modes = torch.from_numpy(found * np.sign(largest)).reshape(count, -1, 3)
    return modes.to(positions), torch.from_numpy(energies[_RIGID:]).to(positions)


def _rounding(hessian: "np.ndarray[tuple[int, int], np.dtype[np.float64]]") -> float:
    """An eigenvalue below which it may as well be zero: ten times n eps |H|."""
    norm = float(np.abs(hessian).sum(1).max())
    return float(10 * len(hessian) * np.finfo(float).eps * norm)
