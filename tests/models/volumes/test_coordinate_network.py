"""The network: its formula and slopes by plain torch, its parity, its power, that it learns."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.geometry.rotations import random_rotations
from cryoprob.models.volumes import parity_layers as layers
from cryoprob.models.volumes.coordinate_network import CoordinateNetwork
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.phantoms import bead_walk

F64 = torch.float64


def make(size=2, seed=3, box=10, **more):
    kind = {"width": 12, "layers": 2, "dtype": F64} | more
    return CoordinateNetwork(box, size, generator=torch.Generator().manual_seed(seed), **kind)


def plain(parts, points, waves, moved):
    """The same functions, by torch's own gradients, from all points at once."""
    first, *weights = parts
    phase = points @ waves
    hidden = torch.relu(phase.cos() @ first + moved[:, None])
    for matrix, shift in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        hidden = torch.relu(hidden @ matrix + shift)
    found = hidden @ weights[-2] + weights[-1]
    even, odd = found.chunk(2, -1)
    return (even * phase.cos()).sum(-1), (odd * phase.sin()).sum(-1)


@pytest.mark.parametrize("rows", [1, 20, 10**6])
@pytest.mark.parametrize("depth", [0, 3])
def test_layers_and_their_slopes(rows, depth, monkeypatch, generator):
    # 5 cases of 9 points, taken one, two or all at a time
    monkeypatch.setattr(layers, "_ROWS", rows)
    inner = [(6, 6), (6,)] * depth
    shapes = [(5, 3, 4), (5, 6), (4, 6), *inner, (6, 8), (8,)]
    points = torch.randn(9, 3, generator=generator, dtype=F64)
    given = [torch.randn(s, generator=generator, dtype=F64).requires_grad_() for s in shapes]
    waves, moved, first, *weights = given
    found = layers.parity_layers(points, waves, first, moved, *weights)
    wanted = plain([first, *weights], points, waves, moved)
    tilt = torch.randn(2, 5, 9, generator=generator, dtype=F64)
    slopes = [
        torch.autograd.grad(sum((v * t).sum() for v, t in zip(values, tilt, strict=True)), given)
        for values in (found, wanted)
    ]
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-11)
    with torch.no_grad():
        free = layers.parity_layers(points, waves, first, moved, *weights)
    assert all((a == b).all() for a, b in zip(free, found, strict=True))


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that was made."""

    def __init__(self):
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            self.numbers = max(self.numbers, found.untyped_storage().nbytes() // found.itemsize)
        return found


def test_memory(monkeypatch, generator):
    # 30 images, two at a time; for the gradients three layers of units of all of them
    net, turns = make(0, width=40), random_rotations(30, generator, F64)
    points, weights = len(net.band), net.start(generator).requires_grad_()
    monkeypatch.setattr(layers, "_ROWS", 2 * points)
    with Largest() as kept:
        net.slices(weights, turns)
    with Largest() as free, torch.no_grad():
        net.slices(weights, turns)
    assert kept.numbers == 3 * 40 * 30 * points
    # those of two images, and the bare coefficients of all
    assert free.numbers <= max(3 * 40 * 2 * points, 2 * 30 * points, net.count)


def test_half_a_turn_is_the_conjugate(generator):
    net, turns = make(), random_rotations(4, generator, F64)
    weights, state = net.start(generator), torch.randn(4, 2, generator=generator, dtype=F64)
    half = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=F64))  # k to -k in the plane
    found, there = (net.slices(weights, r, state) for r in (turns, half @ turns))
    torch.testing.assert_close(there, found.conj().resolve_conj(), rtol=1e-12, atol=1e-12)
    assert float(found.imag.abs().mean()) > 0.1 * float(found.real.abs().mean())


def test_there_is_no_seam(generator):
    # a plane that tilts through kx = 0, ky = 0 or kz = 0 changes as little as it tilts
    net, weights = make(0), make(0).start(generator)
    turns = torch.cat([torch.eye(3, dtype=F64)[None], random_rotations(20, generator, F64)])
    small = 1e-6
    rows = [[1, -small, small], [small, 1, -small], [-small, small, 1]]
    tilt = torch.tensor(rows, dtype=F64)
    ends = [net.slices(weights, turns @ way) for way in (tilt, tilt.mT)]
    assert float((ends[0] - ends[1]).abs().max()) < 1e-3


@pytest.mark.parametrize("encoding", ["gaussian", "geometric"])
def test_mirror_images_differ(encoding, generator):
    net = make(0, encoding=encoding)
    weights, turns = net.start(generator), random_rotations(3, generator, F64)
    values = net.slices(weights, turns)
    for axis in range(3):
        mirror = torch.eye(3, dtype=F64)
        mirror[axis, axis] = -1
        assert float((net.slices(weights, turns @ mirror) - values).abs().max()) > 0.05


def test_waves():
    net = make(box=24, encoding="geometric", dtype=F64)
    lengths = 2 * math.pi / net.waves.norm(dim=1)
    assert len(net.waves) == 36
    assert float(lengths.min()) == pytest.approx(2 / 24) and float(lengths.max()) == pytest.approx(
        1
    )
    square = (net.waves[:6, :, None] * net.waves[:6, None]).flatten(1)
    assert int(torch.linalg.matrix_rank(square)) == 6  # all symmetric matrices
    drawn = make(box=200, width=2, layers=0).waves
    # 900 normal numbers: 2.4 % of error, four times
    assert drawn.shape == (300, 3) and float(drawn.std()) == pytest.approx(50, rel=0.1)
    assert (make(seed=5).waves == make(seed=5).waves).all()
    assert (make(seed=5).waves != make(seed=6).waves).any()


@pytest.mark.parametrize("size", [0, 3])
def test_fresh_slices_are_as_bright_as_asked(size, generator):
    power = torch.logspace(3, 0, 8, dtype=F64)
    net = make(size, box=12, width=64, layers=3, power=power)
    turns = random_rotations(4, generator, F64)
    found = torch.zeros(len(net.band), dtype=F64)
    for _ in range(20):
        weights = net.start(generator)
        values = net.slices(weights, turns, torch.zeros(4, size, dtype=F64))
        found += (values / net.band.weight).abs().square().mean(0) / 20
    ratio = found / power[net.band.shell]
    # twenty draws of a heavy-tailed number over eight of it; over three decades of power
    assert 0.5 < float(ratio.log().mean().exp()) < 2
    assert float(ratio.min()) > 0.25 and float(ratio.max()) < 4


def test_start_and_prior_agree(generator):
    net = make(3, width=32)
    start, law = net.start(generator), net.prior()
    assert start.shape == (net.count,) == law.mean.shape
    assert (law.mean == 0).all()
    ratio = start / law.stddev
    # uniform numbers over three of their standard deviations
    assert float(ratio.abs().max()) <= 3**0.5 / 3 + 1e-12
    assert float(ratio.std()) == pytest.approx(1 / 3, rel=0.05)


def test_products_in_bfloat16(generator):
    wide = make(2, box=16, width=64, layers=3, dtype=torch.float32)
    short = make(2, box=16, width=64, layers=3, dtype=torch.float32, precision=torch.bfloat16)
    weights, turns = wide.start(generator), random_rotations(4, generator, torch.float32)
    short.load_state_dict(wide.state_dict())
    state, slopes, values = torch.randn(4, 2, generator=generator), [], []
    tilt = torch.randn(4, len(wide.band), 2, generator=generator)
    for net in (wide, short):
        leaves = [v.clone().requires_grad_() for v in (weights, turns, state)]
        found = net.slices(*leaves)
        (torch.view_as_real(found) * tilt).sum().backward()
        slopes.append([leaf.grad.flatten() for leaf in leaves])
        values.append(found.detach())
    assert values[1].dtype == torch.complex64 and slopes[1][0].dtype == torch.float32
    # eight binary digits, 0.2 % a rounding, a dozen of them in a row
    assert 0 < float((values[1] - values[0]).norm() / values[0].norm()) < 0.02
    for one, other in zip(*slopes, strict=True):
        assert float(torch.cosine_similarity(one, other, dim=0)) > 0.995


@pytest.mark.parametrize("encoding", ["gaussian", "geometric"])
def test_it_learns_a_map(encoding, generator):
    box = 12
    density = bead_walk(8, box, 5.0, generator)
    voxels = FourierVoxels(box)
    band, looks = full_band(box).prefix(5), random_rotations(60, generator, torch.float32)
    wanted = voxels.slices(density, looks)
    net = make(
        0, box=box, width=48, dtype=torch.float32, encoding=encoding, power=_power(wanted, band)
    )
    weights = net.start(generator).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=0.1 * net.unit)
    scale = net.amplitude[band.shell]
    for step in range(150):
        some = slice(10 * (step % 5), 10 * (step % 5) + 10)
        loss = ((net.slices(weights, looks[some]) - wanted[some]) / scale).abs().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        left = (net.slices(weights, looks[50:]) - wanted[50:]).norm() / wanted[50:].norm()
        found, map_ = net.density(weights).flatten(), density.flatten()
    assert float(left) < 0.3  # of views that it never saw
    assert float(torch.corrcoef(torch.stack([found, map_]))[0, 1]) > 0.9


def _power(slices, band):
    """Mean power of each shell, [S]; beyond the band as in its last shell."""
    power = torch.zeros(band.n_shells).index_add_(0, band.shell, slices.abs().square().mean(0))
    power = power / band.numbers_per_shell().clamp(min=1)
    return torch.where(power > 0, power, power[band.radius])


def test_bad_input():
    with pytest.raises(InputError, match="gaussian or geometric"):
        make(encoding="learned")
    with pytest.raises(InputError, match="positive numbers"):
        make(power=0.0)
    with pytest.raises(InputError, match="at most 4"):
        make(radius=5)
