"""Atomic structures: reading them, and the map that an electron microscope sees of them."""

from collections.abc import Iterator
from csv import DictReader
from dataclasses import dataclass
from importlib.resources import files
from math import pi
from typing import Literal

import gemmi
import roma
import torch
from torch import Tensor

from cryoprob.checks import InputError, require, warn
from cryoprob.gaussians import check_grid, gaussian_blur, gaussian_density, narrowest
from cryoprob.io.files import require_file
from cryoprob.types import Maps, PathType

__all__ = [
    "Atoms",
    "adk",
    "density",
    "is_structure",
    "read_structure",
    "residue_density",
]

_WATER, _MEAN_RESIDUE = 18.0153, 110.0
"""Daltons: lost by a residue in a chain; taken for residues without a known mass."""
_ADK_CORE = ((1, 29), (68, 117), (161, 214))
"""Residues of adenylate kinase that keep their place between open and closed (CORE domain)."""


@dataclass(frozen=True, eq=False)
class Atoms:
    """Heavy atoms of one model.

    Attributes
    ----------
    positions
        [n, 3] as (x, y, z), A, float64.
    elements
        Element symbols, n.
    b_factors
        [n], A^2, float64.
    names, residues
        Atom names ("CA") and residue names ("ALA"), n each.
    numbers
        Residue numbers, [n] (long).
    """

    positions: Tensor
    elements: tuple[str, ...]
    b_factors: Tensor
    names: tuple[str, ...]
    residues: tuple[str, ...]
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.elements)

    def masses(self) -> Tensor:
        """Mass of each atom, Da, [n]."""
        weight = {e: gemmi.Element(e).weight for e in set(self.elements)}
        return torch.tensor([weight[e] for e in self.elements], dtype=torch.float64)

    def residue_masses(self) -> Tensor:
        """Mass in a chain of the residue that each atom belongs to, Da, [n]."""
        weight = {r: _residue_mass(r) for r in set(self.residues)}
        return torch.tensor([weight[r] for r in self.residues], dtype=torch.float64)

    def alpha_carbons(self) -> "Atoms":
        """The C-alpha atoms alone, one per residue of a protein."""
        return self._select([i for i, n in enumerate(self.names) if (n, self.elements[i]) == _CA])

    def _select(self, keep: list[int]) -> "Atoms":
        texts = ([t[i] for i in keep] for t in (self.elements, self.names, self.residues))
        elements, names, residues = (tuple(t) for t in texts)
        tensors = (self.positions[keep], self.b_factors[keep], self.numbers[keep])
        return Atoms(tensors[0], elements, tensors[1], names, residues, tensors[2])


_CA = ("CA", "C")
_ORGANIC = frozenset({"H", "D", "C", "N", "O", "P", "S", "Se"})


def _residue_mass(name: str) -> float:
    known = gemmi.find_tabulated_residue(name)
    if not known.found():
        warn(f"Residue {name} has no known mass; {_MEAN_RESIDUE:g} Da is taken.")
    return known.weight - _WATER if known.found() else _MEAN_RESIDUE


def is_structure(path: PathType) -> bool:
    """Whether a file's name is that of a PDB or mmCIF file (``.gz`` may follow)."""
    return str(path).lower().removesuffix(".gz").endswith((".pdb", ".ent", ".cif", ".mmcif"))


def read_structure(path: PathType, *, chain: str | None = None, water: bool = False) -> Atoms:
    """Heavy atoms of the first model of a PDB or mmCIF file (gzipped or not).

    Of alternative locations the first is taken, with full occupancy; hydrogens are left out.

    Parameters
    ----------
    path
        A ``.pdb``, ``.ent``, ``.cif`` or ``.mmcif`` file, possibly followed by ``.gz``.
    chain
        Name of the only chain to read; all if left out.
    water
        Whether to keep water molecules.

    Raises
    ------
    InputError
        If the file is missing, is no structure, or has no such atoms.
    """
    remedy = "Give a PDB or mmCIF file (.pdb, .ent, .cif, .mmcif; .gz may follow)."
    require_file(path, "an atomic structure")
    try:
        models = gemmi.read_structure(str(path))
    except (RuntimeError, ValueError, LookupError, OSError) as error:
        where, got = str(path), f"a file that cannot be read ({error})"
        raise InputError(where, expected="an atomic structure", got=got, remedy=remedy) from error
    rows = list(_rows(models[0], chain, water)) if len(models) else []
    got = "none" if chain is None else f"none in chain {chain!r}"
    require(bool(rows), str(path), expected="heavy atoms", got=got, remedy=remedy)
    atoms = _assemble(rows)
    finite = bool(torch.isfinite(atoms.positions).all() and torch.isfinite(atoms.b_factors).all())
    require(finite, str(path), expected="finite coordinates and B factors", got="NaN or infinity")
    return atoms


_Row = tuple[list[float], str, float, str, str, int]


def _rows(model: "gemmi.Model", chain: str | None, water: bool) -> Iterator[_Row]:
    for residue in (r for c in model if chain in (None, c.name) for r in c.first_conformer()):
        if residue.is_water() and not water:
            continue
        organic = _is_organic(residue)
        for atom in residue.first_conformer():
            element = _element(atom) if organic else atom.element
            if not element.is_hydrogen:
                place = (atom.name, residue.name, residue.seqid.num or 0)
                yield atom.pos.tolist(), element.name, atom.b_iso, *place


def _is_organic(residue: "gemmi.Residue") -> bool:
    """Whether it is an amino acid or a nucleotide, known to gemmi or told by its backbone."""
    known = gemmi.find_tabulated_residue(residue.name)
    backbone = {atom.name for atom in residue} >= {"N", "CA", "C"}
    return backbone or known.is_amino_acid() or known.is_nucleic_acid()


def _element(atom: "gemmi.Atom") -> "gemmi.Element":
    """The element in a polymer, by the atom's name where the file has led to a metal or none.

    Without the element column, and with names out of their column, CA reads as calcium.
    """
    if atom.element.name in _ORGANIC:
        return atom.element
    return gemmi.Element(atom.name.lstrip("0123456789")[:1])


def _assemble(rows: list[_Row]) -> Atoms:
    positions, elements, b_factors, names, residues, numbers = zip(*rows, strict=True)
    return Atoms(
        torch.tensor(positions, dtype=torch.float64),
        elements,
        torch.tensor(b_factors, dtype=torch.float64),
        names,
        residues,
        torch.tensor(numbers),
    )


def adk(state: Literal["closed", "open"]) -> Atoms:
    """C-alpha atoms of E. coli adenylate kinase, closed (PDB 1AKE) or open (4AKE), 214 residues.

    Both are in one frame: the closed form has its center of mass at zero and the open one is
    superposed on it by the CORE domain, so that they compare residue by residue (and maps of both
    can be made with ``center=False``).

    Raises
    ------
    InputError
        If ``state`` is neither.
    """
    states = ("closed", "open")
    require(state in states, "adk", expected="'closed' or 'open'", got=repr(state))
    closed, opened = (_read_adk(s) for s in states)
    numbers = closed.numbers
    core = torch.stack([(numbers >= a) & (numbers <= b) for a, b in _ADK_CORE]).any(0)
    target = closed.positions - _center(closed.positions, closed.residue_masses())
    if state == "closed":
        return _moved(closed, target)
    turn, shift = roma.rigid_points_registration(opened.positions[core], target[core])
    return _moved(opened, opened.positions @ turn.mT + shift)


def _read_adk(state: str) -> Atoms:
    with (files("cryoprob.data") / "adk.csv").open(encoding="utf-8") as stream:
        table = list(DictReader(line for line in stream if not line.startswith("#")))
    rows = [
        (
            [float(r[f"{state}_{axis}"]) for axis in "xyz"],
            "C",
            0.0,
            "CA",
            r["name"],
            int(r["number"]),
        )
        for r in table
    ]
    return _assemble(rows)


def _moved(atoms: Atoms, positions: Tensor) -> Atoms:
    rest = (atoms.elements, atoms.b_factors, atoms.names, atoms.residues, atoms.numbers)
    return Atoms(positions, *rest)


def _center(positions: Tensor, masses: Tensor) -> Tensor:
    return (masses @ positions) / masses.sum()


def density(
    atoms: Atoms,
    box: int,
    pixel_size: float,
    resolution: float | None = None,
    *,
    center: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Maps:
    """Map [D, D, D] of the electron scattering of atoms: scattering factor per A^3, 1/A^2.

    Every atom is five Gaussians (electron factors of International Tables C, 4.3.2.2, from gemmi),
    widened by its B factor and by a common Gaussian whose transform is 1/e at ``resolution``. The
    sum of all voxels times ``pixel_size**3`` is the sum of the scattering factors at zero angle.

    Parameters
    ----------
    atoms
        What to draw; (x, y, z) lies at index ``[z, y, x] / pixel_size + box // 2``.
    box, pixel_size
        Voxels along a side; A per voxel.
    resolution
        A; never below four voxels (:func:`~cryoprob.gaussians.narrowest`), the default.
    center
        Whether the center of mass is moved to the origin voxel.
    dtype
        Floating type of the map.

    Raises
    ------
    InputError
        If an element has no scattering factor.
    """
    where = _placed(atoms, atoms.masses(), box, pixel_size, center)
    weights, widths = _scattering(atoms.elements)
    width = gaussian_blur(max(resolution or 0.0, 4 * pixel_size))
    variances = (widths + atoms.b_factors[:, None]) / (8 * pi**2) + width**2
    return gaussian_density(where, weights, variances, box, pixel_size, dtype)


def _placed(atoms: Atoms, masses: Tensor, box: int, pixel_size: float, center: bool) -> Tensor:
    """Positions [n, 3] in a grid that is checked; atoms outside of it are warned of."""
    check_grid(box, pixel_size)
    where = atoms.positions
    where = where - _center(where, masses) if center else where
    _warn_outside(where, box, pixel_size)
    return where


def _scattering(elements: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Heights a [n, 5] (A) and widths b [n, 5] (A^2): f(s) = sum a exp(-b s^2 / 4)."""
    symbols = sorted(set(elements))
    factors = [gemmi.Element(s).c4322 for s in symbols]
    missing = [s for s, f in zip(symbols, factors, strict=True) if f is None]
    if missing:
        got = f"{', '.join(missing)}, which has none"
        raise InputError("atoms", expected="elements with electron scattering factors", got=got)
    place = torch.tensor([symbols.index(e) for e in elements])
    a, b = (torch.tensor([list(getattr(f, x)) for f in factors]).double() for x in "ab")
    return a[place], b[place]


def residue_density(
    atoms: Atoms,
    box: int,
    pixel_size: float,
    sd: float,
    *,
    center: bool = True,
    dtype: torch.dtype = torch.float32,
) -> Maps:
    """Coarse map [D, D, D] of a protein: one Gaussian at each C-alpha, Da per A^3.

    Parameters
    ----------
    atoms
        C-alpha atoms (:func:`adk` or :meth:`Atoms.alpha_carbons`); each weighs its residue's mass.
    box, pixel_size
        Voxels along a side; A per voxel.
    sd
        Standard deviation, A, about 2 to 3; never below :func:`~cryoprob.gaussians.narrowest`.
    center
        Whether the center of mass is moved to the origin voxel.
    dtype
        Floating type of the map.

    Raises
    ------
    InputError
        If there are atoms other than C-alphas.
    """
    require(
        len(atoms) > 0 and set(atoms.names) == {"CA"},
        "residue_density",
        expected="C-alpha atoms alone",
        got=f"{len(atoms)} atoms, {sum(n != 'CA' for n in atoms.names)} of them others",
        remedy="Use atoms.alpha_carbons().",
    )
    masses = atoms.residue_masses()
    where = _placed(atoms, masses, box, pixel_size, center)
    masses, variance = masses[:, None], max(sd, narrowest(pixel_size)) ** 2
    return gaussian_density(where, masses, masses * 0 + variance, box, pixel_size, dtype)


def _warn_outside(positions: Tensor, box: int, pixel_size: float) -> None:
    outside = int((positions.abs() > box * pixel_size / 2).any(-1).sum())
    if outside:
        side = box * pixel_size
        warn(f"{outside} of {len(positions)} atoms lie outside of the box of {side:g} A.", 4)
