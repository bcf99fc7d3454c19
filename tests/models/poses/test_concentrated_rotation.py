"""The concentrated law on SO(3): its mass, its draws, its gradients, its limits."""

from functools import cache
from math import log, pi, radians, sqrt

import pyro
import pytest
import roma
import torch
from pyro.infer import MCMC, NUTS, TraceMeanField_ELBO
from scipy import stats
from torch.distributions import kl_divergence

from cryoprob.checks import InputError
from cryoprob.geometry.grids import RotationGrid
from cryoprob.geometry.rotations import (
    about_z,
    check_rotations,
    mean_rotation,
    random_rotations,
)
from cryoprob.models.poses.concentrated_rotation import ConcentratedRotation
from cryoprob.models.poses.rotation_support import SCALE_AT_ORIGIN, rotation_matrix
from cryoprob.models.poses.uniform_rotation import UniformRotation

F64 = torch.float64
BROAD = [[25, 25, 25], [60, 60, 60], [20, 45, 60], [75, 30, 50]]
"""Scales in degrees that the grid of order 3, 7.5 degrees, resolves."""


def radian(*degrees):
    return torch.deg2rad(torch.tensor(degrees, dtype=F64))


def turned(seed):
    """One rotation of the Haar measure."""
    return random_rotations(1, torch.Generator().manual_seed(seed), F64)[0]


def tilted(degrees):
    """A lower triangle with correlations, of about these widths."""
    lower = torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [-0.4, 0.3, 0.7]], dtype=F64)
    return radian(*degrees)[:, None] * lower


def law_of(degrees, seed=11, correlated=True):
    lower = tilted(degrees) if correlated else radian(*degrees).diag()
    return ConcentratedRotation(turned(seed), scale_tril=lower)


def drawn(law, count, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return law.sample((count,))


@cache
def points(order):
    return RotationGrid(order).matrices(dtype=F64)


@pytest.mark.parametrize("degrees", BROAD)
@pytest.mark.parametrize("correlated", [False, True])
def test_mass_on_the_grid(degrees, correlated):
    # the midpoint rule over cells of 7.5 degrees that are not all alike: at most 7e-4 seen, and
    # four times less at each finer order
    law = law_of(degrees, correlated=correlated)
    mass = law.log_prob(points(3)).exp().mean()
    assert float(mass) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("degrees", [[0.5, 0.5, 0.5], [8, 3, 20], [15, 15, 40]])
def test_mass_in_the_tangent_space(degrees):
    """By the rotation vector and its own Haar density: no chart, no grid on SO(3)."""
    law = law_of(degrees)
    step = 0.35
    line = torch.arange(-5.95, 6, step, dtype=F64)
    lattice = torch.cartesian_prod(line, line, line) @ law.scale_tril.mT
    angle = torch.linalg.vector_norm(lattice, dim=-1).clamp(1e-12)
    inside = angle < pi
    haar = (torch.sin(angle / 2) / angle).square() / (2 * pi**2)
    density = law.log_prob(law.mode @ roma.rotvec_to_rotmat(lattice)).exp()
    volume = step**3 * law.scale_tril.diagonal().prod()
    mass = (density * haar * inside).sum() * volume
    # 1e-5 of the density lie beyond 5.95 widths or a turn by 180 degrees
    assert float(mass) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("degrees", [[3, 3, 3], [20, 20, 20], [60, 60, 60], [20, 45, 60]])
def test_draws_follow_the_density(degrees, false_alarm):
    """Counts in the 576 cells of order 1 against the density on their children."""
    law, count = law_of(degrees, seed=5), 5000
    grid = RotationGrid(5 if max(degrees) < 10 else 3)
    cells = torch.arange(len(grid)) if grid.order == 3 else grid.cells_within(law.mode, 25)
    density = law.log_prob(grid.matrices(cells, dtype=F64)).exp() * grid.cell_mass
    for order in range(grid.order, 1, -1):
        cells = RotationGrid(order).parent(cells)
    mass = torch.zeros(576, dtype=F64).index_add_(0, cells, density)
    assert float(mass.sum()) == pytest.approx(1, abs=1e-3)
    found = torch.bincount(RotationGrid(1).cell(drawn(law, count, 2)), minlength=576)
    # every cell of 5 or more draws, and the others together
    usual = count * mass > 5
    expected, seen = count * mass[usual], found[usual]
    rest = count - float(expected.sum())
    if rest > 5:
        expected = torch.cat([expected, torch.tensor([rest], dtype=F64)])
        seen = torch.cat([seen, (count - seen.sum())[None]])
    expected *= seen.sum() / expected.sum()
    assert len(seen) > 3
    assert stats.chisquare(seen.numpy(), expected.numpy()).pvalue > false_alarm


def test_draws_and_the_mode():
    law = law_of([20, 45, 60])
    several = drawn(law.expand((2,)), 4000, 1)
    assert several.shape == (4000, 2, 3, 3)
    check_rotations(several)
    assert law.mode.equal(law.mean)
    # the chordal mean of 4000 within 5 standard errors of 60 degrees
    away = roma.rotmat_geodesic_distance(mean_rotation(several[:, 0]), law.mode)
    assert float(away) < 5 * radians(60) / sqrt(4000) * sqrt(3)
    assert (law.log_prob(several) < law.log_prob(law.mode)).all()


def test_uniform_at_the_chart_s_own_scale(generator):
    law = ConcentratedRotation(turned(1), torch.full((3,), SCALE_AT_ORIGIN, dtype=F64))
    density = law.log_prob(random_rotations(200, generator, F64))
    torch.testing.assert_close(density, torch.zeros_like(density), rtol=0, atol=1e-9)
    assert float(law.entropy()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("degrees", [0.02, 0.2])
def test_small_scales_are_a_gaussian_times_haar(degrees, generator):
    lower = tilted([degrees, degrees, 2 * degrees])
    law = ConcentratedRotation(turned(3), scale_tril=lower)
    vector = torch.randn(100, 3, generator=generator, dtype=F64) @ lower.mT
    flat = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=F64), scale_tril=lower)
    wanted = flat.log_prob(vector) + log(8 * pi**2)
    found = law.log_prob(law.mode @ roma.rotvec_to_rotmat(vector))
    # the next order: angle^2 times a few, at 4 widths of 2 degrees
    tolerance = 40 * radians(2 * degrees) ** 2
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


def test_equivariance(generator):
    """A turn of the laboratory moves the mode alone; of the molecule, the scale too."""
    law, frame = law_of([20, 45, 60]), turned(9)
    values = random_rotations(200, generator, F64)
    moved = ConcentratedRotation(frame @ law.mode, scale_tril=law.scale_tril)
    torch.testing.assert_close(
        moved.log_prob(frame @ values), law.log_prob(values), rtol=1e-7, atol=1e-7
    )
    covariance = frame.mT @ law.scale_tril @ law.scale_tril.mT @ frame
    other = ConcentratedRotation(law.mode @ frame, scale_tril=torch.linalg.cholesky(covariance))
    torch.testing.assert_close(
        other.log_prob(values @ frame), law.log_prob(values), rtol=1e-7, atol=1e-7
    )


def test_the_axes_are_the_molecule_s():
    """``mode exp(w)``: a scale about z alone turns the molecule about its own z first."""
    mode, narrow = turned(4), torch.tensor([1e-6, 1e-6, 0.5], dtype=F64)
    rotations = drawn(ConcentratedRotation(mode, narrow), 100, 0)
    axis = rotations[..., :, 2]  # where the molecule's z goes
    torch.testing.assert_close(axis, mode[:, 2].expand(100, 3), rtol=0, atol=1e-5)
    about = mode @ about_z(torch.tensor(40.0, dtype=F64))
    law = ConcentratedRotation(mode, radian(5, 5, 40))
    assert float(law.log_prob(about) - law.log_prob(mode)) == pytest.approx(-0.5, abs=0.1)


@pytest.mark.parametrize("degrees", [[5, 5, 5], [20, 45, 60]])
def test_entropy_and_divergence(degrees, false_alarm):
    law, uniform = law_of(degrees), UniformRotation(dtype=F64).prior()
    score = -law.log_prob(drawn(law, 20000, 6))
    error = float(score.std()) / sqrt(len(score))
    assert abs(float(score.mean() - law.entropy())) < stats.norm.isf(false_alarm / 2) * error
    assert kl_divergence(law, uniform).equal(-law.entropy())
    # a third route: the sum over a grid, to the midpoint rule's 1e-3
    if min(degrees) > 10:
        log_density = law.log_prob(points(3))
        entropy = -(log_density.exp() * log_density).mean()
        assert float(entropy) == pytest.approx(float(law.entropy()), abs=2e-3)


def observable(rotations):
    """A smooth asymmetric function of rotations."""
    weight = torch.tensor([[0.3, -1, 0.5], [0.8, 0.2, -0.7], [-0.4, 0.9, 1]], dtype=F64)
    trace = (rotations * weight).sum((-2, -1))
    return trace + 0.5 * trace.square()


def mean_of(parameters, average):
    """``average(law)`` at (turn of the mode, scales), [6]."""
    mode = turned(7) @ roma.rotvec_to_rotmat(parameters[:3])
    return average(ConcentratedRotation(mode, parameters[3:], validate_args=False))


def test_pathwise_gradients_are_those_of_the_expectation(false_alarm):
    """Draws, differentiated, against differences of sums over the grid by the density."""
    at = torch.cat([torch.full((3,), 0.1, dtype=F64), radian(35, 25, 55)]).requires_grad_()
    grid = points(3)
    value = observable(grid)
    step, exact = 1e-4, []
    with torch.no_grad():
        for move in step * torch.eye(6, dtype=F64):
            up, down = (
                mean_of(at + sign * move, lambda law: (law.log_prob(grid).exp() * value).mean())
                for sign in (1, -1)
            )
            exact.append((up - down) / (2 * step))
    with torch.random.fork_rng():
        torch.manual_seed(12)
        batches = [
            torch.autograd.grad(
                mean_of(at, lambda law: observable(law.rsample((250,))).mean()), at
            )[0]
            for _ in range(40)
        ]
    found = torch.stack(batches)
    error = found.std(0) / sqrt(len(found))
    deviation = ((found.mean(0) - torch.stack(exact)).abs() / error).max()
    assert float(deviation) < stats.t.isf(false_alarm / 12, len(found) - 1)
    assert float((error / found.mean(0).abs()).median()) < 0.2  # a test that can fail


def test_gradients_of_the_density():
    values = turned(7) @ roma.rotvec_to_rotmat(
        torch.tensor([[0.0, 0, 0], [0.5, -1, 0.3]]).double()
    )
    vector = torch.zeros(3, dtype=F64, requires_grad=True)
    lower = tilted([20, 45, 60]).requires_grad_()

    def density(vector, lower):
        # through the rotations' tangents: a free 3 x 3 matrix is not in the support
        mode = turned(7) @ torch.linalg.matrix_exp(hat(vector))
        return ConcentratedRotation(mode, scale_tril=lower.tril(), validate_args=False).log_prob(
            values
        )

    assert torch.autograd.gradcheck(density, (vector, lower))
    mode = turned(7).requires_grad_()
    law = ConcentratedRotation(mode, scale_tril=lower)
    law.log_prob(law.rsample((50,))).sum().backward()
    assert mode.grad.isfinite().all() and lower.grad.isfinite().all()


def hat(vector):
    x, y, z = vector
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero]).reshape(3, 3)


@pytest.mark.parametrize("degrees", [[2, 2, 2], [20, 45, 60]])
def test_single_precision(degrees):
    exact = law_of(degrees)
    single = ConcentratedRotation(exact.mode.float(), scale_tril=exact.scale_tril)
    values = drawn(exact, 500, 3)
    assert single.scale_tril.dtype == single.sample().dtype == torch.float32
    found = single.log_prob(values.float())
    assert found.dtype == torch.float32
    # 1e-7 of a matrix entry over a scale of 2 degrees, times 4 widths: 1e-5; half turns are rarer
    torch.testing.assert_close(found.double(), exact.log_prob(values), rtol=1e-4, atol=2e-3)


def test_batches(generator):
    modes = random_rotations(4, generator, F64)
    scale = torch.rand(3, 1, 3, generator=generator, dtype=F64) + 0.2
    law = ConcentratedRotation(modes, scale)
    assert law.batch_shape == (3, 4) and law.event_shape == (3, 3)
    assert law.has_rsample and law.support is rotation_matrix
    values = drawn(law, 5, 0)
    assert values.shape == (5, 3, 4, 3, 3) and law.entropy().shape == (3, 4)
    density = law.log_prob(values)
    one = ConcentratedRotation(modes[2], scale[1, 0])
    torch.testing.assert_close(density[:, 1, 2], one.log_prob(values[:, 1, 2]))
    wide = law.expand(torch.Size((2, 3, 4)))
    assert wide.batch_shape == wide.entropy().shape == (2, 3, 4)
    torch.testing.assert_close(wide.log_prob(values[:, None])[:, 1], density)
    # one value for all
    assert one.expand((7,)).log_prob(modes[2]).shape == (7,)


@pytest.mark.parametrize(
    ("mode", "given", "match"),
    [
        (torch.eye(3), {}, "expected scale or scale_tril, got neither"),
        (torch.eye(3), {"scale": torch.ones(3), "scale_tril": torch.eye(3)}, "got both"),
        (torch.eye(3), {"scale": torch.ones(2)}, r"expected \[..., 3\] \(rad\), got shape \[2\]"),
        (torch.eye(3), {"scale": torch.tensor([1, 0, 1.0])}, "positive standard dev.*got 0"),
        (torch.eye(3), {"scale": torch.full((3,), float("nan"))}, "got nan"),
        (torch.eye(3), {"scale_tril": torch.ones(3, 3)}, "a finite lower triangle"),
        (torch.eye(3), {"scale_tril": torch.ones(3, 2)}, r"got shape \[3, 2\]"),
        (torch.eye(4), {"scale": torch.ones(3)}, r"rotation mode: .*\[4, 4\]"),
        (-torch.eye(3), {"scale": torch.ones(3)}, "determinant"),
        (torch.eye(3).expand(4, 3, 3), {"scale": torch.ones(5, 3)}, "that broadcast"),
    ],
)
def test_bad_input(mode, given, match):
    with pytest.raises(InputError, match=match):
        ConcentratedRotation(mode, **given)


def test_bad_value():
    with pytest.raises(InputError, match="rotation chart"):
        ConcentratedRotation(torch.eye(3), torch.ones(3)).log_prob(torch.zeros(3))


def test_bound_with_a_uniform_prior():
    """As a guide: TraceMeanField takes the closed divergence from Haar measure."""
    law = law_of([20, 45, 60])
    uniform = UniformRotation(dtype=F64)
    loss = TraceMeanField_ELBO().loss(
        lambda: pyro.sample("rotation", uniform.prior()), lambda: pyro.sample("rotation", law)
    )
    assert loss == pytest.approx(-float(law.entropy()))


@pytest.mark.slow
def test_nuts_draws_from_it(false_alarm):
    """As a prior: the density and an entry of every fourth draw, against independent draws."""
    law = ConcentratedRotation(torch.eye(3, dtype=F64), radian(25, 30, 40))
    with torch.random.fork_rng():
        pyro.set_rng_seed(2)
        settings = {"step_size": 0.2, "adapt_step_size": False, "adapt_mass_matrix": False}
        kernel = NUTS(lambda: pyro.sample("rotation", law.expand((60,)).to_event(1)), **settings)
        mcmc = MCMC(kernel, 80, warmup_steps=20, disable_progbar=True)
        mcmc.run()
        reference = law.sample((20000,))
    found = mcmc.get_samples()["rotation"][::4].flatten(0, 1)
    check_rotations(found)
    for score in (law.log_prob, lambda r: r[:, 1, 2]):
        test = stats.ks_2samp(score(found).numpy(), score(reference).numpy())
        assert test.pvalue > false_alarm / 2
