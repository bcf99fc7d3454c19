"""The defocus as a latent site: the CTF that it shifts, its gradient, and sums over nodes."""

from dataclasses import replace
from math import pi

import pytest
import torch
from brute_force import BruteForce
from imaged import DEFOCUS_A, F64, make_imaged
from problems import make_problem
from pyro.infer import TraceEnum_ELBO
from scipy.special import roots_hermitenorm
from torch.distributions import Normal

from cryoprob.checks import InputError
from cryoprob.inference.guide import Guide
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.point import Point
from cryoprob.models.gaussian_contrast import GaussianContrast
from cryoprob.models.gaussian_defocus import GaussianDefocus, defocused_ctf
from cryoprob.models.particle_model import ParticleModel

SCALE_A = 1500.0
"""Where three zeros of the CTF move within a box of 10 A resolution."""


def plain_ctf(optics, error, kx, ky, side_A):
    """The formula of Rohou and Grigorieff 2015 as it stands, [N, M]; phase in radians."""
    u, v, w = optics.defocus_u + error, optics.defocus_v + error, optics.amplitude_contrast
    volts = 1e3 * optics.voltage
    wave = (12.2643247 / torch.sqrt(volts * (1 + 0.978466e-6 * volts)))[:, None]
    s2 = (kx**2 + ky**2).double() / side_A**2
    angle = torch.atan2(ky.double(), kx.double()) - torch.deg2rad(optics.defocus_angle)[:, None]
    along = ((u + v)[:, None] + (u - v)[:, None] * torch.cos(2 * angle)) / 2
    sphere = 1e7 * optics.spherical_aberration[:, None]
    chi = pi * wave * along * s2 - pi / 2 * sphere * wave**3 * s2**2
    return torch.sqrt(1 - w**2)[:, None] * torch.sin(chi) + w[:, None] * torch.cos(chi)


def test_the_ctf_at_a_shifted_defocus():
    imaged = make_imaged(n=4)
    band, optics = imaged.model.band, imaged.stack.optics
    errors = torch.tensor([-900.0, 0.0, 35.5], dtype=F64)[:, None]  # [3, 1], as enumerated
    found = defocused_ctf(imaged.batch, band, imaged.model.pixel_size, errors)
    side = band.box * imaged.model.pixel_size
    wanted = [plain_ctf(optics, error, band.kx, band.ky, side) for error in errors]
    # phases of up to 30 radians in float64
    torch.testing.assert_close(found, torch.stack(wanted), rtol=0, atol=1e-12)
    assert found.shape == (3, 4, len(band))


def test_nothing_is_larger_than_it_must_be():
    # nodes [S, 1, 1, 1], shifts [T, 1, 1], rotations [Q, 1]: the CTF knows nothing of poses
    problem = make_problem(n=3)
    model = latent(problem, 5)
    error = model.defocus.points[:, None, None, None]
    turns, moves = model.rotation.matrices()[:, None], model.shift.points()[:, None, None]
    law = model.likelihood(problem.volume, turns, moves, problem.batch, defocus=error)
    size = len(model.band)
    assert law.ctf.shape == (5, 1, 1, 3, size) and law.slices.shape == (72, 1, size)
    assert law.phase.shape == (5, 1, 1, size)
    assert law.log_prob(problem.batch.image).shape == law.batch_shape == (5, 5, 72, 3)


def latent(problem, nodes, contrast=None):
    """The problem's model with nodes of the defocus."""
    old = problem.model
    parts = old.volume, old.rotation, old.shift, old.noise, old.pixel_size
    contrast = old.contrast if contrast is None else contrast
    return ParticleModel(*parts, contrast, defocus=GaussianDefocus(SCALE_A, nodes, F64))


def brute_force(problem, nodes):
    """Log evidence of every image [N]: dense Gaussians at every pose and shifted defocus."""
    stack, joint = problem.stack, []
    place, weight = (torch.from_numpy(v) for v in roots_hermitenorm(nodes))
    for error, mass in zip(SCALE_A * place, weight / weight.sum(), strict=True):
        old = stack.optics
        moved = replace(old, defocus_u=old.defocus_u + error, defocus_v=old.defocus_v + error)
        other = replace(problem, stack=replace(stack, optics=moved))
        joint.append(BruteForce(other).joint + mass.log())
    return torch.stack(joint, 1).flatten(1).logsumexp(1)


def test_the_enumerated_sum_is_the_brute_force_one():
    problem = make_problem(n=3, signal=6.0)
    model = latent(problem, 5)
    parts = {"rotation": Exact(), "shift": Exact(), "volume": Point(problem.volume)}
    guide = Guide(**parts, defocus=Exact())
    assert guide.kind == "log_evidence" and list(guide.sites) == ["rotation", "shift", "defocus"]
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    found = -loss.loss(model, guide, problem.batch)
    wanted = brute_force(problem, 5).sum()
    wanted = float(wanted + model.volume.prior().log_prob(problem.volume))
    assert found == pytest.approx(wanted, abs=1e-9)  # float64, some hundred nats
    without = -loss.loss(problem.model, Guide(**parts), problem.batch)
    assert abs(found - without) > 0.1  # the site matters here


def test_the_enumerated_sum_at_given_contrasts():
    # amplitudes by a latent site at known values; as brute force has them, plus their prior
    problem = make_problem(n=3)
    problem.model.contrast.spread.fill_(1.0)
    scale = problem.model.contrast.scale
    model = latent(problem, 4, GaussianContrast(0.3, F64))
    parts = {"rotation": Exact(), "shift": Exact(), "volume": Point(problem.volume)}
    guide = Guide(**parts, contrast=Known(scale), defocus=Exact())
    found = -TraceEnum_ELBO(max_plate_nesting=1).loss(model, guide, problem.batch)
    prior = Normal(torch.tensor(1.0, dtype=F64), 0.3).log_prob(scale).sum()
    prior = prior + model.volume.prior().log_prob(problem.volume)
    wanted = float(brute_force(problem, 4).sum() + prior)
    assert found == pytest.approx(wanted, abs=1e-9)  # float64, some hundred nats


def evidence(imaged, errors, log_mass):
    """Log evidence [N] over errors [S] of the defocus at known poses."""
    law = imaged.model.likelihood(
        imaged.volume,
        *imaged.poses,
        imaged.batch,
        contrast=imaged.contrast,
        defocus=errors[:, None],
    )
    return torch.logsumexp(law.log_prob(imaged.batch.image) + log_mass[:, None], 0)


def test_few_nodes_are_the_integral():
    # images that know their defocus to about the prior's 300 A
    imaged = make_imaged(n=12, power=700.0)
    line = torch.linspace(-8, 8, 1601, dtype=F64) * DEFOCUS_A
    density = Normal(torch.zeros((), dtype=F64), DEFOCUS_A).log_prob(line)
    step = float(line[1] - line[0])
    wanted = evidence(imaged, line, density + torch.tensor(step, dtype=F64).log())
    worst = {}
    for nodes in (3, 5, 7, 9):
        prior = GaussianDefocus(DEFOCUS_A, nodes, F64)
        found = evidence(imaged, prior.points, prior.log_mass)
        worst[nodes] = float((found - wanted).abs().max())
    assert worst[3] > worst[5] > worst[7] > worst[9]
    # a factor of 5 or more for every two nodes: 0.16, 0.03, 0.004, 0.0004 nats; twice the last
    assert worst[9] < 1e-3
    given = torch.zeros(2, 1, dtype=F64)  # for certain
    assert float((evidence(imaged, *given) - wanted).abs().max()) > 1


def test_the_gradient_is_that_of_finite_differences():
    imaged = make_imaged(n=3)

    def score(defocus, contrast):
        law = imaged.model.likelihood(
            imaged.volume,
            *imaged.poses,
            imaged.batch,
            contrast=contrast,
            defocus=100 * defocus,
        )
        return law.log_prob(imaged.batch.image)

    # in units of 100 A; central differences of 1e-5 units, float64: gradcheck's own tolerances
    at = (imaged.defocus / 100 + 1).requires_grad_(), imaged.contrast.clone().requires_grad_()
    assert torch.autograd.gradcheck(score, at, eps=1e-5, atol=1e-4, rtol=1e-6)


def test_nodes_have_the_moments_of_the_normal_law():
    prior = GaussianDefocus(200.0, 7, F64)
    mass, unit = prior.log_mass.exp(), prior.points / 200
    moments = [float((mass * unit**k).sum()) for k in range(14)]
    wanted = [1, 0, 1, 0, 3, 0, 15, 0, 105, 0, 945, 0, 10395, 0]
    # float64 at numbers of up to 4^13
    assert moments == pytest.approx(wanted, rel=1e-10, abs=1e-6)
    law = prior.prior()
    drawn = law.expand([5000]).sample()
    assert law.log_prob(drawn).shape == (5000,) and set(drawn.tolist()) <= set(
        prior.points.tolist()
    )
    assert prior.enumerable and not GaussianDefocus(200.0).enumerable


def test_even_nodes_serve_narrow_likelihoods():
    """Normal factors of half the spacing, anywhere: evidence and moments to a few percent."""
    prior = GaussianDefocus(400.0, 13, F64, even=True)
    assert prior.spacing == pytest.approx(200.0) and prior.enumerable
    assert float(prior.log_mass.exp().sum()) == pytest.approx(1, abs=1e-12)
    truth = torch.linspace(-450, 450, 181, dtype=F64)[:, None]
    for width, tolerance in ((200.0, 1e-3), (100.0, 0.08)):
        joint = Normal(prior.points, width).log_prob(truth) + prior.log_mass
        share = joint.softmax(1)
        mean = share @ prior.points
        std = (share @ prior.points.square() - mean.square()).sqrt()
        variance = 1 / (1 / 400.0**2 + 1 / width**2)
        wanted = Normal(0.0, (400.0**2 + width**2) ** 0.5).log_prob(truth[:, 0])
        # 2 exp(-2 (pi w / d)^2) of the evidence: 2 % where posteriors are 97 A wide, and times
        # 2 (pi w / d)^2 of their widths, 9 %. Three standard deviations hold 99.7 % of the prior,
        # and less of posteriors near their end
        assert float((joint.logsumexp(1) - wanted).abs().max()) < tolerance + 5e-3
        shift = (mean - variance / width**2 * truth[:, 0]).abs().max()
        assert float(shift) < (tolerance + 5e-3) * variance**0.5
        assert float((std / variance**0.5 - 1).abs().max()) < tolerance + 2e-2


@pytest.mark.parametrize("nodes", [-1, 1, 65])
def test_bad_nodes(nodes):
    with pytest.raises(InputError, match="defocus nodes: expected 0, or 2 to 64"):
        GaussianDefocus(300.0, nodes)


def test_bad_scales_and_particles_without_optics():
    with pytest.raises(InputError, match="defocus scale: expected a positive length"):
        GaussianDefocus(-1.0)
    problem = make_problem(n=2, ctf=False)
    model, zero = latent(problem, 3), torch.zeros(2, dtype=F64)
    poses = problem.stack.rotation, problem.stack.shift
    with pytest.raises(InputError, match="defocus: expected particles with optics.*columns"):
        model.likelihood(problem.volume, *poses, problem.batch, defocus=zero)
