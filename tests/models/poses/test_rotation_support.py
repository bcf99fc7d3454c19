"""The chart of SO(3): Haar's Jacobian, inverses, derivatives, and inference through it."""

from math import pi, sqrt

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions import Normal, TransformedDistribution
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoLaplaceApproximation, AutoNormal
from scipy import integrate, stats
from torch.distributions import biject_to, transform_to

from cryoprob.checks import InputError
from cryoprob.geometry.grids import RotationGrid
from cryoprob.geometry.rotations import (
    angle_between,
    check_rotations,
    random_rotations,
    viewing_direction,
)
from cryoprob.models.poses.rotation_support import (
    SCALE_AT_ORIGIN,
    RotationChart,
    rotation_matrix,
)
from cryoprob.models.poses.uniform_rotation import UniformRotation

F64 = torch.float64
CHART = RotationChart()
RADII = [0.0, 1e-5, 0.3, 0.99, 1.01, 1.5, 3.0]  # both sides of the branches at 1 and at 1.27


def at_radius(radius):
    """A point of the chart at a distance from the origin."""
    return (torch.tensor([0.6, 0.48, -0.64], dtype=F64) * radius).requires_grad_()


def haar_angle_cdf(angle):
    """Probability of a smaller angle (radians) under Haar measure."""
    return (angle - np.sin(angle)) / pi


def haar_tests(rotations):
    """p-values of angle, viewing direction (cosine, azimuth) and cells of the coarsest grid."""
    exact = rotations.double()
    angle = torch.deg2rad(angle_between(torch.eye(3, dtype=F64), exact)).numpy()
    x, y, z = viewing_direction(exact).numpy().T
    azimuth = np.arctan2(y, x)
    counts = torch.bincount(RotationGrid(0).cell(exact), minlength=72).numpy()
    return [
        stats.kstest(angle, haar_angle_cdf).pvalue,
        stats.kstest(z, stats.uniform(-1, 2).cdf).pvalue,
        stats.kstest(azimuth, stats.uniform(-pi, 2 * pi).cdf).pvalue,
        stats.chisquare(counts).pvalue,
    ]


def jacobian_density(x):
    """Haar density per volume of x at one point, from the derivative of the map by autograd.

    The columns of ``R^T dR / dx_j`` are rotation vectors: 1 / (8 pi^2) of their volume is Haar's.
    """
    derivative = torch.autograd.functional.jacobian(CHART, x)
    turned = torch.einsum("ik,ijx->kjx", CHART(x), derivative)
    vectors = torch.stack([turned[2, 1], turned[0, 2], turned[1, 0]])
    return torch.linalg.det(vectors) / (8 * pi**2)


def test_constraint():
    assert rotation_matrix.event_dim == 2 and not rotation_matrix.is_discrete
    eye = torch.eye(3)
    several = torch.stack([eye, -eye, 2 * eye, eye.roll(1, 0), eye * float("nan")])
    assert rotation_matrix.check(several).tolist() == [True, False, False, True, False]
    assert not rotation_matrix.check(torch.zeros(2, 3))
    assert rotation_matrix.check(torch.zeros(2, 4, 3)).tolist() == [False, False]
    for registry in (biject_to, transform_to):
        assert registry(rotation_matrix) == CHART and registry(rotation_matrix).bijective
    assert biject_to(UniformRotation().discretize(0).prior().support) != CHART


@pytest.mark.parametrize("radius", RADII)
def test_jacobian_is_the_map_s(radius):
    x = at_radius(radius).detach()
    found = CHART.log_abs_det_jacobian(x, CHART(x)).exp()
    # 1e-9: rounding of the matrix over the smallest stretch (0.01 radians per unit at radius 3)
    torch.testing.assert_close(found, jacobian_density(x), rtol=1e-9, atol=0)


def test_angle_has_equal_probability():
    # an own route to the same map: scipy's chi law
    radius = torch.linspace(0.05, 5, 100, dtype=F64)
    angle = torch.deg2rad(angle_between(torch.eye(3, dtype=F64), CHART(along_z(radius))))
    wanted = stats.chi(3).cdf(radius.numpy())
    np.testing.assert_allclose(haar_angle_cdf(angle.numpy()), wanted, rtol=0, atol=1e-14)
    tiny = torch.tensor([1e-3], dtype=F64)
    slope = torch.deg2rad(angle_between(torch.eye(3, dtype=F64), CHART(along_z(tiny)))) / tiny
    assert float(slope) == pytest.approx(SCALE_AT_ORIGIN, rel=1e-6)


def along_z(radius):
    return torch.stack([0 * radius, 0 * radius, radius], -1)


def test_haar_density_integrates_to_one_by_quadrature():
    def shell(radius):
        x = torch.tensor([0.0, radius, 0.0], dtype=F64)
        return 4 * pi * radius**2 * float(jacobian_density(x))

    # with the map's own Jacobian; 1e-8 is quad's own error bound, 1e-10 the mass beyond 7
    total, _ = integrate.quad(shell, 0, 7, epsabs=1e-9, epsrel=0, limit=30)
    assert total == pytest.approx(1, abs=1e-8)
    lattice = torch.cartesian_prod(*3 * [torch.linspace(-7, 7, 29, dtype=F64)])
    mass = CHART.log_abs_det_jacobian(lattice, CHART(lattice)).exp().sum() / 8
    # the trapezoid rule of spacing h = 1/2 on a normal: 6 exp(-2 pi^2 / h^2), nothing
    assert float(mass) == pytest.approx(1, abs=1e-10)


def test_haar_density_integrates_to_one_by_monte_carlo(false_alarm):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        x = 1.5 * torch.randn(40000, 3, dtype=F64)
    proposal = Normal(torch.zeros(3, dtype=F64), 1.5).to_event(1).log_prob(x)
    weight = (CHART.log_abs_det_jacobian(x, CHART(x)) - proposal).exp()
    error = float(weight.std()) / sqrt(len(weight))
    assert abs(float(weight.mean()) - 1) < stats.norm.isf(false_alarm / 2) * error


def test_pulled_back_and_pushed_forward(generator, false_alarm):
    # rotations that were drawn otherwise (quaternions) are standard normal, and the reverse
    x = CHART.inv(random_rotations(5000, generator, F64))
    for column in x.T.numpy():
        assert stats.kstest(column, stats.norm.cdf).pvalue > false_alarm / 4
    radius2 = x.square().sum(-1).numpy()
    assert stats.kstest(radius2, stats.chi2(3).cdf).pvalue > false_alarm / 4
    normal = torch.randn(5000, 3, generator=generator, dtype=F64)
    assert min(haar_tests(CHART(normal))) > false_alarm / 4
    base = Normal(torch.zeros(3, dtype=F64), 1).to_event(1)
    uniform = TransformedDistribution(base, CHART)
    assert uniform.event_shape == (3, 3)
    density = uniform.log_prob(random_rotations(100, generator, F64))
    torch.testing.assert_close(density, torch.zeros_like(density), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("dtype", "loss"), [(F64, 1e-12), (torch.float32, 2e-4)])
def test_there_and_back(generator, dtype, loss):
    # where pi - angle > 0.05: an error of a few roundings in the angle, over a slope of 0.08
    x = torch.randn(2000, 3, generator=generator, dtype=dtype)
    x = torch.cat([x[x.norm(dim=1) < 3], x[:20] * 1e-4, torch.zeros(1, 3, dtype=dtype)])
    rotations = CHART(x)
    check_rotations(rotations, tolerance=10 * torch.finfo(dtype).eps)
    assert rotations.dtype == dtype and rotation_matrix.check(rotations).all()
    torch.testing.assert_close(CHART.inv(rotations), x, rtol=loss, atol=loss)
    again = CHART(CHART.inv(random_rotations(2000, generator, dtype)))
    assert again.dtype == dtype
    drawn = random_rotations(2000, generator, dtype)
    tolerance = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(CHART(CHART.inv(drawn)), drawn, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_half_turns_and_far_points_stay_finite(dtype):
    # the rotations that the chart leaves out, and points whose rotation rounds to them
    half = torch.diag_embed(2 * torch.eye(3, dtype=dtype) - 1).requires_grad_()
    x = CHART.inv(half)
    assert (x.norm(dim=1) < 9).all() and (x.norm(dim=1) > 5).all()
    torch.testing.assert_close(CHART(x), half, rtol=0, atol=10 * torch.finfo(dtype).eps)
    x.sum().backward()
    assert half.grad.isfinite().all()
    far = torch.tensor([[30.0, 0, 0], [0, 300.0, 4]], dtype=dtype, requires_grad=True)
    rotations = CHART(far)
    assert rotation_matrix.check(rotations).all()
    assert CHART.log_abs_det_jacobian(far, rotations).isfinite().all()
    rotations.square().sum().backward()
    assert far.grad.isfinite().all()


@pytest.mark.parametrize("radius", RADII)
def test_derivatives(radius):
    x = at_radius(radius)
    assert torch.autograd.gradcheck(CHART, x)
    assert torch.autograd.gradgradcheck(CHART, x)
    round_trip = lambda x: CHART._inverse(CHART(x))  # noqa: E731 (past torch's cache of inverses)
    eye = torch.eye(3, dtype=F64)
    torch.testing.assert_close(
        torch.autograd.functional.jacobian(round_trip, x), eye, rtol=0, atol=1e-8
    )
    assert torch.autograd.gradgradcheck(round_trip, x, atol=1e-4)


def test_symmetry_of_the_chart(generator):
    x = torch.randn(50, 3, generator=generator, dtype=F64)
    frame = random_rotations(50, generator, F64)
    torch.testing.assert_close(CHART(-x), CHART(x).mT)
    turned = CHART((frame @ x[..., None])[..., 0])
    torch.testing.assert_close(turned, frame @ CHART(x) @ frame.mT)


def test_shapes(generator):
    x = torch.randn(4, 1, 2, 3, generator=generator)
    rotations = CHART(x)
    assert rotations.shape == CHART.forward_shape(x.shape) == (4, 1, 2, 3, 3)
    assert CHART.inv(rotations).shape == CHART.inverse_shape(rotations.shape) == x.shape
    assert CHART.log_abs_det_jacobian(x, rotations).shape == (4, 1, 2)
    torch.testing.assert_close(rotations[2, 0, 1], CHART(x[2, 0, 1]))
    with pytest.raises(InputError, match=r"expected \[..., 3\], got shape \[5, 4\]"):
        CHART(torch.zeros(5, 4))
    with pytest.raises(InputError, match=r"expected \[..., 3, 3\], got shape \[3\]"):
        CHART.inv(torch.zeros(3))


def only_rotations(n=20):
    """The uniform prior alone, of ``n`` particles."""
    with pyro.plate("particles", n):
        return pyro.sample("rotation", UniformRotation(dtype=F64).prior())


@pytest.mark.slow
def test_nuts_draws_haar_measure(false_alarm):
    """Every sixth draw, where the correlation of the slowest, |x|^2, was seen to be 0.02."""
    with torch.random.fork_rng():
        pyro.set_rng_seed(8)
        kernel = NUTS(lambda: only_rotations(60))
        mcmc = MCMC(kernel, 240, warmup_steps=50, disable_progbar=True)
        mcmc.run()
    drawn = mcmc.get_samples()["rotation"]
    assert drawn.shape == (240, 60, 3, 3)
    check_rotations(drawn)
    assert min(haar_tests(drawn[::6].flatten(0, 1))) > false_alarm / 4


@pytest.fixture
def store():
    """Pyro's parameter store, emptied afterwards: SVI keeps what it optimizes there."""
    yield pyro.get_param_store()
    pyro.clear_param_store()


def test_autonormal_holds_the_uniform_law(store):
    """Its optimum is the prior itself: the bound ends at 0, the evidence, without any noise."""
    guide = AutoNormal(only_rotations, init_scale=0.3)
    elbo = Trace_ELBO(num_particles=10, vectorize_particles=True, max_plate_nesting=1)
    optimizer = pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.98})
    svi = SVI(only_rotations, guide, optimizer, elbo)
    with torch.random.fork_rng():
        pyro.set_rng_seed(1)
        first = svi.evaluate_loss()
        for _ in range(300):
            svi.step()
        last = svi.evaluate_loss()
        drawn = guide()["rotation"]
    # 20 (-3 log 0.3 + 3 (0.3^2 - 1) / 2) = 45 nats
    assert 20 < first < 70 and abs(last) < 0.2
    check_rotations(drawn)
    assert drawn.shape == (20, 3, 3)
    for value in guide.quantiles([0.1])["rotation"]:
        check_rotations(value)


def test_laplace_at_the_origin(store):
    """At the chart's origin, where guides start, the prior is N(0, I) to Laplace's guide too."""
    guide = AutoLaplaceApproximation(lambda: only_rotations(2))
    guide()
    with torch.no_grad():
        guide.loc.zero_()
    posterior = guide.laplace_approximation().get_posterior()
    torch.testing.assert_close(posterior.covariance_matrix, torch.eye(6, dtype=F64))
