"""MRC files: foreign ones give their expected values or error; ours have right headers."""

import csv
import io
import os
import shutil
import struct
import subprocess
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch

from cryoprob.checks import InputError, OutputError
from cryoprob.io.mrc import (
    StackWriter,
    open_stack,
    read_header,
    read_map,
    read_mrc,
    write_map,
    write_stack,
)

DATA = Path(
    os.environ.get("CRYOPROB_TEST_DATA", Path(__file__).resolve().parents[4] / "shared" / "data")
)
ERRORS = {  # words that the error of each bad file must hold
    "header_promises_more.mrcs": ["11029 images", "got 66560 bytes (1 whole"],
    "noncubic_crystal.map": ["cubic", "73 x 43 x 25"],
    "noncubic.mrc": ["cubic", "16 x 16 x 128"],
    "git_lfs_pointer.mrc": ["git-lfs pointer", "git lfs pull"],
    "odd_box.mrc": ["even", "65 x 65 x 65", "--new_box 66"],
}


def mrc_cases() -> list[object]:
    """The rows of mrc.csv, or one skipped case."""
    path = DATA / "metadata" / "mrc.csv"
    if not path.exists():
        return [pytest.param({}, marks=pytest.mark.skip(f"no {path}: set CRYOPROB_TEST_DATA"))]
    return [pytest.param(r, id=r["file"]) for r in csv.DictReader(path.read_text().splitlines())]


@pytest.mark.parametrize("case", mrc_cases())
def test_foreign_files_give_their_expected_values_or_error(case: dict[str, str]):
    path = DATA / "metadata" / case["file"]
    if case["outcome"] == "error":
        with pytest.raises(InputError) as caught:
            read_map(path)
        assert all(word in str(caught.value) for word in [path.name, *ERRORS[case["file"]]])
        return
    values, header = read_mrc(path)
    assert "x".join(map(str, values.shape)) == case["shape_zyx"]
    assert str(values.dtype) == case["dtype"]
    for got, axis in zip(header.voxel_size, "xyz", strict=True):
        assert got == pytest.approx(float(case[f"voxel_{axis}"]), abs=5e-6)  # five decimals there
    numbers = values.astype(np.float64)
    got = [numbers.mean(), numbers.std(), numbers.flat[0], numbers.flat[-1]]
    want = [float(case[name]) for name in ("mean", "sd", "first", "last")]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-9)  # six digits there
    if ".map" in path.name:
        density, size = read_map(path)
        np.testing.assert_array_equal(density.numpy(), values.astype(np.float32))
        assert size == pytest.approx(float(case["voxel_x"]), abs=5e-6)
    else:
        stack, _ = open_stack(path)
        np.testing.assert_array_equal(stack, values.reshape(-1, *values.shape[-2:]))


def test_a_map_reads_as_another_program_reads_it(data: Path):
    path = data / "relion-70s" / "truth.mrc"
    density, size = read_map(path)
    np.testing.assert_array_equal(density.numpy(), mrcfile.read(path))
    assert (density.dtype, size) == (torch.float32, 5.0)


# ---------------------------------------------------------------- headers that we write


def integers(raw: bytes, *words: int) -> list[int]:
    """Header words (counted from 1, as the format's page does) as integers."""
    return [struct.unpack("<i", raw[4 * w - 4 : 4 * w])[0] for w in words]


def floats(raw: bytes, *words: int) -> list[float]:
    return [struct.unpack("<f", raw[4 * w - 4 : 4 * w])[0] for w in words]


@pytest.mark.parametrize(("kind", "mz", "space_group"), [("map", 6, 1), ("stack", 1, 0)])
def test_header_words(kind: str, mz: int, space_group: int, tmp_path: Path, generator):
    values = torch.randn(6, 6, 6, generator=generator)
    (write_map if kind == "map" else write_stack)(tmp_path / "x.mrc", values, 1.5)
    raw = (tmp_path / "x.mrc").read_bytes()
    assert len(raw) == 1024 + 4 * 6**3
    assert integers(raw, 1, 2, 3, 4) == [6, 6, 6, 2]  # nx ny nz mode
    assert integers(raw, 8, 9, 10) == [6, 6, mz]
    assert floats(raw, 11, 12, 13) == [9.0, 9.0, 1.5 * mz]  # cell
    assert floats(raw, 14, 15, 16) == [90.0] * 3
    assert integers(raw, 17, 18, 19, 23, 24) == [1, 2, 3, space_group, 0]
    assert raw[208:212] == b"MAP " and raw[212:214] == b"DD"
    statistics = [values.min(), values.max(), values.mean(), values.std(correction=0)]
    assert floats(raw, 20, 21, 22, 55) == pytest.approx([float(v) for v in statistics], rel=1e-5)
    assert integers(raw, 56) == [1] and raw[224:304].rstrip(b"\0") == b"cryoprob"
    assert raw[304:1024].strip(b"\0") == b""
    assert raw[1024:] == values.numpy().tobytes()
    complaints = io.StringIO()
    assert mrcfile.validate(tmp_path / "x.mrc", print_file=complaints), complaints.getvalue()


def test_round_trips_and_same_bytes(tmp_path: Path, generator):
    density = torch.randn(8, 8, 8, generator=generator)
    images = torch.randn(7, 8, 8, generator=generator)
    write_map(tmp_path / "m.mrc", density, 2.25)
    back, size = read_map(tmp_path / "m.mrc")
    assert back.equal(density) and size == 2.25
    write_stack(tmp_path / "a.mrcs", images, 2.25)
    stack, header = open_stack(tmp_path / "a.mrcs")
    assert isinstance(stack, np.memmap) and torch.from_numpy(np.array(stack)).equal(images)
    assert header.voxel_size == (2.25, 2.25, 2.25)
    with StackWriter(tmp_path / "b.mrcs", 2.25) as writer:
        for part in (images[:3], images[3], images[4:]):
            writer.write(part.double())
    one, other = ((tmp_path / name).read_bytes() for name in ("a.mrcs", "b.mrcs"))
    assert one[1024:] == other[1024:] and one[:76] == other[:76]
    # sums of blocks round differently from the sum of all
    assert floats(one, 20, 21, 22, 55) == pytest.approx(floats(other, 20, 21, 22, 55), rel=1e-6)
    write_stack(tmp_path / "c.mrcs", images, 2.25)
    assert (tmp_path / "c.mrcs").read_bytes() == one


def test_an_interrupted_stack_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "s.mrcs"
    write_stack(path, torch.zeros(1, 4, 4), 1.0)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), StackWriter(path, 1.0) as writer:
        writer.write(torch.ones(3, 4, 4))
        raise KeyboardInterrupt
    with pytest.raises(InputError, match="4 pixels"), StackWriter(path, 1.0) as writer:
        writer.write(torch.ones(3, 4, 4))
        writer.write(torch.ones(3, 6, 6))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(OutputError), StackWriter(tmp_path / "no" / "s.mrcs", 1.0):
        pass
    with pytest.raises(InputError, match="a cube"):
        write_map(path, torch.zeros(4, 4, 6), 1.0)


# ---------------------------------------------------------------- other writers' files


def foreign(path: Path, values: np.ndarray, order: str = "<", **words: float) -> Path:
    """An MRC file by hand: any type and byte order; words such as w8=mx override."""
    modes = {"i1": 0, "i2": 1, "f4": 2, "u2": 6, "f2": 12, "c8": 4}
    nz, ny, nx = values.shape
    header = bytearray(1024)
    mode = modes[values.dtype.str[1:]]
    extended = int(words.pop("extended", 0))
    put = {1: nx, 2: ny, 3: nz, 4: mode, 8: nx, 9: ny, 10: nz, 17: 1, 18: 2, 19: 3, 24: extended}
    put |= {11: float(nx), 12: float(ny), 13: float(nz), 14: 90.0, 15: 90.0, 16: 90.0}
    put |= {int(key[1:]): value for key, value in words.items()}
    for word, value in put.items():
        kind = "f" if isinstance(value, float) else "i"
        header[4 * word - 4 : 4 * word] = struct.pack(order + kind, value)
    header[208:214] = b"MAP " + (b"DD" if order == "<" else b"\x11\x11")
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    path.write_bytes(bytes(header) + bytes(extended) + data)
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", ["i1", "i2", "u2", "f2", "f4"])
def test_types_byte_orders_and_extended_headers(kind: str, order: str, tmp_path: Path):
    values = np.arange(64).reshape(4, 4, 4).astype(kind)
    path = foreign(tmp_path / "x.mrc", values, order, extended=80)
    stack, header = open_stack(path)
    np.testing.assert_array_equal(stack, values)
    density, size = read_map(path)
    np.testing.assert_array_equal(density.numpy(), values.astype(np.float32))
    assert (header.offset, size) == (1104, 1.0)


def test_axes_in_another_order_are_put_right(tmp_path: Path):
    values = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
    # columns run along z, rows along x, sections along y: the file holds [y, x, z]
    path = foreign(tmp_path / "x.mrc", values.transpose(1, 2, 0).copy(), w17=3, w18=1, w19=2)
    np.testing.assert_array_equal(read_map(path)[0].numpy(), values)


def test_maps_that_cannot_be_used(tmp_path: Path):
    good = np.random.default_rng(1).standard_normal((4, 4, 4)).astype(np.float32)
    bad = good.copy()
    bad[1, 2, 3], bad[0, 0, 0] = np.nan, np.inf
    cases = {
        "2 of 64": foreign(tmp_path / "nan.mrc", bad),
        "everywhere": foreign(tmp_path / "flat.mrc", np.ones_like(good)),
        "positive": foreign(tmp_path / "zero.mrc", good, w11=0.0),
        "the same along": foreign(tmp_path / "uneven.mrc", good, w11=5.0),
        "right angles": foreign(tmp_path / "skew.mrc", good, w15=94.0),
        "complex": foreign(tmp_path / "complex.mrc", good.astype(np.complex64)),
    }
    for words, path in cases.items():
        with pytest.raises(InputError, match=words) as caught:
            read_map(path)
        assert path.name in str(caught.value)
    assert read_map(cases["positive"], pixel_size=1.25)[1] == 1.25
    assert read_map(foreign(tmp_path / "good.mrc", good), pixel_size=1.25)[1] == 1.0


def test_files_that_are_no_mrc_files(tmp_path: Path):
    whole = foreign(tmp_path / "whole.mrc", np.ones((3, 4, 4), np.float32)).read_bytes()
    cases = {
        "missing.mrc": (None, "no such file"),
        "empty.mrc": (b"", "empty"),
        "short.mrc": (whole[:500], "MRC"),
        "text.mrc": (b"some text\n" * 200, "MRC"),
        "cut.mrc": (whole[:-1], r"1216 bytes.*got 1215 bytes \(2 whole"),
        "broken.mrc.gz": (b"\x1f\x8b" + whole, "MRC"),
    }
    for name, (content, words) in cases.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=words) as caught:
            read_header(tmp_path / name)
        assert name in str(caught.value)
    with pytest.raises(InputError, match="a folder"):
        read_header(tmp_path)


def test_stacks_that_cannot_be_used(tmp_path: Path, data: Path):
    with pytest.raises(InputError, match="even number.*3 images of 5 x 5.*--new_box 4"):
        open_stack(foreign(tmp_path / "odd.mrcs", np.ones((3, 5, 5), np.float32)))
    with pytest.raises(InputError, match="square.*3 images of 6 x 4"):
        open_stack(foreign(tmp_path / "oblong.mrcs", np.ones((3, 4, 6), np.float32)))
    with pytest.raises(InputError, match="Decompress"):
        open_stack(data / "metadata" / "volume_gz.map.gz")


@pytest.mark.relion
def test_relion_reads_our_files(tmp_path: Path, generator):
    if shutil.which("relion_image_handler") is None:
        pytest.skip("RELION (relion_image_handler) is not on the PATH")
    images = torch.randn(3, 16, 16, generator=generator)
    write_stack(tmp_path / "s.mrcs", images, 1.5)
    write_map(tmp_path / "m.mrc", torch.randn(16, 16, 16, generator=generator), 2.5)
    said = {}
    for name in ("s.mrcs", "m.mrc"):
        command = ["relion_image_handler", "--i", name, "--stats"]
        run = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
        said[name] = [line for line in run.stdout.splitlines() if "angpix" in line]
    assert len(said["s.mrcs"]) == 3
    for line, image in zip(said["s.mrcs"], images, strict=True):
        assert "16 x 16 x 1 x 1" in line and "angpix = 1.5" in line
        printed = float(line.split("avg=")[1].split()[0])
        assert printed == pytest.approx(float(image.mean()), rel=1e-4)  # six digits printed
    assert "16 x 16 x 16 x 1" in said["m.mrc"][0] and "angpix = 2.5" in said["m.mrc"][0]
