"""What every volume promises, tried on all of them: a new one is a line of MENU."""

from collections.abc import Callable
from dataclasses import dataclass

import pyro
import pytest
import torch
from brute_force import direct_slices
from pretend import CUDA, PretendCuda
from pyro.distributions import Delta
from pyro.infer import Trace_ELBO

from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.fourier.shells import frequency_3d
from cryoprob.geometry.rotations import random_rotations
from cryoprob.models import sites
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.volumes.coordinate_network import CoordinateNetwork
from cryoprob.models.volumes.displacements import LinearDisplacements, ResidualDisplacements
from cryoprob.models.volumes.fourier_voxels import FourierVoxels
from cryoprob.models.volumes.gaussian_mixture import GaussianMixture
from cryoprob.models.volumes.linear_modes import LinearModes
from cryoprob.models.volumes.real_voxels import RealVoxels
from cryoprob.particles import ParticleStack

F64 = torch.float64
TIGHT = {"rtol": 1e-9, "atol": 1e-11}  # the same sums in float64, in another order
REAL = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@dataclass(frozen=True)
class Case:
    """A volume, and how far its slices may be from those of its own density (relative rms).

    ``quarter``: views along the axes of the grid. ``general``: any view. Reasons beside MENU.
    """

    make: Callable[[torch.Generator], torch.nn.Module]
    quarter: float
    general: float
    draw: Callable[[torch.nn.Module, torch.Generator], torch.Tensor] | None = None

    def build(self, seed=3):
        return self.make(torch.Generator().manual_seed(seed))

    def coefficients(self, volume, generator):
        draw = self.draw or fresh
        return draw(volume, generator)


def fresh(volume, generator):
    """Coefficients of a start, moved a little so that nothing is zero by construction."""
    start, spread = volume.start(generator), volume.prior().stddev
    noise = torch.randn(start.shape, generator=generator, dtype=F64).to(start)
    return start + 0.05 * noise * spread


def ball(volume, generator):
    """Smooth voxels, zero beyond 0.3 boxes: no interpolated view of them meets an edge."""
    box = volume.box
    white = torch.randn(box, box, box, generator=generator, dtype=F64)
    wide = torch.exp(-((frequency_3d(box) / (0.15 * box)) ** 2))  # |voxel|, the same grid
    kernel = torch.tensor([0.25, 0.5, 0.25], dtype=F64)
    cube = kernel[:, None, None] * kernel[:, None] * kernel
    smooth = torch.nn.functional.conv3d((white * wide)[None], cube[None, None], padding=1)[0]
    return smooth * (frequency_3d(box) <= 0.3 * box)


def balls(volume, generator):
    return torch.stack([ball(volume, generator) for _ in volume.tau2])


def network(size, **more):
    def make(generator):
        kind = {"width": 12, "layers": 2, "dtype": F64, "power": torch.linspace(3, 1, 7)} | more
        return CoordinateNetwork(10, size, generator=generator, **kind)

    return make


def mixture(displacement=None, **more):
    # 24 voxels of 4 A; widths of 1.5 voxels, six widths from the edge
    def make(generator):
        moving = None if displacement is None else displacement(generator)
        kind = {"extent": 4.0, "widths": 6.0, "total": 50.0, "radius": 8, "dtype": F64} | more
        kind = {"displacement": moving, "spread": (2.0, 0.5, 0.1)} | kind
        return GaussianMixture.random(7, 24, 4.0, generator, **kind)

    return make


def modes(spread):
    def make(generator):
        drawn = torch.randn(2, 7, 3, generator=generator, dtype=F64)
        return LinearDisplacements(drawn, spread)

    return make


def residual(generator):
    return ResidualDisplacements(3, 7, width=8, layers=1, reach=2.0, dtype=F64)


MENU = {
    # linear interpolation in a grid of half the step, and its gridding correction
    "FourierVoxels": Case(lambda g: FourierVoxels(10, dtype=F64), 0.05, 0.05, ball),
    "LinearModes": Case(lambda g: LinearModes(10, 2, dtype=F64), 0.05, 0.05, balls),
    # trilinear interpolation of voxels blurs all views but those along the axes, where it is exact
    "RealVoxels": Case(lambda g: RealVoxels(10, dtype=F64), 1e-12, 0.25, ball),
    # the map is F on the lattice; F between the points knows of no box and of no last shell (waves
    # of geometric lengths reach the edge of the box); unlike views differ by 1.0
    "CoordinateNetwork": Case(network(2), 1e-12, 0.5),
    "CoordinateNetwork, one map": Case(network(0), 1e-12, 0.5),
    "CoordinateNetwork, geometric": Case(network(1, encoding="geometric"), 1e-12, 0.8),
    # alias of a Gaussian of 1.5 voxels at 2/3 of a cycle per voxel: exp(-2 pi^2 1.5^2 (2/3)^2)
    "GaussianMixture": Case(mixture(), 1e-7, 1e-7),
    "GaussianMixture, amplitudes": Case(mixture(free=["amplitudes"]), 1e-7, 1e-7),
    "GaussianMixture, given modes": Case(mixture(modes(0.0)), 1e-7, 1e-7),
    "GaussianMixture, free modes": Case(mixture(modes(0.5), free=["widths"]), 1e-7, 1e-7),
    "GaussianMixture, network": Case(mixture(residual), 1e-7, 1e-7),
}


@pytest.fixture(params=MENU)
def case(request):
    return MENU[request.param]


@pytest.fixture
def volume(case):
    return case.build()


@pytest.fixture
def coefficients(case, volume, generator):
    return case.coefficients(volume, generator)


def states(volume, generator, *batch):
    """Conformations, or None where the volume takes none."""
    size = volume.conformation_size
    if size == 0:
        return None
    return 0.5 * torch.randn(*batch, size, generator=generator, dtype=F64)


def poses(generator, *batch):
    count = torch.Size(batch).numel()
    return random_rotations(count, generator, F64).reshape(*batch, 3, 3)


def miss(found, wanted):
    """Root mean square of the difference over that of what is wanted."""
    return float((found - wanted).abs().square().sum() / wanted.abs().square().sum()) ** 0.5


def quarter_turns():
    """Four of the cube's rotations, the identity first: they generate all 24."""
    x = torch.tensor([[1, 0, 0], [0, 0, -1], [0, 1, 0]], dtype=F64)
    z = torch.tensor([[0, -1, 0], [1, 0, 0], [0, 0, 1]], dtype=F64)
    return torch.stack([torch.eye(3, dtype=F64), x, z, x @ z])


def turned(density, rotation):
    """The map r -> V(R^T r) for a quarter turn of the periodic grid."""
    box = density.shape[-1]
    k = torch.arange(box) - box // 2
    zyx = torch.stack(torch.meshgrid(k, k, k, indexing="ij"), -1).reshape(-1, 3)
    place = (zyx.flip(1).double() @ rotation).round().long().flip(1)
    z, y, x = ((place + box // 2) % box).T
    return density[z, y, x].reshape(box, box, box)


def test_slice_along_the_axes_is_the_projection(case, volume, coefficients, generator):
    state = states(volume, generator)
    density = volume.density(coefficients, state)
    turns = quarter_turns()
    images = torch.stack([turned(density, turn).sum(0) for turn in turns])
    wanted = volume.band.pack(images)
    found = volume.slices(coefficients, turns, state)
    assert found.shape == wanted.shape and miss(found, wanted) < case.quarter
    assert miss(found[[1, 2, 3, 0]], wanted) > 0.2  # other views differ


def test_slice_at_any_view_is_the_transform_of_the_density(case, volume, coefficients, generator):
    state, turns = states(volume, generator), poses(generator, 4)
    density = volume.density(coefficients, state)
    wanted = direct_slices(density, turns, volume.band)
    assert miss(volume.slices(coefficients, turns, state), wanted) < case.general


def test_an_image_turns_with_the_map(volume, coefficients, generator):
    # a quarter turn about the view maps the band's frequencies to each other
    state, turn = states(volume, generator), poses(generator, 1)
    about = quarter_turns()[2]
    plain = volume.slices(coefficients, turn, state)[0]
    found = volume.slices(coefficients, about @ turn, state)[0]
    kx, ky = volume.band.kx, volume.band.ky
    for place, (x, y) in enumerate(zip(kx.tolist(), ky.tolist(), strict=True)):
        there, back = ((kx == y) & (ky == -x)), ((kx == -y) & (ky == x))
        wanted = plain[there] if there.any() else plain[back].conj()
        torch.testing.assert_close(found[place : place + 1], wanted[:1], **TIGHT)


def test_coefficients_are_packed(volume, coefficients, generator):
    found = volume.slices(coefficients, poses(generator, 2), states(volume, generator))
    own = volume.band.weight == 1
    assert own.sum() == 1 and (found[:, own].imag == 0).all()
    assert float(found.imag.abs().max()) > 0


def test_a_batch_is_a_loop(volume, coefficients, generator):
    turns, state = poses(generator, 5), states(volume, generator, 5)
    found = volume.slices(coefficients, turns, state)
    each = [
        volume.slices(coefficients, turns[i : i + 1], None if state is None else state[i])[0]
        for i in range(5)
    ]
    torch.testing.assert_close(found, torch.stack(each), **TIGHT)
    if state is not None:
        maps = torch.stack([volume.density(coefficients, z) for z in state])
        torch.testing.assert_close(volume.density(coefficients, state), maps, **TIGHT)


@pytest.mark.parametrize(
    ("maps", "turns", "shapes"),
    [
        ((), (3,), (2, 3)),
        ((), (2, 3), (2, 3)),
        ((), (2, 3), (3,)),
        ((), (2, 1), (1, 3)),
        ((), (), ()),
        ((2, 1), (2, 3), (2, 3)),
        ((2, 1), (3,), (2, 3)),
        ((1, 1), (3,), (3,)),
        ((2,), (), ()),
    ],
)
def test_broadcasting(maps, turns, shapes, volume, coefficients, generator):
    rotation, state = poses(generator, *turns), states(volume, generator, *shapes)
    event = coefficients.dim()
    factor = 1 + 0.1 * torch.arange(torch.Size(maps).numel()).reshape(*maps, *[1] * event)
    many = coefficients * factor
    found = volume.slices(many, rotation, state)
    batch = torch.broadcast_shapes(maps, turns, () if state is None else shapes)
    assert found.shape == (*batch, len(volume.band))
    many = many.expand(*batch, *coefficients.shape).reshape(-1, *coefficients.shape)
    rotation = rotation.expand(*batch, 3, 3).reshape(-1, 3, 3)
    size = volume.conformation_size
    state = state.expand(*batch, size).reshape(-1, size) if size else [None] * len(many)
    each = [volume.slices(c, r[None], z)[0] for c, r, z in zip(many, rotation, state, strict=True)]
    torch.testing.assert_close(found.reshape(-1, len(volume.band)), torch.stack(each), **TIGHT)


def test_precision(volume, coefficients, generator):
    turns, state = poses(generator, 2), states(volume, generator, 2)
    wide = volume.slices(coefficients, turns, state)
    density = volume.density(coefficients, state)
    assert wide.dtype == torch.complex128 and density.dtype == F64
    single = volume.to(torch.float32)
    state = None if state is None else state.float()
    narrow = single.slices(coefficients.float(), turns.float(), state)
    assert narrow.dtype == torch.complex64
    assert miss(narrow.to(wide), wide) < 1e-4  # some hundred float32 roundings
    density_32 = single.density(coefficients.float(), state)
    assert density_32.dtype == torch.float32 and miss(density_32.double(), density) < 1e-4
    assert single.prior().mean.dtype == torch.float32


@pytest.mark.parametrize("device", ["pretend", pytest.param("cuda", marks=REAL)])
def test_device(device, volume, coefficients, generator):
    turns, state = poses(generator, 2), states(volume, generator, 2)
    wanted, density = (
        volume.slices(coefficients, turns, state),
        volume.density(coefficients, state),
    )
    if device == "cuda":
        return there(volume, coefficients, turns, state, wanted, density)
    with PretendCuda():
        there(volume, coefficients, turns, state, wanted, density)


def there(volume, coefficients, turns, state, wanted, density):
    volume = volume.to(CUDA)
    state = None if state is None else state.to(CUDA)
    coefficients = coefficients.to(CUDA).requires_grad_()
    found = volume.slices(coefficients, turns.to(CUDA), state)
    assert found.device.type == "cuda"
    torch.testing.assert_close(found.detach().cpu(), wanted, rtol=1e-8, atol=1e-9)
    found.abs().square().sum().backward()
    assert coefficients.grad.device.type == "cuda"
    found = volume.density(coefficients.detach(), state).cpu()
    torch.testing.assert_close(found, density, rtol=1e-8, atol=1e-9)
    assert volume.prior().mean.device.type == "cuda"


def test_saved_and_loaded(case, volume, coefficients, generator):
    turns, state = poses(generator, 2), states(volume, generator, 2)
    other = case.build(seed=4)
    other.load_state_dict(volume.state_dict())
    wanted = volume.slices(coefficients, turns, state)
    assert (other.slices(coefficients, turns, state) == wanted).all()
    torch.testing.assert_close(other.prior().mean, volume.prior().mean, **TIGHT)
    assert not list(volume.parameters())  # what is unknown is the value of a site


def test_gradients_by_differences(case, volume, coefficients, generator):
    turns, state = poses(generator, 3), states(volume, generator, 3)
    tilt = torch.randn(3, len(volume.band), 2, generator=generator, dtype=F64)

    def score(values, turns, state):
        found = volume.slices(values, turns, state)
        return (torch.view_as_real(found.resolve_conj()) * tilt).sum()

    given = [coefficients, turns] if state is None else [coefficients, turns, state]
    leaves = [v.clone().requires_grad_() for v in given]
    value = score(*leaves, *[None] * (3 - len(given)))
    slopes = torch.autograd.grad(value, leaves)
    for place, (leaf, slope) in enumerate(zip(given, slopes, strict=True)):
        way = torch.randn(leaf.shape, generator=generator, dtype=F64)
        step = 1e-6
        ends = []
        for sign in (1, -1):
            here = [v + sign * step * way if i == place else v for i, v in enumerate(given)]
            ends.append(float(score(*here, *[None] * (3 - len(given)))))
        wanted = (ends[0] - ends[1]) / (2 * step)
        # step^2 of curvature, rounding over the step; a kink is hit with a chance of 1e-3
        assert float((way * slope).sum()) == pytest.approx(wanted, rel=1e-5, abs=1e-6)
        assert abs(wanted) > 1e-6


def test_flag_of_the_coefficients_tells_the_truth(case, volume, coefficients, generator):
    other = case.coefficients(volume, generator)
    turns, state = poses(generator, 3), states(volume, generator, 3)
    one, two, both = (
        volume.slices(c, turns, state)
        for c in (coefficients, other, 2 * coefficients - 0.5 * other)
    )
    linear = miss(both, 2 * one - 0.5 * two) < 1e-9
    assert linear == volume.linear_in_coefficients


def test_flag_of_the_conformation_tells_the_truth(volume, coefficients, generator):
    turns = poses(generator, 3)
    if volume.conformation_size == 0:
        ignored = torch.randn(3, 2, generator=generator, dtype=F64)
        found = volume.slices(coefficients, turns, ignored)
        torch.testing.assert_close(found, volume.slices(coefficients, turns), **TIGHT)
        assert not volume.linear_in_conformation
        return
    one, two = states(volume, generator, 2, 3)
    ends = [volume.slices(coefficients, turns, z) for z in (one, two)]
    between = volume.slices(coefficients, turns, 0.3 * one + 0.7 * two)
    assert miss(*ends) > 1e-3
    affine = miss(between, 0.3 * ends[0] + 0.7 * ends[1]) < 1e-9
    assert affine == volume.linear_in_conformation


def test_a_conformation_is_asked_for(volume, coefficients, generator):
    if volume.conformation_size == 0:
        pytest.skip("takes no conformation")
    turns, wrong = poses(generator, 2), torch.zeros(2, volume.conformation_size + 1, dtype=F64)
    for state in (None, wrong):
        with pytest.raises(InputError, match="conformation"):
            volume.slices(coefficients, turns, state)
        with pytest.raises(InputError, match="conformation"):
            volume.density(coefficients, state)


def test_a_smaller_band_is_a_prefix(volume, coefficients, generator):
    turns, state = poses(generator, 2), states(volume, generator, 2)
    before, radius = volume.slices(coefficients, turns, state), volume.band.radius
    volume.set_band(2)
    assert volume.band.radius == 2 and len(volume.band) == len(full_band(volume.box).prefix(2))
    after = volume.slices(coefficients, turns, state)
    torch.testing.assert_close(after, before[:, : len(volume.band)], **TIGHT)
    volume.set_band(radius)
    torch.testing.assert_close(volume.slices(coefficients, turns, state), before, **TIGHT)
    with pytest.raises(InputError, match="at most"):
        volume.set_band(volume.box // 2)


def test_prior(volume, coefficients):
    law = volume.prior()
    assert law.batch_shape == () and law.event_shape == coefficients.shape
    with torch.random.fork_rng():
        torch.manual_seed(1)
        draw = law.sample()
    value = coefficients.clone().requires_grad_()
    law.log_prob(value).backward()
    assert draw.shape == coefficients.shape and torch.isfinite(law.log_prob(draw))
    assert torch.isfinite(value.grad).all() and float(value.grad.abs().max()) > 0


@pytest.mark.parametrize("particles", [1, 2])
def test_inside_of_the_model(particles, volume, coefficients, generator):
    count, box, size = 4, volume.box, volume.conformation_size
    turns, state = poses(generator, count), states(volume, generator, count)
    conformation = GaussianConformation(torch.ones(size, dtype=F64)) if size else None
    model = ParticleModel(
        volume,
        UniformRotation(dtype=F64),
        GaussianShift(4.0, dtype=F64),
        RadialNoise(torch.ones(box // 2 + 2, dtype=F64)),
        4.0,
        conformation=conformation,
    )
    images = torch.randn(count, box, box, generator=generator, dtype=F64)
    stack = ParticleStack.from_arrays(images, 4.0)
    batch = stack.batch(torch.arange(count), full_band(box), F64)
    leaves = [coefficients.clone().requires_grad_()]
    leaves += [] if state is None else [state.clone().requires_grad_()]

    def guide(batch):
        pyro.sample(sites.VOLUME, Delta(leaves[0], event_dim=leaves[0].dim()))
        with sites.particles(batch):
            pyro.sample(sites.ROTATION, Delta(turns, event_dim=2))
            pyro.sample(sites.SHIFT, Delta(torch.zeros(count, 2, dtype=F64), event_dim=1))
            if state is not None:
                pyro.sample(sites.CONFORMATION, Delta(leaves[1], event_dim=1))

    options = {"num_particles": particles, "vectorize_particles": particles > 1}
    bound = Trace_ELBO(max_plate_nesting=1, **options)
    loss = bound.differentiable_loss(model, guide, batch)
    joint = model.volume.prior().log_prob(coefficients)
    joint = joint + 2 * count * -torch.tensor(2 * torch.pi * 16, dtype=F64).log() / 2
    if state is not None:
        joint = joint + conformation.prior().log_prob(state).sum()
    still = torch.zeros(count, 2, dtype=F64)
    seen = model.likelihood(coefficients, turns, still, batch, state).log_prob(batch.image).sum()
    assert loss.item() == pytest.approx(-float(joint + seen), rel=1e-9)
    loss.backward()
    assert all(torch.isfinite(leaf.grad).all() and leaf.grad.any() for leaf in leaves)
