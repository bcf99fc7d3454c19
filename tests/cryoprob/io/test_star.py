"""STAR files: foreign ones give their expected numbers or error; ours read back."""

import csv
import gzip
import os
import random
import shutil
import subprocess
import time
import warnings
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryoprob.checks import DataWarning, InputError, OutputError
from cryoprob.geometry.rotations import euler_to_matrix, random_rotations
from cryoprob.io.mrc import write_stack
from cryoprob.io.star import read_star, write_star
from cryoprob.io.tables import ParticleTable, new_table, read_particles, write_particles
from cryoprob.optics import Optics
from cryoprob.particles import ParticleStack

DATA = Path(
    os.environ.get("CRYOPROB_TEST_DATA", Path(__file__).resolve().parents[4] / "shared" / "data")
)
CTF_COLUMNS = {
    "voltage_kV": "voltage",
    "cs_mm": "spherical_aberration",
    "amplitude_contrast": "amplitude_contrast",
    "defocus_u_A": "defocus_u",
    "defocus_v_A": "defocus_v",
    "defocus_angle_deg": "defocus_angle",
    "phase_shift_deg": "phase_shift",
    "ctf_bfactor_A2": "b_factor",
    "ctf_scale": "scale",
}
ERRORS = {  # words that the error of each bad file must hold
    "no_voltage.star": ["_rlnVoltage"],
    "ragged.star": ["line 20", "4 values", "got 5"],
    "truncated_row.star": ["line 54", "26 values", "got 7"],
    "empty_loop.star": ["no particles"],
}
WARNINGS = {  # the only files that are odd enough for a warning
    "relion30_images_block.star": ["_rlnAmplitudeContrast"],
    "relion31_6_optics_groups.star": ["higher aberrations", "rlnBeamTiltX"],
    "relion5.star": ["rlnBeamTiltX", "rlnOddZernike", "anisotropic magnification"],
    "tilt_m.star": ["B factors below 0"],
}


def star_cases(*outcomes: str) -> list[object]:
    """The rows of cases.csv that are STAR files, or one skipped case."""
    path = DATA / "metadata" / "cases.csv"
    if not path.exists():
        return [pytest.param({}, marks=pytest.mark.skip(f"no {path}: set CRYOPROB_TEST_DATA"))]
    lines = path.read_text().splitlines()
    rows = [row for row in csv.DictReader(lines) if ".star" in row["file"]]
    rows = [row for row in rows if row["outcome"] in outcomes]
    return [pytest.param(row, id=row["file"]) for row in rows]


def read_quietly(path: Path, **options: object) -> tuple[ParticleTable, list[str]]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        table = read_particles(path, **options)
    assert all(issubclass(w.category, DataWarning) for w in seen)
    return table, [str(w.message) for w in seen]


def expected_columns(path: Path) -> dict[str, np.ndarray]:
    """Columns of an expected.csv; NaN where a field is empty."""
    rows = list(csv.DictReader(path.read_text().splitlines()))
    numbers = [name for name in rows[0] if name != "stack"]
    out = {name: np.array([float(r[name] or "nan") for r in rows]) for name in numbers}
    return out | {"stack": np.array([r["stack"] for r in rows])}


@pytest.mark.parametrize("case", star_cases("read", "error"))
def test_foreign_files_give_their_expected_values_or_error(case: dict[str, str]):
    path = DATA / "metadata" / case["file"]
    if case["outcome"] == "error":
        with pytest.raises(InputError) as caught:
            read_particles(path)
        assert all(word in str(caught.value) for word in [path.name, *ERRORS[case["file"]]])
        return
    table, notes = read_quietly(path)
    want = expected_columns(path.with_name(f"{path.name.split('.')[0]}.expected.csv"))
    assert len(table) == int(case["particles"])
    # the expected numbers are written with 12 digits
    close = {"rtol": 1e-11, "atol": 1e-12, "equal_nan": True}
    np.testing.assert_array_equal(table.slice, want["slice"])
    np.testing.assert_array_equal(np.array(table.stacks)[table.stack], want["stack"])
    np.testing.assert_allclose(table.pixel_size, want["pixel_size_A"], **close)
    for name, field in CTF_COLUMNS.items():
        np.testing.assert_allclose(table.ctf[field], want[name], err_msg=name, **close)
    for i, name in enumerate(("rot_deg", "tilt_deg", "psi_deg")):
        np.testing.assert_allclose(table.angles[:, i], want[name], **close)
    for i, name in enumerate(("shift_x_A", "shift_y_A")):
        np.testing.assert_allclose(table.shift[:, i], want[name], **close)
    optics = table.columns.optics
    if optics is None:
        assert np.isnan(want["optics_group"]).all()
    else:
        numbers = optics.numbers("rlnOpticsGroup")[table.group]
        np.testing.assert_array_equal(numbers, want["optics_group"])
    text = " ".join(notes)
    assert bool(notes) == (case["file"] in WARNINGS), text
    assert all(word in text for word in WARNINGS.get(case["file"], []))


@pytest.mark.parametrize("case", star_cases("read"))
def test_written_tables_read_back(case: dict[str, str], tmp_path: Path):
    table, notes = read_quietly(DATA / "metadata" / case["file"])
    write_particles(tmp_path / "out.star", table)
    again, notes_again = read_quietly(tmp_path / "out.star")
    # columns are kept to the digit; those that move between blocks have 6 decimals
    close = {"rtol": 0, "atol": 5.1e-7, "equal_nan": True}
    np.testing.assert_array_equal(again.slice, table.slice)
    np.testing.assert_array_equal(
        np.array(again.stacks)[again.stack], np.array(table.stacks)[table.stack]
    )
    for name in ("pixel_size", "angles", "shift"):
        np.testing.assert_allclose(getattr(again, name), getattr(table, name), **close)
    for field in CTF_COLUMNS.values():
        np.testing.assert_allclose(again.ctf[field], table.ctf[field], err_msg=field, **close)
    assert len(notes_again) == len(notes)
    blocks = {loop.name for loop in read_star(tmp_path / "out.star")}
    assert blocks == {"optics", "particles"}


def test_columns_can_be_left_out(tmp_path: Path):
    table, _ = read_quietly(DATA / "metadata" / "relion31.star")
    path = tmp_path / "out.star"
    write_particles(path, table, extra={"one": np.ones(len(table)), "two": np.ones(len(table))})
    known = read_particles(path)
    write_particles(path, known, without=["one", "absent"])
    again = read_particles(path)
    assert known.columns.has("one") and not again.columns.has("one") and again.columns.has("two")


def test_groups_before_3_1_are_kinds_of_voltage_and_pixel_size(data: Path, tmp_path: Path):
    table, _ = read_quietly(data / "metadata" / "relion30_class_block.star")
    same_voltage = table.ctf["voltage"][:, None] == table.ctf["voltage"]
    np.testing.assert_array_equal(table.group[:, None] == table.group, same_voltage)
    # Cs differs from row to row: one group, and Cs stays with the rows
    tilts, _ = read_quietly(data / "metadata" / "tilt_m.star")
    assert set(tilts.group) == {0}
    write_particles(tmp_path / "out.star", tilts)
    optics, particles = read_star(tmp_path / "out.star")
    assert "rlnSphericalAberration" in particles.labels
    assert "rlnVoltage" in optics.labels and "rlnVoltage" not in particles.labels


# ---------------------------------------------------------------- the parser against a plain one


def plain_blocks(text: str) -> list[tuple[str, list[str], list[list[str]]]]:
    """Loops of a text by splitting lines: the oracle (no quotes, no trailing comments)."""
    out, name, labels, rows = [], "", [], []
    for line in text.splitlines():
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if words[0].startswith("data_") or words[0] == "loop_":
            name = words[0][5:] if words[0] != "loop_" else name
            labels, rows = [], []
        elif words[0].startswith("_"):
            labels.append(words[0][1:])
            if len(labels) == 1:
                out.append((name, labels, rows))
        else:
            rows.append(words)
    return out


def untidy_text(seed: int) -> str:
    """A STAR file with blanks, tabs, comments, empty lines and Windows line ends at random."""
    pick = random.Random(seed)
    blank = lambda: "".join(pick.choices(" \t", k=pick.randint(1, 3)))  # noqa: E731
    ending = lambda: pick.choice(["\n", "\r\n", " \n", "\n\n", "\n# note, 3 words\n"])  # noqa: E731
    text = ""
    for block in range(pick.randint(1, 4)):
        text += f"data_{'' if block else 'b'}{block}{ending()}loop_{ending()}"
        width = pick.randint(1, 6)
        for column in range(width):
            comment = pick.choice(["", f" #{column + 1}", " # text [in brackets]"])
            text += f"_label{column}{comment}{ending()}"
        for _ in range(pick.randint(0, 7)):
            words = [pick.choice(["-1.5e3", "7", "a/b@c.mrcs", "[1,2,-3]"]) for _ in range(width)]
            text += pick.choice(["", " "]) + blank().join(words) + ending()
    return text


@pytest.mark.parametrize("seed", range(30))
def test_parser_agrees_with_splitting_lines(seed: int, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("cryoprob.io.star._CHUNK", 40)  # many chunks in a small file
    text = untidy_text(seed)
    (tmp_path / "x.star").write_bytes(text.encode())
    lines = text.split("\n")
    found = read_star(tmp_path / "x.star")
    wanted = plain_blocks(text)
    assert [(f.name, list(f.labels), len(f)) for f in found] == [
        (name, labels, len(rows)) for name, labels, rows in wanted
    ]
    for loop, (_, labels, rows) in zip(found, wanted, strict=True):
        columns = [loop.texts(label) for label in labels]
        assert [list(row) for row in zip(*columns, strict=True)] == rows
        assert [lines[n - 1].split() for n in loop.line] == rows


def test_quotes_comments_pairs_and_second_loops(tmp_path: Path):
    (tmp_path / "x.star").write_text(
        "# it's a comment with 'quotes'\ndata_a\n_one 1\n_two 'two words' # note\n_three ''\n"
        "loop_\n_x #1\n_y #2\n1 \"a b\"\n# between\n2 'c # d' # note\n\n3 don't\n_after 5\n"
        "data_empty\n\ndata_b\nloop_\n_q"
    )
    pairs, loop, after, empty = read_star(tmp_path / "x.star")
    assert [pairs.texts(v) for v in pairs.labels] == [["1"], ["two words"], [""]]
    assert loop.texts("y") == ["a b", "c # d", "don't"]
    assert loop.line.tolist() == [9, 11, 13]
    assert after.labels == ("after",) and after.texts("after") == ["5"]
    assert empty.labels == ("q",) and len(empty) == 0


def test_gzip_bom_and_no_final_line_end(tmp_path: Path):
    text = "data_\nloop_\n_a\n_b\n1 2\n3 4"
    (tmp_path / "x.star").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "x.star.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("x.star", "x.star.gz"):
        (loop,) = read_star(tmp_path / name)
        assert loop.numbers("b").tolist() == [2, 4]
    (tmp_path / "cut.star.gz").write_bytes(gzip.compress(text.encode())[:-9])
    with pytest.raises(InputError, match="cut.star.gz"):
        read_star(tmp_path / "cut.star.gz")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty file"]),
        (b"hello world\n", ["line 1", "'hello'"]),
        (b"\n\n", ["data_ blocks"]),
        (bytes(100), ["binary", "not their stack"]),
        (b"version https://git-lfs.github.com/spec/v1\n", ["git lfs pull"]),
        (b"data_\nloop_\n_a\n_b\n1 2\n3\n", ["line 6", "2 values", "got 1"]),
        (b"data_\nloop_\n_a\n_a\n1 2\n", ["_a twice"]),
        (b"data_\n_a 1\n7 8\n", ["line 3", "'7'"]),
    ],
)
def test_files_that_are_no_star_files(content: bytes, words: list[str], tmp_path: Path):
    (tmp_path / "x.star").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_star(tmp_path / "x.star")
    assert all(word in str(caught.value) for word in [*words, "x.star"])


def test_missing_file_and_folder(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        read_star(tmp_path / "x.star")
    with pytest.raises(InputError, match="a folder"):
        read_star(tmp_path)


def test_a_hundred_thousand_rows_in_seconds(tmp_path: Path):
    row = "12345.678 12000.5 45.0 000001@Extract/job001/micrograph_0001.mrcs 300 2.7 0.1 1.2\n"
    labels = ["DefocusU", "DefocusV", "DefocusAngle", "ImageName", "Voltage"]
    labels += ["SphericalAberration", "AmplitudeContrast", "ImagePixelSize"]
    head = "data_particles\nloop_\n" + "".join(f"_rln{v}\n" for v in labels)
    (tmp_path / "x.star").write_text(head + row * 100_000)
    before = time.perf_counter()
    table, _ = read_quietly(tmp_path / "x.star")
    assert len(table) == 100_000
    # takes 0.4 s; ten times that for a busy machine
    assert time.perf_counter() - before < 4


# ---------------------------------------------------------------- values that cannot be

OPTICS = {"OpticsGroup": "1", "Voltage": "300", "SphericalAberration": "2.7"}
OPTICS |= {"AmplitudeContrast": "0.1", "ImagePixelSize": "1.5"}
PARTICLE = {"ImageName": "1@a.mrcs", "OpticsGroup": "1", "DefocusU": "15000", "DefocusV": "15100"}
PARTICLE |= {"DefocusAngle": "30"}


def write_rows(path: Path, optics: list[dict[str, str]], particles: list[dict[str, str]]) -> Path:
    blocks = {}
    for name, rows in {"optics": optics, "particles": particles}.items():
        if rows:
            blocks[name] = {f"rln{key}": [row[key] for row in rows] for key in rows[0]}
    write_star(path, blocks)
    return path


@pytest.mark.parametrize(
    ("optics", "particle", "words"),
    [
        ({}, {"ImageName": "0@a.mrcs"}, ["0@a.mrcs", "counted from 1"]),
        ({}, {"ImageName": "x@a.mrcs"}, ["x@a.mrcs", "000001@stack.mrcs"]),
        ({}, {"DefocusU": "abc"}, ["_rlnDefocusU", "'abc'", "line 25"]),
        ({}, {"DefocusU": "nan"}, ["_rlnDefocusU", "finite"]),
        ({}, {"DefocusV": "inf"}, ["_rlnDefocusV", "finite"]),
        ({}, {"OpticsGroup": "2"}, ["_rlnOpticsGroup", "got 2"]),
        ({}, {"AngleRot": "nan", "AngleTilt": "1", "AnglePsi": "1"}, ["_rlnAngleRot"]),
        ({"Voltage": "-300"}, {}, ["voltage", "kV"]),
        ({"Voltage": "0"}, {}, ["voltage", "kV"]),
        ({"AmplitudeContrast": "1.2"}, {}, ["amplitude contrast"]),
        ({"AmplitudeContrast": "-0.1"}, {}, ["amplitude contrast"]),
        ({"AmplitudeContrast": "nan"}, {}, ["_rlnAmplitudeContrast", "finite"]),
        ({"ImagePixelSize": "0"}, {}, ["pixel size", "positive"]),
        ({"ImageDimensionality": "3"}, {}, ["subtomograms"]),
    ],
)
def test_impossible_values_are_named(
    optics: dict[str, str], particle: dict[str, str], words: list[str], tmp_path: Path
):
    path = write_rows(tmp_path / "x.star", [OPTICS | optics], [PARTICLE | particle])
    with pytest.raises(InputError) as caught:
        read_particles(path)
    assert all(word in str(caught.value) for word in [*words, "x.star"]), str(caught.value)


@pytest.mark.parametrize("missing", ["DefocusU", "DefocusV", "DefocusAngle", "Voltage"])
def test_a_ctf_without_all_it_needs_names_the_column(missing: str, tmp_path: Path):
    optics, particle = ({k: v for k, v in d.items() if k != missing} for d in (OPTICS, PARTICLE))
    path = write_rows(tmp_path / "x.star", [optics], [particle])
    with pytest.raises(InputError, match=f"_rln{missing} "):
        read_particles(path, need=["ctf"])


def test_absent_columns_are_an_error_only_where_needed(tmp_path: Path):
    path = write_rows(tmp_path / "x.star", [], [{"ImageName": "1@a.mrcs"}])
    table = read_particles(path)
    assert table.optics() is None and table.rotation() is None and table.displacement() is None
    assert np.isnan(table.pixel_size).all()
    for need, column in [
        ("ctf", "_rlnDefocusU"),
        ("rotation", "_rlnAngleRot"),
        ("shift", "_rlnOriginXAngst"),
        ("pixel_size", "_rlnImagePixelSize"),
    ]:
        with pytest.raises(InputError, match=column):
            read_particles(path, need=[need])
    with pytest.raises(InputError, match="got poses"):
        read_particles(path, need=["poses"])


def test_no_column_of_images_and_no_optics_group(tmp_path: Path):
    path = write_rows(tmp_path / "mics.star", [], [{"MicrographName": "a.mrc"}])
    with pytest.raises(InputError, match="_rlnImageName"):
        read_particles(path)
    bare = {k: v for k, v in PARTICLE.items() if k != "OpticsGroup"}
    one = write_rows(tmp_path / "one.star", [OPTICS], [bare])
    assert read_particles(one).ctf["voltage"].tolist() == [300]
    two = write_rows(tmp_path / "two.star", [OPTICS, OPTICS | {"OpticsGroup": "2"}], [bare])
    with pytest.raises(InputError, match="_rlnOpticsGroup"):
        read_particles(two)


def test_a_value_of_the_row_wins_over_its_group(tmp_path: Path):
    rows = [PARTICLE | {"Voltage": "200"}, PARTICLE | {"Voltage": "100", "ImageName": "2@a.mrcs"}]
    table = read_particles(write_rows(tmp_path / "x.star", [OPTICS], rows))
    assert table.ctf["voltage"].tolist() == [200, 100]


def test_unset_angles_are_no_pose(tmp_path: Path):
    unset = PARTICLE | {"AngleRot": "0", "AngleTilt": "0", "AnglePsi": "-999"}
    with pytest.warns(DataWarning, match="-999"):
        table = read_particles(write_rows(tmp_path / "x.star", [OPTICS], [unset]))
    assert table.rotation() is None and table.angles[0, 2] == -999


def test_repeated_images_and_unused_columns_are_told(tmp_path: Path):
    identity = {"MagMat00": "1.0", "MagMat01": "0", "BeamTiltX": "0.0", "OddZernike": "[0,0,0]"}
    path = write_rows(tmp_path / "x.star", [OPTICS | identity], [PARTICLE])
    assert read_particles(path).notes == ()
    tilted = identity | {"OddZernike": "[0,0,-0.1]"}
    path = write_rows(tmp_path / "y.star", [OPTICS | tilted], [PARTICLE])
    with pytest.warns(DataWarning, match=r"higher aberrations \(rlnOddZernike\)"):
        read_particles(path)
    path = write_rows(tmp_path / "z.star", [OPTICS], [PARTICLE] * 3)
    with pytest.warns(DataWarning, match=r"name an image again: 2.*000001@a.mrcs"):
        read_particles(path)


def test_origins_in_pixels_follow_the_pixel_size(tmp_path: Path):
    row = {"ImageName": "1@a.mrcs", "OriginX": "2", "OriginY": "-3"}
    table = read_particles(write_rows(tmp_path / "x.star", [], [row]))
    assert table.displacement() is None
    assert table.with_pixel_size(1.5).shift.tolist() == [[-3.0, 4.5]]


# ---------------------------------------------------------------- where stacks are found


def test_stacks_are_found_from_the_file_its_parents_and_the_working_folder(
    tmp_path: Path, monkeypatch
):
    (tmp_path / "project" / "Extract").mkdir(parents=True)
    (tmp_path / "project" / "Refine3D" / "job7").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "project" / "Refine3D" / "job7" / "run.star"
    names = ["1@Extract/a.mrcs", "2@Extract/a.mrcs", "1@b.mrc", "c.mrc", "1@here.mrcs:mrcs"]
    table = read_particles(
        write_rows(path, [OPTICS], [PARTICLE | {"ImageName": n} for n in names])
    )
    assert table.files() == [None] * 4
    for place in ("project/Extract/a.mrcs", "project/Refine3D/job7/b.mrc", "project/c.mrc"):
        (tmp_path / place).write_bytes(b"x")
    (tmp_path / "elsewhere" / "here.mrcs").write_bytes(b"x")
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = [f.resolve().relative_to(tmp_path.resolve()) for f in table.files()]
    assert [str(f) for f in found] == [
        "project/Extract/a.mrcs",
        "project/Refine3D/job7/b.mrc",
        "project/c.mrc",
        "elsewhere/here.mrcs",
    ]
    assert table.slice.tolist() == [0, 1, 0, 0, 0]
    told = read_particles(path, folder=tmp_path / "elsewhere")
    assert told.files()[3] == tmp_path / "elsewhere" / "here.mrcs"


def test_written_names_are_relative_below_the_new_file_and_absolute_elsewhere(tmp_path: Path):
    for place in ("in", "out"):
        (tmp_path / place).mkdir()
        write_stack(tmp_path / place / f"{place}.mrcs", torch.randn(2, 4, 4), 1.5)
    rows = [PARTICLE | {"ImageName": n} for n in ("1@in/in.mrcs", "2@out/out.mrcs", "1@no.mrcs")]
    table = read_particles(write_rows(tmp_path / "x.star", [OPTICS], rows))
    write_particles(tmp_path / "in" / "new.star", table)
    again = read_particles(tmp_path / "in" / "new.star")
    outside = str((tmp_path / "out" / "out.mrcs").resolve())
    assert again.stacks == ("in.mrcs", outside, "no.mrcs")
    assert again.files()[:2] == [tmp_path / "in" / "in.mrcs", Path(outside)]


# ---------------------------------------------------------------- writing


def test_new_poses_extra_columns_and_subsets(data: Path, tmp_path: Path, generator):
    stack = ParticleStack.read(data / "relion-70s" / "particles.star")
    some = stack.subset(torch.tensor([7, 3, 1999, 12]))
    rotation = random_rotations(4, generator, torch.float64)
    shift = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    extra = {
        "_rlnClassNumber": torch.tensor([1, 2, 1, 2]),
        "cryoprobSd": np.array([0.5, 1e-9, 3, 4]),
    }
    write_particles(
        tmp_path / "x.star", some, rotation, shift, extra | {"rlnMicrographName": list("abcd")}
    )
    table, notes = read_quietly(tmp_path / "x.star")
    assert table.slice.tolist() == [7, 3, 1999, 12] and not notes
    # six decimals of a degree, three angles; six decimals of an Angstrom
    torch.testing.assert_close(table.rotation(), rotation, rtol=0, atol=3 * np.radians(5e-7))
    torch.testing.assert_close(table.displacement(), shift, rtol=0, atol=5e-7)
    loop = table.columns.particles
    assert loop.numbers("rlnClassNumber").tolist() == [1, 2, 1, 2]
    assert loop.numbers("cryoprobSd").tolist() == [0.5, 1e-9, 3, 4]
    assert loop.texts("rlnMicrographName") == list("abcd")
    np.testing.assert_array_equal(loop.numbers("rlnOriginXAngst"), -table.shift[:, 0])
    assert ParticleStack.read(tmp_path / "x.star").images([2]).equal(stack.images([1999]))


def test_only_groups_with_particles_are_written(data: Path, tmp_path: Path):
    table, _ = read_quietly(data / "metadata" / "relion31_6_optics_groups.star")
    kept = np.flatnonzero(np.isin(table.group, [1, 4]))
    write_particles(tmp_path / "x.star", table[kept])
    again, _ = read_quietly(tmp_path / "x.star")
    assert again.columns.optics.texts("rlnOpticsGroup") == ["1", "2"]
    assert again.group_names == (table.group_names[1], table.group_names[4])
    np.testing.assert_allclose(again.pixel_size, table.pixel_size[kept], atol=5e-7)


def test_a_new_table_keeps_all_it_was_given(tmp_path: Path, generator):
    n = 6
    write_stack(tmp_path / "s.mrcs", torch.randn(n, 8, 8, generator=generator), 1.25)
    draw = torch.rand(9, n, generator=generator, dtype=torch.float64)
    optics = Optics(
        *(1e4 + 1e3 * draw[:2]), *(draw[2:] * torch.tensor([[90, 300, 2, 1, 9, 50, 1]]).T)
    )
    optics = Optics(*(v.round(decimals=6) for v in vars(optics).values()))
    optics.voltage[:] = 200
    rotation = random_rotations(n, generator, torch.float64)
    shift = torch.randn(n, 2, generator=generator)
    group = torch.tensor([1, 0, 1, 1, 0, 0])
    table = new_table(
        tmp_path / "s.mrcs",
        n,
        1.25,
        box=8,
        optics=optics,
        rotation=rotation,
        shift=shift,
        group=group,
        group_names=("one", "two words"),
    )
    write_particles(tmp_path / "s.star", table)
    stack = ParticleStack.read(tmp_path / "s.star")
    for name, value in vars(optics).items():
        torch.testing.assert_close(getattr(stack.optics, name), value, rtol=0, atol=1e-9, msg=name)
    torch.testing.assert_close(stack.rotation, rotation, rtol=0, atol=3e-8)  # as above
    torch.testing.assert_close(stack.shift, shift.double(), rtol=0, atol=5e-7)
    assert stack.group.equal(group) and stack.group_names == ("one", "two words")
    assert (stack.box, stack.pixel_size) == (8, 1.25)


def test_same_table_same_bytes_and_failed_writes_leave_the_old_file(data: Path, tmp_path: Path):
    table, _ = read_quietly(data / "metadata" / "relion31.star")
    for name in ("a.star", "b.star"):
        write_particles(tmp_path / name, table)
    before = (tmp_path / "a.star").read_bytes()
    assert before == (tmp_path / "b.star").read_bytes() and b"version 30001" in before
    for extra, words in [
        ({"x": [1, 2]}, "5 values"),
        ({"rlnImageName": ["a"] * 5}, "rlnImageName"),
    ]:
        with pytest.raises(InputError, match=words):
            write_particles(tmp_path / "a.star", table, extra=extra)
    with pytest.raises(InputError, match="rotation"):
        write_particles(tmp_path / "a.star", table, torch.eye(3)[None])
    assert (tmp_path / "a.star").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.star", "b.star"]
    with pytest.raises(OutputError):
        write_particles(tmp_path / "nowhere" / "a.star", table)


def test_images_that_were_never_in_a_file_have_no_table(tmp_path: Path):
    stack = ParticleStack.from_arrays(torch.randn(2, 4, 4), 1.0)
    with pytest.raises(InputError, match="new_table"):
        write_particles(tmp_path / "x.star", stack)


# ---------------------------------------------------------------- RELION reads what we write


@pytest.mark.relion
def test_relion_reconstructs_the_same_map_from_our_table(data: Path, tmp_path: Path):
    if shutil.which("relion_reconstruct") is None:
        pytest.skip("RELION (relion_reconstruct) is not on the PATH")
    source, n = data / "relion-70s" / "truth.star", 60
    (tmp_path / "particles.mrcs").symlink_to(data / "relion-70s" / "particles.mrcs")
    lines = source.read_text().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if line.startswith("_rln"))
    (tmp_path / "theirs.star").write_text("".join(lines[: last + 1 + n]))
    stack = ParticleStack.read(source).subset(torch.arange(n))
    write_particles(
        tmp_path / "ours.star", stack, stack.rotation, stack.shift, {"cryoprobScore": np.ones(n)}
    )
    for name in ("theirs", "ours"):
        command = ["relion_reconstruct", "--i", f"{name}.star", "--o", f"{name}.mrc", "--ctf"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    theirs, ours = (mrcfile.read(tmp_path / f"{name}.mrc") for name in ("theirs", "ours"))
    # angles are rounded to 5e-7 degrees and RELION computes in float32
    assert theirs.std() > 0
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * theirs.std())


@pytest.mark.relion
def test_relion_keeps_our_columns(data: Path, tmp_path: Path):
    if shutil.which("relion_star_handler") is None:
        pytest.skip("RELION (relion_star_handler) is not on the PATH")
    table, _ = read_quietly(data / "metadata" / "relion30_class_block.star")
    write_particles(tmp_path / "ours.star", table, extra={"cryoprobScore": np.arange(len(table))})
    command = ["relion_star_handler", "--i", "ours.star", "--o", "theirs.star"]
    command += ["--check_duplicates", "rlnImageName"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    again, _ = read_quietly(tmp_path / "theirs.star")
    np.testing.assert_allclose(again.angles, table.angles, atol=1e-5)  # RELION writes 9 characters
    np.testing.assert_allclose(again.shift, table.shift, atol=1e-5)
    np.testing.assert_allclose(again.ctf["voltage"], table.ctf["voltage"])
    scores = again.columns.particles.numbers("cryoprobScore")
    np.testing.assert_array_equal(scores, np.arange(len(table)))
    np.testing.assert_allclose(
        again.rotation(), euler_to_matrix(torch.tensor(table.angles)), atol=1e-6
    )
