"""Particle stacks: images on disk or in memory, given out as batches of packed coefficients."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cryoprob.checks import InputError, require, warn
from cryoprob.fourier.bands import Band
from cryoprob.geometry.rotations import check_rotations
from cryoprob.io.images import ArrayPixels, StackPixels
from cryoprob.io.store import PixelStore
from cryoprob.io.tables import ParticleTable, read_particles
from cryoprob.optics import Optics, check_optics, ctf
from cryoprob.types import Coefficients, Images, PathType, Rotations, Shifts

__all__ = ["Batch", "ParticleStack", "StackReport"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some particles of a stack in one band.

    Attributes
    ----------
    image
        Packed coefficients (:class:`~cryoprob.fourier.bands.Band`), [n, M] complex.
    power
        Sum of squares of every shell of the whole plane, [n, S] float64; its sum is the sum of
        squared pixels, whatever the band.
    optics
        The particles' optics, or None.
    ctf
        At the frequencies of the band, [n, M]; ones without optics.
    group, index
        Optics group, and place in the stack, [n].
    total
        Particles of the stack.
    band
        The frequencies.
    """

    image: Coefficients
    power: Tensor
    optics: Optics | None
    ctf: Tensor
    group: Tensor
    index: Tensor
    total: int
    band: Band

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class StackReport:
    """What a look at every pixel found.

    Attributes
    ----------
    n, box, pixel_size
        Images, pixels along a side, A.
    groups
        Images of each optics group.
    absent
        Which of CTF, rotation and shift are not known.
    notes
        What is odd, in words.
    disk_bytes
        Size of the stacks.
    not_finite, constant
        Images with NaN or infinite pixels, and images of one value only.
    mean, sd
        Of all pixels of the other images.
    """

    n: int
    box: int
    pixel_size: float
    groups: dict[str, int]
    absent: tuple[str, ...]
    notes: tuple[str, ...]
    disk_bytes: int
    not_finite: tuple[str, ...]
    constant: tuple[str, ...]
    mean: float
    sd: float


@dataclass(frozen=True, eq=False)
class ParticleStack:
    """Particles, with what is known of them; made by :meth:`read` or :meth:`from_arrays`.

    Attributes
    ----------
    box, pixel_size
        Pixels along a side and A a pixel, after the crop.
    optics
        [N], float64, or None.
    group, group_names
        Index [N] into the optics groups.
    rotation, shift
        Known poses [N, 3, 3] and [N, 2] (A), float64, or None.
    table
        The rows of the file, or None.
    notes
        What is odd about the stack, in words; it was warned about.
    """

    box: int
    pixel_size: float
    optics: Optics | None
    group: Tensor
    group_names: tuple[str, ...]
    rotation: Rotations | None
    shift: Shifts | None
    table: ParticleTable | None
    notes: tuple[str, ...]
    _store: PixelStore
    _rows: Tensor

    @classmethod
    def read(
        cls,
        path: PathType,
        *,
        box: int | None = None,
        invert: bool = False,
        pixel_size: float | None = None,
        need: Collection[str] = ("ctf",),
        cache_bytes: int = 2**30,
        folder: PathType | None = None,
    ) -> "ParticleStack":
        """Open the particles of a STAR file; pixels are read when asked for.

        Parameters
        ----------
        box
            Crop to this box in Fourier space; the pixel size grows.
        invert
            For particles that are dark on white.
        pixel_size
            A, instead of the file's.
        need
            What must be known, of ``"ctf"``, ``"rotation"``, ``"shift"``.
        cache_bytes
            Memory for coefficients: the largest band for which all fit is kept, larger ones are
            read anew each time.
        folder
            Where to look for the stacks first, instead of the folder of the file.

        Raises
        ------
        InputError
            As :func:`~cryoprob.io.tables.read_particles`; if a stack is missing, cut short or has
            too few images, boxes or pixel sizes differ, or the pixel size is not known.
        """
        table = read_particles(path, need=need, folder=folder)
        if pixel_size is not None:
            table = table.with_pixel_size(pixel_size)
        pixels = StackPixels(table)
        size = _one_pixel_size(table, pixels)
        notes = [] if pixel_size is not None else _voxel_notes(table, pixels, size)
        for note in notes:
            warn(note)
        return cls._make(
            PixelStore(pixels, _checked_box(box, pixels.box), invert, cache_bytes),
            size,
            optics=table.optics(),
            group=torch.from_numpy(table.group),
            group_names=table.group_names,
            rotation=table.rotation(),
            shift=table.displacement(),
            table=replace(table, box=pixels.box),
            notes=(*table.notes, *notes),
        )

    @classmethod
    def from_arrays(
        cls,
        images: Images,
        pixel_size: float,
        optics: Optics | None = None,
        rotation: Rotations | None = None,
        shift: Shifts | None = None,
        group: Tensor | None = None,
        *,
        group_names: Sequence[str] | None = None,
        box: int | None = None,
        invert: bool = False,
        cache_bytes: int = 2**30,
    ) -> "ParticleStack":
        """A stack of images [N, D, D] in memory; other arguments as the attributes.

        Raises
        ------
        InputError
            If shapes do not fit, the box is odd, or the optics or rotations are impossible.
        """
        pixels, n = ArrayPixels(images), len(images)
        known = {"optics": optics, "rotation": rotation, "shift": shift, "group": group}
        for name, value in known.items():
            got = f"{0 if value is None else len(value)}"
            require(value is None or len(value) == n, name, expected=f"{n}, one an image", got=got)
        require(pixel_size > 0, "pixel size", expected="a positive number", got=f"{pixel_size}")
        if optics is not None:
            check_optics(optics, "optics")
        if rotation is not None:
            check_rotations(rotation)
        group = torch.zeros(n, dtype=torch.long) if group is None else group.cpu().long()
        count = int(group.max()) + 1 if n else 1
        return cls._make(
            PixelStore(pixels, _checked_box(box, pixels.box), invert, cache_bytes),
            pixel_size,
            optics=None if optics is None else optics.to(dtype=torch.float64, device="cpu"),
            group=group,
            group_names=tuple(group_names or (f"opticsGroup{g + 1}" for g in range(count))),
            rotation=None if rotation is None else rotation.cpu().double(),
            shift=None if shift is None else shift.cpu().double(),
            table=None,
            notes=(),
        )

    @classmethod
    def _make(cls, store: PixelStore, pixel_size: float, **known: object) -> "ParticleStack":
        size = pixel_size * store.pixels.box / store.box
        rows = torch.arange(len(store.pixels))
        return cls(store.box, size, **known, _store=store, _rows=rows)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._rows)

    def subset(self, index: Tensor) -> "ParticleStack":
        """A view of some particles (a long index or a mask [N]); pixels and cache are shared."""
        picked = torch.arange(len(self))[index.cpu()]
        return replace(
            self,
            optics=None if self.optics is None else self.optics[picked],
            group=self.group[picked],
            rotation=None if self.rotation is None else self.rotation[picked],
            shift=None if self.shift is None else self.shift[picked],
            table=None if self.table is None else self.table[picked.numpy()],
            _rows=self._rows[picked],
        )

    def images(self, index: Tensor | Sequence[int]) -> Images:
        """Images [n, D, D] in float32, inverted and cropped.

        Raises
        ------
        InputError
            If pixels are NaN or infinite, or all of an image's are equal; names the images.
        """
        return self._store.images(self._rows[torch.as_tensor(index).cpu()])

    def batch(
        self,
        index: Tensor,
        band: Band,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Batch:
        """The particles of ``index`` [n] in a band of this stack's box; see :class:`Batch`.

        Raises
        ------
        InputError
            As :meth:`images`, or if the band belongs to another box.
        """
        got = f"a band of box {band.box}"
        require(band.box == self.box, "band", expected=f"box {self.box}", got=got)
        index = torch.as_tensor(index).cpu()
        image, power = self._store.coefficients(self._rows[index], band, dtype)
        optics = None if self.optics is None else self.optics[index].to(device=device)
        transfer = torch.ones(image.shape, dtype=dtype, device=device)
        if optics is not None:
            transfer = ctf(optics, band.kx, band.ky, self.pixel_size, self.box, dtype=dtype)
        return Batch(
            image=image.to(device),
            power=power.to(device),
            optics=optics,
            ctf=transfer,
            group=self.group[index].to(device),
            index=index.to(device),
            total=len(self),
            band=band,
        )

    def check_all(self) -> StackReport:
        """Look at every pixel and report, without an error."""
        scan = self._store.scan(self._rows)
        good = scan.finite & ~scan.constant
        known = {"CTF": self.optics, "rotation": self.rotation, "shift": self.shift}
        counts = torch.bincount(self.group, minlength=len(self.group_names)).tolist()
        mean = scan.mean[good].mean()
        return StackReport(
            n=len(self),
            box=self.box,
            pixel_size=self.pixel_size,
            groups=dict(zip(self.group_names, counts, strict=True)),
            absent=tuple(name for name, value in known.items() if value is None),
            notes=self.notes,
            disk_bytes=self._store.pixels.disk_bytes(),
            not_finite=self._names(~scan.finite),
            constant=self._names(scan.constant),
            mean=float(mean),
            sd=float((scan.square[good].mean() - mean**2).clamp(min=0).sqrt()),
        )

    def image_names(self, index: Tensor | Sequence[int]) -> list[str]:
        """What a user calls some images (``000001@stack.mrcs``)."""
        rows = self._rows[torch.as_tensor(index, dtype=torch.long).cpu()]
        return [self._store.pixels.name(row) for row in rows.tolist()]

    def _names(self, mask: Tensor) -> tuple[str, ...]:
        return tuple(self.image_names(mask.nonzero()[:, 0]))


def _checked_box(box: int | None, whole: int) -> int:
    """The box to crop to."""
    good = box is None or (0 < box <= whole and box % 2 == 0)
    require(good, "box", expected=f"an even number up to {whole}", got=f"{box}")
    return whole if box is None else box


def _one_pixel_size(table: ParticleTable, pixels: StackPixels) -> float:
    """The one pixel size of all rows, A."""
    size, path = table.pixel_size, table.path
    if np.isnan(size).any():
        header = next(iter(pixels.headers.values()))
        remedy = (
            f"Give the pixel size; the header of {header.path} says {header.voxel_size[0]:g} A."
        )
        where = f"{path}, pixel size"
        raise InputError(where, expected="a pixel size", got="none in the table", remedy=remedy)
    if size.max() - size.min() > 1e-4 * size.min():
        seen = {table.group_names[g]: s for g, s in zip(table.group, size, strict=True)}
        got = ", ".join(f"{s:g} A in {name}" for name, s in seen.items())
        remedy = "Rescale the stacks to one pixel size, fit the groups apart, or give one size."
        where = f"{path}, pixel size"
        raise InputError(where, expected="one for all optics groups", got=got, remedy=remedy)
    return float(size[0])


def _voxel_notes(table: ParticleTable, pixels: StackPixels, size: float) -> list[str]:
    """A note on the first header whose voxel is not the table's pixel (to 1 %)."""
    headers = [h for h in pixels.headers.values() if h.voxel_size[0] > 0]
    odd = [h for h in headers if abs(h.voxel_size[0] / size - 1) > 0.01]
    if not odd:
        return []
    more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
    says = f"the header of {odd[0].path}{more} says {odd[0].voxel_size[0]:g} A a pixel"
    return [f"{table.path}: {says}, the table {size:g} A; the table's is taken."]
