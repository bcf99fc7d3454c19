"""Structures: reading PDB and mmCIF, and the map against the atoms' analytic transform."""

import gzip
from dataclasses import replace
from math import pi, sqrt

import gemmi
import pytest
import torch

from cryoprob.checks import DataWarning, InputError
from cryoprob.fourier.transforms import fft3
from cryoprob.gaussians import narrowest
from cryoprob.io.structures import (
    Atoms,
    adk,
    density,
    read_structure,
    residue_density,
)

PDB = """\
ATOM      1  N   MET A   1       1.000   2.000   3.000  1.00 20.00           N
ATOM      2  CA AMET A   1       2.500   2.000   3.000  0.60 21.00           C
ATOM      3  CA BMET A   1       2.500   9.000   3.000  0.40 22.00           C
ATOM      4  HA  MET A   1       2.900   2.000   3.900  1.00 23.00           H
ATOM      5  CA  GLY B   2       5.000  -2.000   7.000  1.00 24.00           C
HETATM    6 ZN    ZN B   3       0.000   0.000   0.000  1.00 25.00          ZN
HETATM    7  O   HOH B   4       9.000   9.000   9.000  1.00 26.00           O
END
"""


def some_atoms(elements, positions, b_factors=None):
    n = len(elements)
    b_factors = torch.zeros(n) if b_factors is None else torch.tensor(b_factors)
    positions = torch.tensor(positions, dtype=torch.float64)
    rest = (("X",) * n, ("UNK",) * n, torch.arange(n))
    return Atoms(positions, tuple(elements), b_factors.double(), *rest)


def at_zero(element):
    """Scattering factor at zero angle, by gemmi itself."""
    return gemmi.Element(element).c4322.calculate_sf(0.0)


def cross_section(box, pixel_size):
    """Frequencies (1/A) of the centered transform as x, y, z grids."""
    k = torch.arange(-(box // 2), box // 2).double() / (box * pixel_size)
    z, y, x = torch.meshgrid(k, k, k, indexing="ij")
    return x, y, z


@pytest.fixture
def pdb(tmp_path):
    path = tmp_path / "some.pdb"
    path.write_text(PDB)
    return path


def test_reading_takes_heavy_atoms_first_location_no_water(pdb):
    atoms = read_structure(pdb)
    assert atoms.elements == ("N", "C", "C", "Zn")
    assert atoms.names == ("N", "CA", "CA", "ZN")
    assert atoms.residues == ("MET", "MET", "GLY", "ZN")
    assert atoms.numbers.tolist() == [1, 1, 2, 3]
    assert atoms.b_factors.tolist() == [20, 21, 24, 25]
    assert atoms.positions[1].tolist() == [2.5, 2, 3]
    assert read_structure(pdb, water=True).elements[-1] == "O"
    assert len(read_structure(pdb, chain="A")) == 2
    assert read_structure(pdb).alpha_carbons().numbers.tolist() == [1, 2]


def test_only_the_first_model_is_read(tmp_path):
    atom = PDB.splitlines()[0]
    path = tmp_path / "models.pdb"
    path.write_text(f"MODEL        1\n{atom}\nENDMDL\nMODEL        2\n{atom}\nENDMDL\nEND\n")
    assert len(read_structure(path)) == 1


def test_mmcif_and_gzip_read_the_same(pdb, tmp_path):
    plain = read_structure(pdb)
    cif, packed = tmp_path / "some.cif", tmp_path / "some.pdb.gz"
    structure = gemmi.read_structure(str(pdb))
    structure.setup_entities()
    structure.make_mmcif_document().write_file(str(cif))
    packed.write_bytes(gzip.compress(PDB.encode()))
    for other in (read_structure(cif), read_structure(packed)):
        torch.testing.assert_close(other.positions, plain.positions)
        assert (other.elements, other.names) == (plain.elements, plain.names)


def test_elements_of_polymers_are_told_by_names_where_the_column_is_missing(tmp_path):
    """Simulation programs write names one column to the left and no element: CA is no calcium."""
    rows = ["N   ", "CA  ", "C   ", "CD  ", "HG  ", "OE1 ", "1HB "]
    text = "".join(
        f"ATOM  {i:5d} {name:4s} HSD     1    {i:8.3f}{0:8.3f}{0:8.3f}  1.00 10.00      4AKE\n"
        for i, name in enumerate(rows, 1)
    )
    text += "HETATM   99 CA    CA     2       0.000   0.000   0.000  1.00 10.00          CA\n"
    path = tmp_path / "md.pdb"
    path.write_text(text)
    atoms = read_structure(path)
    assert atoms.elements == ("N", "C", "C", "C", "O", "Ca")
    assert atoms.names == ("N", "CA", "C", "CD", "OE1", "CA")
    assert len(atoms.alpha_carbons()) == 1


def test_foreign_files_of_adenylate_kinase(data):
    for name in (
        "structures/pdb1ake.pdb",
        "structures/4akeA_alg_fixed.pdb",
        "adk-path/adk_open.pdb",
    ):
        atoms = read_structure(data / name)
        assert (len(atoms), len(atoms.alpha_carbons())) == (1656, 214)
        assert set(atoms.elements) == {"C", "N", "O", "S"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.pdb", b""),
        ("words.pdb", b"no atoms here\n"),
        ("words.cif", b"no atoms here\n"),
        ("table.cif", b"data_x\n_a.b 1\n"),
        ("cif_named.pdb", b"data_x\n_a.b 1\n"),
        ("broken.pdb.gz", b"\x1f\x8b123"),
        # mtime: the content names the test, which every process of pytest must see alike
        ("broken.cif.gz", gzip.compress(b"data_x\nloop_\n_a.b\n" * 99, mtime=0)[:40]),
        ("truth.mrc", b"\0" * 2048),
        ("broken.json", b"not json"),
        ("hydrogen.pdb", PDB.splitlines()[3].encode()),
        ("nan.pdb", PDB.splitlines()[0].replace("  1.000", "    nan").encode()),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=name):
        read_structure(path)


def test_missing_files_and_chains_are_refused(tmp_path, pdb):
    with pytest.raises(InputError, match="no such file"):
        read_structure(tmp_path / "absent.pdb")
    with pytest.raises(InputError, match="none in chain 'Q'"):
        read_structure(pdb, chain="Q")


def test_density_has_the_total_of_the_scattering_factors():
    atoms = some_atoms(
        "CNOS", [[3.3, -2.1, 4.7], [0, 0, 0], [-5.2, 1, 1], [1, 6, -7.7]], [9.0] * 4
    )
    total = sum(at_zero(e) for e in atoms.elements)
    for pixel_size in (0.5, 1.5, 3.0):
        map_ = density(atoms, 48, pixel_size, dtype=torch.float64, center=False)
        # 5 sd cut: 6e-7 an axis; aliases at 0.9 voxels: 1e-7
        assert float(map_.sum()) * pixel_size**3 == pytest.approx(total, rel=3e-6)
        assert float(map_.min()) >= 0


@pytest.mark.parametrize("resolution", [None, 8.0])
def test_transform_of_one_atom_is_its_scattering_factor(resolution):
    """FFT of the map = f(s) exp(-B s^2/4) blur(s) exp(-2 pi i k.r), f by gemmi."""
    box, pixel_size, b_factor, where = 32, 1.0, 15.0, (2.3, -1.4, 3.9)
    atoms = some_atoms("O", [where], [b_factor])
    map_ = density(atoms, box, pixel_size, resolution, center=False, dtype=torch.float64)
    x, y, z = cross_section(box, pixel_size)
    s2 = x**2 + y**2 + z**2
    factor = gemmi.Element("O").c4322
    f = torch.tensor([factor.calculate_sf(float(v) / 4) for v in s2.flatten()]).reshape(s2.shape)
    blur = torch.exp(-s2 * (resolution or 4 * pixel_size) ** 2)
    phase = -2 * pi * (x * where[0] + y * where[1] + z * where[2])
    want = torch.polar(f * blur * torch.exp(-b_factor * s2 / 4), phase)
    got = fft3(map_) * box**1.5 * pixel_size**3
    inner = s2 < (0.5 / (2 * pixel_size)) ** 2  # half of Nyquist
    # f(0) = 1.98; aliases come from 1.5 times Nyquist and beyond, exp(-(.75 * 4)^2) = 1e-4 at most
    torch.testing.assert_close(got[inner], want[inner], rtol=0, atol=1e-5 * at_zero("O"))


def test_atom_lies_at_its_voxel_in_zyx_order():
    for where, index in (((3, -2, 5), (13, 6, 11)), ((0, 0, 0), (8, 8, 8))):
        atoms = some_atoms("C", [[2.0 * v for v in where]])
        map_ = density(atoms, 16, 2.0, center=False)
        assert torch.unravel_index(map_.argmax(), map_.shape) == index


def test_center_of_mass_goes_to_the_origin_voxel():
    atoms = some_atoms("CO", [[20, 30, 40], [24, 30, 37]])
    map_ = residue_and_mass_center(density(atoms, 32, 1.0, dtype=torch.float64))
    moved = replace(atoms, positions=atoms.positions - 100)
    torch.testing.assert_close(density(moved, 32, 1.0), density(atoms, 32, 1.0))
    masses = atoms.masses()
    offset = atoms.positions - masses @ atoms.positions / masses.sum()
    weights = torch.tensor([at_zero("C"), at_zero("O")]).double()  # of the map, not of the mass
    # 5 sd cut, box edge at 16 A
    torch.testing.assert_close(map_, weights @ offset / weights.sum(), rtol=0, atol=1e-5)


def residue_and_mass_center(map_):
    """First moment of a map about its origin voxel, as (x, y, z), voxels."""
    k = torch.arange(map_.shape[-1]).to(map_) - map_.shape[-1] // 2
    axes = ((0, 1), (0, 2), (1, 2))
    return torch.stack([map_.sum(a) @ k for a in axes]) / map_.sum()


def test_bad_grids_and_elements_are_refused():
    atoms = some_atoms("C", [[0, 0, 0]])
    for box, pixel_size, words in ((7, 1.0, "even"), (8, 0.0, "positive"), (8, -1.0, "positive")):
        with pytest.raises(InputError, match=words):
            density(atoms, box, pixel_size)
    with pytest.raises(InputError, match="Es"):
        density(some_atoms(["Es"], [[0, 0, 0]]), 8, 1.0)


def test_atoms_outside_of_the_box_are_told():
    atoms = some_atoms("CC", [[0, 0, 0], [50, 0, 0]])
    with pytest.warns(DataWarning, match="1 of 2 atoms lie outside of the box of 16 A"):
        density(atoms, 16, 1.0, center=False)


def test_embedded_adenylate_kinase(data):
    """214 residues, as in the files of the two entries, brought into one frame by the core."""
    files = {"closed": "pdb1ake.pdb", "open": "4akeA_alg_fixed.pdb"}
    both = {state: adk(state) for state in files}
    for state, atoms in both.items():
        file = read_structure(data / "structures" / files[state]).alpha_carbons()
        assert atoms.numbers.tolist() == list(range(1, 215)) == file.numbers.tolist()
        assert atoms.residues == file.residues
        # coordinates have three decimals; distances do not depend on the frame
        torch.testing.assert_close(
            torch.cdist(atoms.positions, atoms.positions),
            torch.cdist(file.positions, file.positions),
            rtol=0,
            atol=1e-6,
        )
        assert hand(atoms.positions) * hand(file.positions) > 0
    numbers = both["closed"].numbers
    core = (numbers <= 29) | ((numbers >= 68) & (numbers <= 117)) | (numbers >= 161)
    apart = (both["closed"].positions - both["open"].positions).square().sum(1)
    assert 1.5 < float(apart[core].mean().sqrt()) < 1.6  # best fit of the core alone: 1.55 A
    assert float(apart[~core].mean().sqrt()) > 10
    masses = both["closed"].residue_masses()
    torch.testing.assert_close(masses @ both["closed"].positions, torch.zeros(3).double())


def hand(positions):
    """A signed volume, which a mirror image turns round."""
    a, b, c = positions[[60, 120, 180]] - positions[0]
    return float(torch.linalg.det(torch.stack([a, b, c])))


def test_adk_asks_for_a_known_state():
    with pytest.raises(InputError, match="'closed' or 'open'"):
        adk("ajar")


def test_residue_density_has_the_mass_of_the_protein():
    atoms = adk("closed")
    map_ = residue_density(atoms, 48, 2.0, 2.5, dtype=torch.float64)
    # 23586 Da (UniProt P69441) with the water of the ends; gemmi's Lys, Arg, His are charged
    protons = sum(r in ("LYS", "ARG", "HIS") for r in atoms.residues)
    assert protons == 34
    total = float(atoms.residue_masses().sum()) + 18.02 - protons * 1.008
    assert total == pytest.approx(23586, abs=1)
    assert float(map_.sum()) * 2.0**3 == pytest.approx(
        float(atoms.residue_masses().sum()), rel=3e-6
    )
    # mass center on the origin: 5 sd cut
    torch.testing.assert_close(
        residue_and_mass_center(map_), torch.zeros(3).double(), rtol=0, atol=1e-5
    )


def test_residue_density_keeps_the_width_asked_for():
    single = adk("closed")._select([0])
    peak = {sd: float(residue_density(single, 32, 1.0, sd).max()) for sd in (2.0, 3.0)}
    mass = float(single.residue_masses()[0])
    for sd, height in peak.items():
        assert height == pytest.approx(mass * (2 * pi * sd**2) ** -1.5, rel=1e-5)
    least = float(residue_density(single, 32, 4.0, 0.1).max())
    assert narrowest(4.0) == pytest.approx(16 / (pi * sqrt(2)))
    assert least == pytest.approx(mass * (2 * pi * narrowest(4.0) ** 2) ** -1.5, rel=1e-5)


def test_residue_density_asks_for_alpha_carbons_and_tells_of_unknown_residues(pdb):
    atoms = read_structure(pdb)
    with pytest.raises(InputError, match="alpha_carbons"):
        residue_density(atoms, 16, 1.0, 2.5)
    odd = replace(atoms.alpha_carbons(), residues=("MET", "ZZQ"))
    with pytest.warns(DataWarning, match="ZZQ"):
        assert float(odd.residue_masses()[1]) == 110
