"""cryoDRGN's released loss is an ELBO: of which noise level."""

from math import log, pi

import pytest
import torch
from moving import moving
from scenes import assembled

from cryoprob.fourier.bands import full_band
from cryoprob.inference.build import image_power
from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.vectors import NormalVector
from cryoprob.inference.learn import seeded
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.presets.base import Scene
from cryoprob.inference.schedule import Schedule
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point

F64 = torch.float64


def test_beta_is_a_noise_level():
    """``sum |x - x^|^2 + beta V (log q - log p) = 2 sigma2 (-ELBO) + constant``, sigma2 = beta V / 2.

    V is the images' variance, by which the released program scales them.
    """
    problem, beta = moving(n=6), 0.5
    stack, kind = problem.stack, {"dtype": F64, "device": torch.device("cpu")}
    scene = Scene(stack, Schedule(beta=beta), image_power(stack), [], 40.0, 1, "C1", kind)
    pixels = stack.images(torch.arange(6)).double()
    variance = float(pixels.square().mean())
    sigma2 = beta * variance / 2
    torch.testing.assert_close(scene.sigma2, torch.full_like(scene.sigma2, sigma2))
    model = problem.model
    model.noise.sigma2.copy_(scene.sigma2)
    state = PerImage(NormalVector(2, width=0.3), problem.z)
    known = problem.guide()
    point = Point(problem.truth)
    guide = Guide(rotation=known.rotation, shift=known.shift, conformation=state, volume=point)
    batch = stack.batch(torch.arange(6), full_band(8), F64)
    with seeded(3), torch.no_grad():
        bound = Elbo(1)(model, guide, problem.truth, batch)
    with seeded(3), torch.no_grad():
        poses = guide.draw(batch, 1)
    given = poses.rotation[0], poses.shift[0], batch, poses.conformation[0]
    found = batch.band.unpack(model.likelihood(problem.truth, *given).mean)
    loss = (pixels - found).square().sum((1, 2))
    log_prior = model.conformation.prior().log_prob(poses.conformation[0])
    loss = loss + beta * variance * (poses.log_q[0] - log_prior)
    constant = sigma2 * 64 * log(2 * pi * sigma2)
    # sums of 64 squares in float64
    torch.testing.assert_close(loss, -2 * sigma2 * bound - constant, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["cryodrgn", "cryoai", "cryofire", "cryoposenet", "ppca"])
def test_beta_is_of_the_noise_alone(name):
    """Volumes and encoders begin as they do with a learned noise: at the images' power."""
    stack, built = moving(box=16, n=8).stack, []
    for beta in (0.0, 0.125):
        built.append(assembled(stack, name, width=8, layers=1, zdim=2, beta=beta).half)
    free, held = built
    numbers = {**dict(free.model.volume.named_buffers()), **dict(free.guide.named_buffers())}
    others = {**dict(held.model.volume.named_buffers()), **dict(held.guide.named_buffers())}
    torch.testing.assert_close(others, numbers)
    law, other = (half.model.volume.prior() for half in built)
    torch.testing.assert_close(other.stddev, law.stddev)
    assert not held.model.noise.sigma2.equal(free.model.noise.sigma2)


def test_without_beta_the_noise_starts_at_the_images_power():
    problem = moving(n=6)
    power, kind = image_power(problem.stack), {"dtype": F64, "device": torch.device("cpu")}
    scene = Scene(problem.stack, Schedule(), power, [], 40.0, 1, "C1", kind)
    torch.testing.assert_close(scene.sigma2, power.clamp(min=1e-3 * float(power.mean())))
    assert scene.model(
        problem.model.volume, problem.model.conformation
    ).pixel_size == pytest.approx(problem.stack.pixel_size)
