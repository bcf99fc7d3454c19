"""Residues of a structure as Gaussians."""

import pytest
import torch

from cryoprob.checks import InputError
from cryoprob.io.structures import Atoms, adk
from cryoprob.models.volumes.residues import residues

F64 = torch.float64
ROWS = [
    ("N", "N", "ALA", 1, (0.0, 0.0, 0.0)),
    ("CA", "C", "ALA", 1, (1.0, 0.0, 0.0)),
    ("C", "C", "ALA", 1, (2.0, 0.0, 0.0)),
    ("O", "O", "ALA", 1, (2.0, 1.0, 0.0)),
    ("CB", "C", "ALA", 1, (1.0, -1.5, 0.0)),
    ("N", "N", "GLY", 2, (3.0, 0.0, 0.0)),
    ("CA", "C", "GLY", 2, (4.8, 0.0, 0.0)),
    ("C", "C", "GLY", 2, (5.0, 0.0, 0.0)),
    ("O", "O", "GLY", 2, (5.0, 1.0, 0.0)),
    ("N", "N", "SER", 4, (7.0, 0.0, 0.0)),
    ("CA", "C", "SER", 4, (8.6, 0.0, 0.0)),
    ("CB", "C", "SER", 4, (8.6, 1.0, 0.0)),
    ("OG", "O", "SER", 4, (8.6, 1.0, 2.0)),
    ("CA", "CA", "CA", 5, (20.0, 0.0, 0.0)),
]


def table(rows):
    names, elements, kinds, numbers, places = zip(*rows, strict=True)
    place = torch.tensor(places, dtype=F64)
    flat = torch.zeros(len(rows), dtype=F64)
    return Atoms(place, elements, flat, names, kinds, torch.tensor(numbers))


def test_backbones_and_side_chains():
    found = residues(table(ROWS))
    serine = (6 * torch.tensor([8.6, 1.0, 0.0]) + 8 * torch.tensor([8.6, 1.0, 2.0])) / 14
    wanted = [[1.0, 0, 0], [4.8, 0, 0], [8.6, 0, 0], [1.0, -1.5, 0], serine.tolist()]
    torch.testing.assert_close(found.positions, torch.tensor(wanted, dtype=F64))
    # N 7, C 6, O 8; the calcium ion is none of a residue
    assert found.electrons.tolist() == [27, 27, 13, 6, 14]
    assert found.bonds.tolist() == [[0, 1], [0, 3], [2, 4]]  # residue 3 is missing
    assert found.lengths.tolist() == pytest.approx([3.8, 1.5, (1 + (16 / 14) ** 2) ** 0.5])


def test_c_alphas_alone_have_all_of_their_residue():
    atoms = adk("closed")
    found = residues(atoms)
    assert found.positions.equal(atoms.positions) and found.bonds.shape == (213, 2)
    # 23.6 kDa; a protein of C, N, O, S, H has 0.53 to 0.54 electrons a dalton
    electrons = {"ALA": 38, "GLY": 30, "TRP": 98}  # of C3H5NO, C2H3NO, C11H10N2O in a chain
    for name, wanted in electrons.items():
        here = [i for i, kind in enumerate(atoms.residues) if kind == name]
        if here:
            assert float(found.electrons[here[0]]) == pytest.approx(wanted, rel=0.03)


def test_what_is_no_protein_is_refused():
    with pytest.raises(InputError, match="no C-alpha"):
        residues(table(ROWS[-1:]))
