"""A neural network from a frequency and a conformation to a complex Fourier coefficient."""

from math import pi, prod, sqrt

import torch
from pyro.distributions import Normal, TorchDistribution
from torch import Tensor

from cryoprob.checks import require
from cryoprob.fourier.bands import Band
from cryoprob.models.volumes.base import Volume
from cryoprob.models.volumes.batches import checked, each_map, in_a_row
from cryoprob.models.volumes.parity_layers import parity_layers
from cryoprob.types import Coefficients, Maps, Rotations

__all__ = ["ENCODINGS", "CoordinateNetwork"]

ENCODINGS = ("gaussian", "geometric")
"""Random waves, or waves of geometric lengths along the six axes of an icosahedron."""

_AT_ONCE = 8192
"""Lattice points of a map that are evaluated together."""


class CoordinateNetwork(Volume):
    """``F(k, z)``: residual layers on even waves of k, whose coefficients are all the weights [P].

    With waves f_j, ``h = layers(cos(f . k), z)`` is even in k, and so are numbers c_j and s_j that
    are affine in h: the real part ``sum_j c_j cos(f_j . k)`` is even, the imaginary part
    ``sum_j s_j sin(f_j . k)`` odd. So ``F(-k) = conj F(k)`` and the map is real for all weights, F
    is continuous everywhere (a network that is asked on one side of a plane only has a seam
    there), and nothing is evaluated twice. Even waves that share axes would not tell k from its
    mirror images; random ones do, and so do the icosahedron's six axes (their squares span the
    symmetric matrices, hence ``k k^T``).

    Parameters
    ----------
    box
        Voxels along a side, even.
    size
        Numbers of the conformation; 0 for one map.
    generator
        Draws the waves of the Gaussian encoding, and the weights by which the scale is set.
    width, layers
        Hidden units; residual layers after the first one.
    encoding
        One of :data:`ENCODINGS`, 3 (D / 2) waves either way. Gaussian: sd ``bandwidth * D / 2``
        radians per cycle per voxel; geometric: lengths 2/D to 1.
    power
        Mean of ``|F_k|^2`` of the unitary transform of a slice, per shell [S] or a number: that of
        the data makes fresh weights give slices as bright as they are.
    prior_width
        Standard deviation of the prior of a weight, over that of its start.
    precision
        Type of the factors of the matrix products, if not that of the numbers. bfloat16 is five
        times as fast as float32 where a processor has it (0.4 % of a slice is rounded off).
    radius
        Largest shell that explains the images; default and maximum ``box // 2 - 1``.

    Notes
    -----
    papers: cryoDRGN (Zhong 2021; layers, widths, waves); the parity is this package's own. Memory
    for gradients: ``m (width (layers + 1) + 3 D)`` numbers an image.
    """

    def __init__(
        self,
        box: int,
        size: int,
        *,
        generator: torch.Generator,
        width: int = 256,
        layers: int = 3,
        encoding: str = "gaussian",
        bandwidth: float = 0.5,
        power: Tensor | float = 1.0,
        prior_width: float = 3.0,
        precision: torch.dtype | None = None,
        radius: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.box, self.conformation_size, self.precision = box, size, precision
        self.width, self.layers, self.prior_width = width, layers, prior_width
        self.set_band(box // 2 - 1 if radius is None else radius)
        power = torch.as_tensor(power, dtype=torch.float64).expand(box // 2 + 2)
        require(bool((power > 0).all()), "power", expected="positive numbers", got=str(power))
        waves = _waves(box, encoding, bandwidth, generator)
        self.register_buffer("waves", waves.to(device, dtype))
        self.register_buffer("amplitude", power.sqrt().to(device, dtype))
        self.register_buffer("norm", torch.ones((), dtype=dtype, device=device))
        self._calibrate(generator)

    waves: Tensor
    amplitude: Tensor
    norm: Tensor

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Of the weights in a row: first layer (waves, conformation), residual ones, output."""
        waves, width = len(self.waves), self.width
        inner = [(width, width), (width,)] * self.layers
        first = [(waves, width), (self.conformation_size, width), (width,)]
        return [*first, *inner, (width, 2 * waves), (2 * waves,)]

    @property
    def count(self) -> int:
        """Number of the weights, P."""
        return sum(map(prod, self.shapes))

    @property
    def unit(self) -> float:
        """Of a weight: that of a fresh hidden layer."""
        return 1 / sqrt(3 * self.width)

    def start(self, generator: torch.Generator) -> Tensor:
        """Fresh weights [P], uniform in ``+- 1 / sqrt(inputs)``."""
        drawn = torch.rand(self.count, generator=generator, dtype=torch.float64)
        spread = self.spread()
        return ((2 * drawn - 1) * sqrt(3)).to(spread) * spread

    def scaled(self, coefficients: Tensor, factor: float) -> Tensor:
        """Weights [P] whose last layer is ``factor`` times as large, in which F is linear."""
        found, last = coefficients.clone(), sum(map(prod, self.shapes[-2:]))
        found[-last:] *= factor
        return found

    def spread(self) -> Tensor:
        """Standard deviation of each fresh weight, [P]."""
        first = len(self.waves) + self.conformation_size
        inputs = [first] * 3 + [self.width] * (2 * self.layers + 2)
        each = zip(self.shapes, inputs, strict=True)
        return torch.cat([self.norm.new_full((prod(s),), (3 * n) ** -0.5) for s, n in each])

    def prior(self) -> TorchDistribution:
        """Independent normal weights: a weak decay."""
        scale = self.prior_width * self.spread()
        found: TorchDistribution = Normal(torch.zeros_like(scale), scale).to_event(1)
        return found

    def slices(
        self, coefficients: Tensor, rotation: Rotations, conformation: Tensor | None = None
    ) -> Coefficients:
        """Central slices [*, m] at rotations [*, 3, 3], of conformations [*, size]."""
        return each_map(self._slices, coefficients, 1, rotation, conformation)

    def _slices(self, weights: Tensor, rotation: Rotations, state: Tensor | None) -> Coefficients:
        batch, turns, states = in_a_row(rotation, state, self.conformation_size)
        plane, waves = _plane(self.band, self.waves), turns[:, :2].to(self.waves) @ self.waves.mT
        found = self._evaluate(self._parts(weights), plane, waves, states)
        gain = self._gain(self.band) * self.norm
        return torch.complex(*(v * gain for v in found)).reshape(*batch, len(plane))

    def density(self, coefficients: Tensor, conformation: Tensor | None = None) -> Maps:
        """The maps [*, D, D, D] whose transform is F on the lattice inside of the band."""
        size, half = self.conformation_size, self.box // 2
        state = self.waves.new_zeros(0) if size == 0 else checked(conformation, size)
        batch, rows = (
            state.shape[:-1],
            state.to(self.waves).reshape(state.shape[:-1].numel(), size),
        )
        place, points = _half_lattice(self.box, self.band.radius, self.waves)
        gain = self._at(points.norm(dim=-1)) * (self.norm / sqrt(self.box))
        gain = gain * (1 - 2 * (points.sum(-1).round().long() % 2)).to(gain)  # origin at D // 2
        waves, parts = self.waves.mT.expand(len(rows), -1, -1), self._parts(coefficients)
        shares = (points / self.box).split(_AT_ONCE)
        found = [self._evaluate(parts, some, waves, rows) for some in shares]
        values = torch.complex(*(torch.cat(v, 1) * gain for v in zip(*found, strict=True)))
        grid = values.new_zeros(len(rows), self.box**2 * (half + 1)).index_copy(1, place, values)
        grid = grid.reshape(*batch, self.box, self.box, half + 1)
        maps: Maps = torch.fft.irfftn(grid, s=[self.box] * 3, dim=(-3, -2, -1), norm="ortho")
        return maps

    def _evaluate(
        self, parts: list[Tensor], points: Tensor, waves: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Real and imaginary parts [n, m] at points [m, d], waves [n, d, F], states [n, size]."""
        first, mixing, bias, *rest = parts
        return parity_layers(points, waves, first, bias + state.to(first) @ mixing, *rest)

    def _parts(self, weights: Tensor) -> list[Tensor]:
        """Matrices and biases; the identity of a residual layer is added to its matrix."""
        parts = weights.split([prod(s) for s in self.shapes])
        found = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        same = torch.eye(self.width).to(weights)
        for place in range(3, 3 + 2 * self.layers, 2):
            found[place] = found[place] + same
        return [part.to(self.precision or weights.dtype) for part in found]

    def _gain(self, band: Band) -> Tensor:
        """Standard amplitude of each packed coefficient, [m]."""
        radius = (band.kx**2 + band.ky**2).double().sqrt()
        return self._at(radius.to(self.amplitude)) * band.weight.to(self.amplitude)

    def _at(self, radius: Tensor) -> Tensor:
        """The amplitude between the shells, for any |k|; continuous."""
        low = radius.floor().long().clamp(max=len(self.amplitude) - 2)
        return torch.lerp(self.amplitude[low], self.amplitude[low + 1], radius - low)

    @torch.no_grad()
    def _calibrate(self, generator: torch.Generator) -> None:
        """Set the output's unit: fresh weights give the asked power in the mean of some draws."""
        points = torch.randn(64, 3, generator=generator, dtype=torch.float64)
        points = points / points.norm(dim=1, keepdim=True)
        length = torch.rand(64, 1, generator=generator, dtype=torch.float64) / 2
        points, waves = (points * length).to(self.waves), self.waves.mT[None]
        state = waves.new_zeros(1, self.conformation_size)
        power = 0.0
        for _ in range(8):
            parts = self._parts(self.start(generator))
            values = self._evaluate(parts, points, waves, state)
            power += sum(float(v.square().mean()) for v in values) / 8
        self.norm.fill_(power**-0.5)


def _plane(band: Band, like: Tensor) -> Tensor:
    """Frequencies (kx, ky) of a band in cycles per voxel, [m, 2]."""
    return torch.stack([band.kx, band.ky], -1).to(like) / band.box


def _half_lattice(box: int, radius: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Lattice points (kx, ky, kz) up to a shell, and their places in a flattened rfftn."""
    half = torch.fft.fftfreq(box, 1 / box)
    axes = torch.meshgrid(half, half, torch.arange(box // 2 + 1.0), indexing="ij")
    points = torch.stack(axes[::-1], -1).reshape(-1, 3)
    place = (points.double().norm(dim=-1) < radius + 0.5).nonzero()[:, 0]
    return place.to(like.device), points[place].to(like)


def _waves(box: int, encoding: str, bandwidth: float, generator: torch.Generator) -> Tensor:
    """Wave vectors [3 (D / 2), 3] in radians per cycle per voxel (float64)."""
    names = " or ".join(ENCODINGS)
    require(encoding in ENCODINGS, "encoding", expected=names, got=repr(encoding))
    half = box // 2
    if encoding == "gaussian":
        drawn = torch.randn(3 * half, 3, generator=generator, dtype=torch.float64)
        return drawn * (bandwidth * half)
    lengths = torch.linspace(0, 1, -(-half // 2), dtype=torch.float64)
    scales = pi * box * (2 / box) ** lengths
    return torch.cat([scale * _icosahedron() for scale in scales])[: 3 * half]


def _icosahedron() -> Tensor:
    """The six five-fold axes, [6, 3] of length 1."""
    golden = (1 + sqrt(5)) / 2
    rows = [[s * a for s, a in zip((1, sign, 1), (0, 1, golden), strict=True)] for sign in (1, -1)]
    corners = torch.tensor(rows, dtype=torch.float64)
    axes = torch.cat([corners.roll(shift, 1) for shift in range(3)])
    return torch.nn.functional.normalize(axes)
