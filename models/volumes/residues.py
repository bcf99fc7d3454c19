"""A protein as Gaussians of its residues: one at each C-alpha, one at each side chain."""

from dataclasses import dataclass

import gemmi
import torch
from torch import Tensor

from cryoprob.checks import require
from cryoprob.io.structures import Atoms
from cryoprob.models.volumes.structure_terms import bond_lengths, chain_bonds

__all__ = ["Residues", "residues"]

_BACKBONE = frozenset({"N", "CA", "C", "O", "OXT"})
_ELECTRONS_PER_DALTON = 0.535
"""Of a protein."""


@dataclass(frozen=True, eq=False)
class Residues:
    """Sites of a coarse protein.

    Attributes
    ----------
    positions
        [n, 3], A: all C-alphas, then the side chains that the structure has atoms of.
    electrons
        [n].
    bonds
        Pairs of sites, [b, 2]: along the chains, then to the side chains.
    lengths
        Of the bonds in the structure, A, [b].
    """

    positions: Tensor
    electrons: Tensor
    bonds: Tensor
    lengths: Tensor


def residues(atoms: Atoms) -> Residues:
    """The sites of a structure's residues; of one with C-alphas alone, these.

    A side chain is at the center of its electrons, the backbone at the C-alpha; each has the
    electrons of its atoms (a residue of one atom all those of the residue). papers: CryoFold, two
    Gaussians for each residue.

    Raises
    ------
    InputError
        If there are no C-alphas.
    """
    carbons = atoms.alpha_carbons()
    require(len(carbons) > 0, "structure", expected="a protein", got="no C-alpha atoms")
    weight = torch.tensor([float(gemmi.Element(e).atomic_number) for e in atoms.elements])
    weight = weight.double()
    number, own = _runs(atoms), [i for i, name in enumerate(atoms.names) if name == "CA"]
    own = [i for i in own if atoms.elements[i] == "C"]
    count = torch.bincount(number)[number[own]]
    side = torch.tensor([name not in _BACKBONE for name in atoms.names])
    total = torch.zeros(int(number.max()) + 1, dtype=torch.float64)
    light, heavy = (total.index_add(0, number, weight * part) for part in (~side, side))
    center = torch.zeros(len(total), 3, dtype=torch.float64)
    center.index_add_(0, number, atoms.positions * (weight * side)[:, None])
    has = (heavy[number[own]] > 0).nonzero()[:, 0]
    rows = number[own][has]
    places = torch.cat([carbons.positions, center[rows] / heavy[rows, None]])
    whole = carbons.residue_masses() * _ELECTRONS_PER_DALTON
    electrons = torch.cat([torch.where(count > 1, light[number[own]], whole), heavy[rows]])
    branches = torch.stack([has, len(carbons) + torch.arange(len(has))], 1)
    bonds = torch.cat([chain_bonds(carbons), branches])
    return Residues(places, electrons, bonds, bond_lengths(places, bonds))


def _runs(atoms: Atoms) -> Tensor:
    """Number of the residue of each atom, counted along the table, [n]."""
    before = zip(atoms.residues, atoms.residues[1:], strict=False)
    other = torch.tensor([one != next_one for one, next_one in before], dtype=torch.bool)
    changes = (atoms.numbers.diff() != 0) | other
    return torch.cat([torch.zeros(1, dtype=torch.long), changes.long().cumsum(0)])
