"""Small chains of C-alpha atoms, and files of them."""

import gemmi
import numpy as np
import torch


def bead_chain(count, generator):
    """Positions [count, 3], A: a chain of steps of 3.8 A that bends and does not come back."""
    axis = torch.linspace(0, 1, count, dtype=torch.float64)
    turn = 12 * axis + 0.3 * torch.rand(count, generator=generator, dtype=torch.float64)
    rise = torch.stack([turn.cos(), turn.sin(), 0.3 + 1.5 * axis], 1)
    steps = 3.8 * rise / rise.norm(dim=1, keepdim=True)
    places = steps.cumsum(0)
    return places - places.mean(0)


def write_chain(path, positions):
    """A PDB file of alanines' C-alpha atoms at positions [n, 3]."""
    chain = gemmi.Chain("A")
    for number, place in enumerate(positions.tolist(), 1):
        residue = gemmi.Residue()
        residue.name, residue.seqid = "ALA", gemmi.SeqId(str(number))
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos = "CA", gemmi.Element("C"), gemmi.Position(*place)
        atom.occ, atom.b_iso = 1.0, 20.0
        residue.add_atom(atom)
        chain.add_residue(residue)
    model, structure = gemmi.Model(1), gemmi.Structure()
    model.add_chain(chain)
    structure.add_model(model)
    structure.write_pdb(str(path))


def write_frame(path, data, frame=0):
    """A PDB file of a frame of the adk-path set, heavy atoms where its maps have them."""
    with np.load(data / "atoms.npz") as atoms:
        names = ("residue", "residue_name", "name", "element")
        columns = [atoms[name].tolist() for name in names]
        places = atoms["xyz"][frame].tolist()
    chain = gemmi.Chain("A")
    for number, kind, name, element, place in zip(*columns, places, strict=True):
        if not len(chain) or chain[-1].seqid.num != number:
            residue = gemmi.Residue()
            residue.name, residue.seqid = kind, gemmi.SeqId(str(number))
            chain.add_residue(residue)
        atom = gemmi.Atom()
        atom.name, atom.element, atom.pos = name, gemmi.Element(element), gemmi.Position(*place)
        atom.occ, atom.b_iso = 1.0, 20.0
        chain[-1].add_atom(atom)
    model, structure = gemmi.Model(1), gemmi.Structure()
    model.add_chain(chain)
    structure.add_model(model)
    structure.write_pdb(str(path))
