"""Particle stacks: batches against plain transforms, caches against streams, bad data by name."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from cryoprob.checks import DataWarning, InputError
from cryoprob.fourier.bands import full_band
from cryoprob.fourier.transforms import crop_images, fft2
from cryoprob.geometry.rotations import random_rotations
from cryoprob.io.images import _MAPS_OPEN, ArrayPixels
from cryoprob.io.mrc import StackWriter, open_stack, write_stack
from cryoprob.io.star import write_star
from cryoprob.io.tables import new_table, write_particles
from cryoprob.optics import Optics, ctf
from cryoprob.particles import ParticleStack


def some_optics(n: int) -> Optics:
    defocus = torch.linspace(1e4, 2e4, n, dtype=torch.float64)
    return Optics(defocus, defocus - 300, 0.0 * defocus + 30, *torch.tensor([300, 2.7, 0.1]))


def write_star_of(path: Path, names: list[str], pixel_size: str = "1.5", **columns: list[str]):
    """A STAR file of images by name, with one optics group and a CTF."""
    optics = {"OpticsGroup": "1", "Voltage": "300", "SphericalAberration": "2.7"}
    optics |= {"AmplitudeContrast": "0.1", "ImagePixelSize": pixel_size}
    n = len(names)
    particles = {"ImageName": names, "OpticsGroup": ["1"] * n, "DefocusU": ["15000"] * n}
    particles |= {"DefocusV": ["15000"] * n, "DefocusAngle": ["0"] * n} | columns
    blocks = {"optics": {k: [v] for k, v in optics.items()}, "particles": particles}
    write_star(path, {b: {f"rln{k}": v for k, v in c.items()} for b, c in blocks.items()})


def three_stacks(folder: Path, generator: torch.Generator) -> tuple[Path, Tensor]:
    """Rows that jump between three stacks, and the images that they name."""
    images = torch.randn(3, 5, 8, 8, generator=generator)
    for name, block in zip("abc", images, strict=True):
        write_stack(folder / f"{name}.mrcs", block, 1.5)
    rows = [(2, 4), (0, 0), (1, 3), (0, 1), (0, 2), (2, 0), (1, 1)]
    names = [f"{place + 1}@{'abc'[stack]}.mrcs" for stack, place in rows]
    write_star_of(folder / "x.star", names)
    return folder / "x.star", torch.stack([images[r] for r in rows])


# ---------------------------------------------------------------- what a batch holds


@pytest.mark.parametrize("cache_bytes", [0, 2000, 2**20])
@pytest.mark.parametrize("radius", [0, 2, 3, 4, 8])
def test_batch_is_the_plain_transform(radius: int, cache_bytes: int, generator):
    n, box = 7, 8
    images = torch.randn(n, box, box, generator=generator)
    optics = some_optics(n)
    stack = ParticleStack.from_arrays(images, 1.5, optics, cache_bytes=cache_bytes)
    band = full_band(box).prefix(radius)
    index = torch.tensor([5, 0, 5, 3])
    for _ in range(2):  # the second time from the cache, as far as it reaches
        batch = stack.batch(index, band)
        half = box // 2
        plane = fft2(images[index].double())[:, band.ky + half, band.kx + half]
        # float32 transforms of numbers of order 1
        want = (plane * band.weight).to(torch.complex64)
        torch.testing.assert_close(batch.image, want, rtol=0, atol=5e-6)
        torch.testing.assert_close(
            batch.ctf, ctf(optics[index], band.kx, band.ky, 1.5, box, dtype=torch.float32)
        )
        assert batch.index.equal(index) and batch.total == n and len(batch) == 4
        assert batch.group.equal(torch.zeros(4, dtype=torch.long)) and batch.band is band
        assert batch.optics.defocus_u.equal(optics.defocus_u[index])


@pytest.mark.parametrize("box", [4, 8, 10, 34])
def test_power_is_of_the_whole_plane(box: int, generator):
    images = torch.randn(5, box, box, generator=generator, dtype=torch.float64)
    stack = ParticleStack.from_arrays(images, 1.0)
    power = stack.batch(torch.arange(5), full_band(box).prefix(1), torch.float64).power
    assert power.shape == (5, box // 2 + 2) and power.dtype == torch.float64
    # float64 throughout
    torch.testing.assert_close(power.sum(1), images.square().sum((1, 2)), rtol=1e-13, atol=0)
    k = torch.arange(-(box // 2), box // 2)
    shell = (torch.hypot(k[:, None].double(), k[None].double()) + 0.5).floor().long()
    for s in range(box // 2 + 2):
        ring = shell == s if s <= box // 2 else shell > box // 2
        want = (fft2(images).abs().square() * ring).sum((1, 2))
        torch.testing.assert_close(power[:, s], want)


def test_types_and_no_optics(generator):
    images = torch.randn(3, 8, 8, generator=generator, dtype=torch.float64)
    stack = ParticleStack.from_arrays(images, 1.0)
    band = full_band(8)
    single, double = (
        stack.batch(torch.arange(3), band, t) for t in (torch.float32, torch.float64)
    )
    assert (single.image.dtype, double.image.dtype) == (torch.complex64, torch.complex128)
    torch.testing.assert_close(band.unpack(double.image), images)  # all float64: default tolerance
    assert double.ctf.equal(torch.ones(3, 32 + 2, dtype=torch.float64)) and double.optics is None
    with pytest.raises(InputError, match="box 8"):
        stack.batch(torch.arange(3), full_band(10))


def test_inverted_and_cropped(generator):
    images = torch.randn(4, 12, 12, generator=generator, dtype=torch.float64)
    stack = ParticleStack.from_arrays(images, 2.0, some_optics(4), box=8, invert=True)
    small = -crop_images(images, 8)
    assert (stack.box, stack.pixel_size) == (8, 3.0)
    index = torch.tensor([2, 0])
    torch.testing.assert_close(stack.images(index), small[index].float())
    batch = stack.batch(index, full_band(8), torch.float64)
    torch.testing.assert_close(batch.image, full_band(8).pack(small[index]))
    torch.testing.assert_close(batch.power.sum(1), small[index].square().sum((1, 2)))
    # the frequency of a coefficient is the same in the small box as in the large one
    large = ctf(some_optics(4)[index], full_band(8).kx, full_band(8).ky, 2.0, 12)
    torch.testing.assert_close(batch.ctf, large)
    for box in (7, 14, 0):
        with pytest.raises(InputError, match="up to 12"):
            ParticleStack.from_arrays(images, 2.0, box=box)


def test_subsets_are_views(generator):
    n = 9
    images = torch.randn(n, 8, 8, generator=generator)
    rotation = random_rotations(n, generator)
    shift, group = torch.randn(n, 2, generator=generator), torch.arange(n) % 3
    stack = ParticleStack.from_arrays(images, 1.5, some_optics(n), rotation, shift, group)
    picked = torch.tensor([8, 1, 4, 7])
    for view, rows in [
        (stack.subset(picked), picked),
        (stack.subset(picked).subset(torch.tensor([2, 0])), picked[[2, 0]]),
        (stack.subset(group == 1), torch.tensor([1, 4, 7])),
    ]:
        assert len(view) == len(rows) and view.images(torch.arange(len(rows))).equal(images[rows])
        batch = view.batch(torch.arange(len(rows)), full_band(8).prefix(2))
        whole = stack.batch(rows, full_band(8).prefix(2))
        for name in ("image", "power", "ctf", "group"):
            assert getattr(batch, name).equal(getattr(whole, name)), name
        assert batch.total == len(rows) and batch.index.equal(torch.arange(len(rows)))
        assert view.rotation.equal(rotation[rows].double()) and view.shift.equal(
            shift[rows].double()
        )
        assert view.group_names == ("opticsGroup1", "opticsGroup2", "opticsGroup3")


# ---------------------------------------------------------------- how much is read


class CountingPixels(ArrayPixels):
    """Counts what is read, and how much at once."""

    def read(self, rows: Tensor) -> Tensor:
        self.blocks = [*getattr(self, "blocks", []), len(rows)]
        return super().read(rows)


def test_what_is_cached_is_read_once_and_the_rest_in_blocks(monkeypatch, generator):
    monkeypatch.setattr("cryoprob.particles.ArrayPixels", CountingPixels)
    monkeypatch.setattr("cryoprob.io.store._BLOCK_BYTES", 3 * 4 * 8 * 8)  # three images
    images = torch.randn(10, 8, 8, generator=generator)
    index = torch.randperm(10, generator=generator)

    def blocks(cache_bytes: int, radii: list[int]) -> list[int]:
        stack = ParticleStack.from_arrays(images, 1.0, cache_bytes=cache_bytes)
        for radius in radii:
            stack.batch(index, full_band(8).prefix(radius))
        return stack._store.pixels.blocks

    once = [3, 3, 3, 1]
    assert blocks(2**20, [2, 8, 3, 8]) == once
    assert blocks(0, [2, 2]) == once * 2
    # room for the coefficients up to shell 2, not for all: 8 bytes each, 6 shells, 1 flag
    room = 10 * (8 * len(full_band(8).prefix(2)) + 8 * 6 + 1)
    assert blocks(room, [2, 1, 2]) == once
    assert blocks(room, [2, 3, 2]) == once * 2
    assert blocks(room - 1, [2, 1, 1]) == once * 2  # only shell 1 fits


def test_the_cache_stays_in_its_budget(generator):
    images = torch.randn(50, 16, 16, generator=generator)
    for budget in (0, 5_000, 20_000, 60_000, 10**6):
        stack = ParticleStack.from_arrays(images, 1.0, cache_bytes=budget)
        for dtype in (torch.float32, torch.float64):
            stack.batch(torch.arange(50), full_band(16).prefix(1), dtype)
        assert sum(cache.nbytes for cache in stack._store._caches.values()) <= budget


def test_large_stacks_are_mapped_not_loaded(tmp_path: Path, monkeypatch):
    with StackWriter(tmp_path / "s.mrcs", 1.0) as writer:
        for i in range(50):
            writer.write(torch.full((40, 16, 16), float(i)) + torch.eye(16))
    write_star_of(tmp_path / "x.star", [f"{i}@s.mrcs" for i in range(1, 2001)], "1.0")
    stack = ParticleStack.read(tmp_path / "x.star")
    assert isinstance(stack._store.pixels._map(0), np.memmap)
    image = stack.images([1999])[0]
    assert image.equal(49 + torch.eye(16))
    assert int(stack._store._checked.sum()) == 1  # the other pixels were not touched


# ---------------------------------------------------------------- stacks on disk


def test_rows_that_jump_between_stacks(tmp_path: Path, generator):
    path, images = three_stacks(tmp_path, generator)
    stack = ParticleStack.read(path)
    assert stack.images(torch.arange(7)).equal(images)
    index = torch.tensor([6, 2, 2, 0])
    assert stack.images(index).equal(images[index])
    assert stack.images(torch.tensor([], dtype=torch.long)).shape == (0, 8, 8)
    batch = stack.batch(index, full_band(8))
    torch.testing.assert_close(full_band(8).unpack(batch.image), images[index])
    assert stack.image_names(index)[0] == "000002@b.mrcs"
    assert stack.table.box == 8 and len(stack.subset(index).table) == 4


def test_many_stacks_hold_few_maps_open(tmp_path: Path, generator):
    n = _MAPS_OPEN + 10
    images = torch.randn(n, 4, 4, generator=generator)
    for i in range(n):
        write_stack(tmp_path / f"{i}.mrcs", images[i : i + 1], 1.5)
    write_star_of(tmp_path / "x.star", [f"1@{i}.mrcs" for i in range(n)])
    stack = ParticleStack.read(tmp_path / "x.star")
    for _ in range(2):
        assert stack.images(torch.arange(n)).equal(images)
    assert len(stack._store.pixels._maps) == _MAPS_OPEN


@pytest.mark.parametrize(
    ("star", "stack", "options"),
    [
        ("sample_particles_relion30.star", "sample.mrcs", {}),
        ("relion31.star", "relion31.mrcs", {"pixel_size": 2.806}),
        ("empiar_10076_7.star", "empiar_10076_7.mrc", {}),
        (
            "sta_testing_bin8.star",
            "ay19102021_L3_position6_ribo_it09_bin8_1.82A.mrcs",
            {"pixel_size": 14.56, "folder": "."},
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*B factors below 0")
def test_real_stacks(star: str, stack: str, options: dict[str, object], data: Path):
    folder = data / "experimental"
    if "folder" in options:
        options = options | {"folder": folder}
    particles = ParticleStack.read(folder / star, **options)
    rows = csv.DictReader((folder / "expected.csv").read_text().splitlines())
    want = [row for row in rows if row["file"] == stack][: len(particles)]
    images = particles.images(torch.arange(len(particles))).double()
    got = [
        images.mean((1, 2)),
        images.std((1, 2), correction=0),
        images[:, 0, 0],
        images[:, -1, -1],
    ]
    for values, name in zip(got, ["mean", "sd", "first_value", "last_value"], strict=True):
        np.testing.assert_allclose(values, [float(r[name]) for r in want], rtol=1e-5, atol=1e-7)
    assert particles.box == int(want[0]["box"])
    assert particles.pixel_size == pytest.approx(float(want[0]["pixel_size_A"]), abs=1e-6)


def test_header_against_table(data: Path, tmp_path: Path):
    folder = data / "experimental"
    with pytest.warns(DataWarning, match="1 A a pixel, the table 2.806 A; the table's is taken"):
        stack = ParticleStack.read(folder / "relion31.star")
    assert stack.pixel_size == 2.806 and len(stack.notes) == 1
    # the header's voxel is 1 x 12 x 12 A, the table says 12
    (tmp_path / "000000.mrcs").symlink_to(data / "metadata" / "anisotropic_stack.mrcs")
    with pytest.warns(DataWarning, match="1 A a pixel, the table 12 A"):
        stack = ParticleStack.read(
            data / "metadata" / "relion31_particles_first.star", folder=tmp_path
        )
    values, _ = open_stack(tmp_path / "000000.mrcs")
    assert stack.pixel_size == 12 and stack.images([1])[0].equal(torch.tensor(values[1]))


# ---------------------------------------------------------------- bad data, by name


def test_missing_and_short_stacks_and_wrong_images(tmp_path: Path):
    write_star_of(tmp_path / "x.star", ["1@a.mrcs", "2@b.mrcs"])
    write_stack(tmp_path / "a.mrcs", torch.randn(2, 4, 4), 1.5)
    with pytest.raises(InputError, match=r"line 26 \(000002@b.mrcs\).*stack b.mrcs.*no such file"):
        ParticleStack.read(tmp_path / "x.star")
    write_stack(tmp_path / "b.mrcs", torch.randn(1, 4, 4), 1.5)
    with pytest.raises(InputError, match=r"line 26 .*from 1 to 1 in .*b.mrcs, got 2"):
        ParticleStack.read(tmp_path / "x.star")
    write_stack(tmp_path / "b.mrcs", torch.randn(2, 6, 6), 1.5)
    with pytest.raises(InputError, match="4 pixels, got 6 in .*b.mrcs"):
        ParticleStack.read(tmp_path / "x.star")
    write_stack(tmp_path / "b.mrcs", torch.randn(2, 4, 4), 1.5)
    assert len(ParticleStack.read(tmp_path / "x.star")) == 2
    whole = (tmp_path / "b.mrcs").read_bytes()
    (tmp_path / "b.mrcs").write_bytes(whole[:-1])
    with pytest.raises(InputError, match="b.mrcs.*2 images.*1 whole"):
        ParticleStack.read(tmp_path / "x.star")


@pytest.mark.parametrize("touch", ["images", "batch"])
def test_bad_pixels_are_named_at_the_first_touch(touch: str, tmp_path: Path, generator):
    images = torch.randn(12, 4, 4, generator=generator)
    images[3, 1, 2], images[4, 0, 0], images[6:, :, :] = torch.nan, -torch.inf, 0.25
    write_stack(tmp_path / "a.mrcs", images, 1.5)
    write_star_of(tmp_path / "x.star", [f"{i}@a.mrcs" for i in range(1, 13)])
    stack = ParticleStack.read(tmp_path / "x.star")
    ask = stack.images if touch == "images" else lambda rows: stack.batch(rows, full_band(4))
    ask(torch.tensor([0, 1, 2, 5]))
    with pytest.raises(InputError, match="000004@a.mrcs, 000005@a.mrcs: .*NaN"):
        ask(torch.tensor([0, 3, 4]))
    with pytest.raises(InputError, match="000007@a.mrcs, .*000011@a.mrcs and 1 more.* equal"):
        ask(torch.arange(5, 12))
    report = stack.check_all()
    assert report.not_finite == ("000004@a.mrcs", "000005@a.mrcs")
    assert report.constant == tuple(f"{i:06d}@a.mrcs" for i in range(7, 13))
    good = images[[0, 1, 2, 5]].double()
    assert report.mean == pytest.approx(float(good.mean()))
    assert report.sd == pytest.approx(float(good.std(correction=0)))
    assert report.disk_bytes == (tmp_path / "a.mrcs").stat().st_size
    assert (report.n, report.box, report.pixel_size) == (12, 4, 1.5)
    assert report.groups == {"opticsGroup1": 12} and report.absent == ("rotation", "shift")


def test_pixel_sizes_that_differ_or_are_absent(tmp_path: Path, data: Path):
    write_stack(tmp_path / "a.mrcs", torch.randn(2, 4, 4), 1.5)
    names = ["1@a.mrcs", "2@a.mrcs"]
    write_star_of(tmp_path / "x.star", names, ImagePixelSize=["1.5", "1.6"])
    with pytest.raises(InputError, match="one for all optics groups, got 1.*A in opticsGroup1"):
        ParticleStack.read(tmp_path / "x.star")
    assert ParticleStack.read(tmp_path / "x.star", pixel_size=1.55).pixel_size == 1.55
    write_star(tmp_path / "y.star", {"particles": {"rlnImageName": names}})
    with pytest.raises(InputError, match=r"none in the table.*says 1.5 A"):
        ParticleStack.read(tmp_path / "y.star", need=())
    with pytest.raises(InputError, match="_rlnDefocusU"):
        ParticleStack.read(tmp_path / "y.star", pixel_size=1.5)
    stack = ParticleStack.read(tmp_path / "y.star", pixel_size=1.5, need=())
    assert (stack.optics, stack.rotation, stack.shift) == (None, None, None)
    with pytest.raises(InputError, match="positive"):
        ParticleStack.read(tmp_path / "y.star", pixel_size=-1.0, need=())


def test_groups_of_a_file(tmp_path: Path, generator):
    write_stack(tmp_path / "a.mrcs", torch.randn(4, 4, 4, generator=generator), 1.5)
    group = torch.tensor([1, 0, 1, 2])
    table = new_table(
        tmp_path / "a.mrcs",
        4,
        1.5,
        optics=some_optics(4),
        group=group,
        group_names=("one", "two", "three"),
    )
    write_particles(tmp_path / "x.star", table)
    stack = ParticleStack.read(tmp_path / "x.star")
    assert stack.group.equal(group) and stack.group_names == ("one", "two", "three")
    assert stack.check_all().groups == {"one": 1, "two": 2, "three": 1}
    assert stack.batch(torch.tensor([3, 0]), full_band(4)).group.tolist() == [2, 1]


def test_arrays_that_do_not_fit(generator):
    images = torch.randn(3, 8, 8, generator=generator)
    make = ParticleStack.from_arrays
    for wrong, words in [
        (lambda: make(images[:, :, :6], 1.0), "images"),
        (lambda: make(images[:, :7, :7], 1.0), "even D"),
        (lambda: make(images[0], 1.0), "images"),
        (lambda: make(images, 0.0), "pixel size"),
        (lambda: make(images, 1.0, some_optics(2)), "optics: expected 3"),
        (lambda: make(images, 1.0, rotation=2 * torch.eye(3).expand(3, 3, 3)), "rotation"),
        (lambda: make(images, 1.0, shift=torch.zeros(2, 2)), "shift: expected 3"),
        (lambda: make(images, 1.0, group=torch.zeros(4)), "group: expected 3"),
    ]:
        with pytest.raises(InputError, match=words):
            wrong()
    integers = torch.arange(3 * 64).reshape(3, 8, 8)
    assert make(integers, 1.0).images([1]).equal(integers[[1]].float())
    images[2] = 7
    with pytest.raises(InputError, match=r"images\[2\]"):
        make(images, 1.0).images([0, 2])
