"""Log potentials of structures and maps, for ``pyro.factor``: 0 at best, in nats."""

import roma
import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.io.structures import Atoms
from cryoprob.types import Maps

__all__ = [
    "ALPHA_CARBON_BOND",
    "bond_lengths",
    "bond_term",
    "chain_bonds",
    "deviation_term",
    "positivity_term",
]

ALPHA_CARBON_BOND = 3.8
"""A between neighboring C-alpha atoms of a chain (trans peptides)."""


def chain_bonds(atoms: Atoms, longest: float = 4.5) -> Tensor:
    """Pairs of C-alpha atoms that follow each other in a chain, [b, 2] indices.

    They are next to each other in the table, of successive residue numbers, and not farther apart
    than ``longest`` A.

    Raises
    ------
    InputError
        If there are atoms other than C-alphas.
    """
    alone = len(atoms) > 0 and set(atoms.names) == {"CA"}
    remedy = "Use atoms.alpha_carbons()."
    require(alone, "chain", expected="C-alpha atoms alone", got="others", remedy=remedy)
    first = torch.arange(len(atoms) - 1)
    pairs = torch.stack([first, first + 1], 1)
    follows = atoms.numbers.diff() == 1
    near = bond_lengths(atoms.positions, pairs) <= longest
    return pairs[follows & near]


def bond_lengths(positions: Tensor, bonds: Tensor) -> Tensor:
    """Lengths [*, b] of bonds [b, 2] at positions [*, n, 3]."""
    one, other = (positions[..., bonds[:, end], :] for end in (0, 1))
    lengths: Tensor = torch.linalg.vector_norm(one - other, dim=-1)
    return lengths


def bond_term(
    positions: Tensor,
    bonds: Tensor,
    length: Tensor | float = ALPHA_CARBON_BOND,
    sd: float = 0.1,
) -> Tensor:
    """``-sum (length_b - length)^2 / (2 sd^2)`` over bonds [b, 2], [*]; lengths and sd in A.

    papers: CryoFold's structure loss.
    """
    away = bond_lengths(positions, bonds) - length
    return -(away.square().sum(-1)) / (2 * sd**2)


def deviation_term(
    positions: Tensor, reference: Tensor, sd: float, *, superpose: bool = True
) -> Tensor:
    """``-sum |c_j - c0_j|^2 / (2 sd^2)`` over sites [*, n, 3], [*]; sd in A.

    ``superpose`` moves the reference onto the positions first, as a rigid body: the term then
    does not depend on where the molecule is. The best move makes the sum stationary, so the
    gradient is that at the move held fixed.
    """
    if superpose:
        with torch.no_grad():
            turn, shift = roma.rigid_points_registration(
                reference.expand_as(positions).contiguous(), positions.detach()
            )
        reference = reference @ turn.mT + shift[..., None, :]
    return -(positions - reference).square().sum((-1, -2)) / (2 * sd**2)


def positivity_term(density: Maps, sd: Tensor | float) -> Tensor:
    """``-sum min(V, 0)^2 / (2 sd^2)`` over voxels [*, D, D, D], [*]."""
    return -(density.clamp(max=0) / sd).square().sum((-3, -2, -1)) / 2
