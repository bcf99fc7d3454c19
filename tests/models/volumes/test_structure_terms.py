"""Structure terms: 0 at the reference, blind to rigid motion, the right slope."""

import pytest
import torch

from cryoprob.checks import InputError
from cryoprob.geometry.rotations import random_rotations
from cryoprob.io.structures import Atoms, adk
from cryoprob.models.volumes.structure_terms import (
    ALPHA_CARBON_BOND,
    bond_lengths,
    bond_term,
    chain_bonds,
    deviation_term,
    positivity_term,
)

F64 = torch.float64


@pytest.fixture
def atoms():
    return adk("closed")


def moved(positions, generator, count=3):
    """The same body at other places, [count, n, 3]."""
    turns = random_rotations(count, generator, F64)
    return positions @ turns.mT + 20 * torch.randn(count, 1, 3, generator=generator, dtype=F64)


def test_bonds_of_a_chain(atoms):
    bonds = chain_bonds(atoms)
    assert bonds.shape == (213, 2)  # 214 residues, no gap
    lengths = bond_lengths(atoms.positions, bonds)
    # trans 3.80, cis 2.95 A; crystals of some 2 A resolution
    assert float((lengths - ALPHA_CARBON_BOND).abs().median()) < 0.05
    assert float(lengths.min()) > 2.8 and float(lengths.max()) < 4.5


def test_a_gap_is_no_bond(atoms):
    keep = [i for i in range(20) if i not in (7, 8)]
    rest = [[t[i] for i in keep] for t in (atoms.elements, atoms.names, atoms.residues)]
    short = Atoms(
        atoms.positions[keep], rest[0], atoms.b_factors[keep], *rest[1:], atoms.numbers[keep]
    )
    assert chain_bonds(short).tolist() == [[i, i + 1] for i in range(17) if i != 6]
    with pytest.raises(InputError, match="alpha"):
        chain_bonds(Atoms(*[getattr(atoms, n)[:0] for n in atoms.__dataclass_fields__]))


def test_zero_at_the_reference_wherever_it_is(atoms, generator):
    bonds, reference = chain_bonds(atoms), atoms.positions
    lengths = bond_lengths(reference, bonds)
    for places in (reference, moved(reference, generator)):
        zero = torch.zeros(places.shape[:-2], dtype=F64)
        # rounding of coordinates of 30 A, squared, times 1e3 over sd^2
        torch.testing.assert_close(bond_term(places, bonds, lengths), zero, rtol=0, atol=1e-16)
        found = deviation_term(places, reference, 1.0)
        torch.testing.assert_close(found, zero, rtol=0, atol=1e-16)
    assert float(deviation_term(reference + 1, reference, 1.0, superpose=False)) == pytest.approx(
        -214 * 3 / 2
    )


def test_blind_to_rigid_motion_and_to_nothing_else(atoms, generator):
    bonds, reference = chain_bonds(atoms), atoms.positions
    bent = reference + torch.randn(reference.shape, generator=generator, dtype=F64)
    for term in (lambda p: bond_term(p, bonds), lambda p: deviation_term(p, reference, 2.0)):
        wanted = term(bent)
        assert float(wanted) < -10
        torch.testing.assert_close(
            term(moved(bent, generator)), wanted.expand(3), rtol=1e-9, atol=0
        )
    least = deviation_term(bent, reference, 2.0)
    assert float(least) > float(deviation_term(bent, reference, 2.0, superpose=False))


def test_slopes(atoms, generator):
    bonds, reference = chain_bonds(atoms), atoms.positions
    bent = reference + torch.randn(reference.shape, generator=generator, dtype=F64)
    way = torch.randn(reference.shape, generator=generator, dtype=F64)
    for term in (lambda p: bond_term(p, bonds), lambda p: deviation_term(p, reference, 2.0)):
        leaf = bent.clone().requires_grad_()
        term(leaf).backward()
        ends = [float(term(bent + sign * 1e-5 * way)) for sign in (1, -1)]
        assert float((leaf.grad * way).sum()) == pytest.approx(
            (ends[0] - ends[1]) / 2e-5, rel=1e-6
        )


def test_positivity():
    density = torch.tensor([1.0, -2.0, 0.0, -1.0], dtype=F64).reshape(1, 1, 2, 2)
    assert float(positivity_term(density, 0.5)) == -(16 + 4) / 2
    assert float(positivity_term(density.abs(), 0.5)) == 0
    assert positivity_term(density.expand(3, 1, 1, 2, 2), 1.0).shape == (3, 1)
