"""What the score's encoder sees: the slope of each image's ring correlations."""

import pytest
import torch
from chains import bead_chain
from problems import make_problem, some_optics

from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.encoders.score import Score
from cryoprob.inference.objectives.ring_correlation import ring_correlation
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.point import Point
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.volumes.displacements import ResidualDisplacements
from cryoprob.models.volumes.gaussian_mixture import FREE, GaussianMixture
from cryoprob.particles import ParticleStack

F64 = torch.float64
BOX, PIXEL, SITES, COUNT = 12, 6.0, 7, 4
KAPPA = 1 + torch.arange(BOX // 2 + 2, dtype=F64)


def scene(generator):
    """Images of some CTF and shift, a model of Gaussians, and the encoder."""
    moving = ResidualDisplacements(3, SITES, width=4, layers=1, dtype=F64)
    options = {"displacement": moving, "free": FREE, "dtype": F64}
    volume = GaussianMixture(BOX, PIXEL, bead_chain(SITES, generator), **options)
    model = ParticleModel(
        volume,
        UniformRotation(dtype=F64),
        GaussianShift(4.0, dtype=F64),
        RadialNoise(torch.ones(BOX // 2 + 2, dtype=F64)),
        PIXEL,
        conformation=GaussianConformation(torch.ones(3, dtype=F64)),
    )
    turns = random_rotations(COUNT, generator, F64)
    moves = 3 * torch.randn(COUNT, 2, generator=generator, dtype=F64)
    images = torch.randn(COUNT, BOX, BOX, generator=generator, dtype=F64)
    optics = some_optics(COUNT, generator)
    stack = ParticleStack.from_arrays(images, PIXEL, optics, turns, moves)
    own = 0.1 * torch.randn(len(volume.spread), generator=generator, dtype=F64)
    point = Point(volume.start(generator) + own)
    poses = Known(turns), Known(moves)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        encoder = Score(model, point, *poses, kappa=KAPPA, width=8, layers=2).double()
    return model, point, poses, stack.batch(torch.arange(COUNT), full_band(BOX), F64), encoder


def test_it_is_the_gradient_of_the_score_at_z_0(generator):
    model, point, poses, batch, encoder = scene(generator)
    found = encoder.prepare(batch)
    assert found.shape == (COUNT, 5 * SITES)
    own = point.coefficients.detach().clone().requires_grad_()
    zero = torch.zeros(COUNT, 3, dtype=F64)
    given = poses[0].values, poses[1].values
    mean = model.likelihood(own, *given, batch, zero).mean[:, : len(model.band)]
    rings = ring_correlation(model.band, mean, batch.image[:, : len(model.band)])
    scores = (rings * KAPPA).sum(1)
    for score, seen in zip(scores, found, strict=True):
        (slope,) = torch.autograd.grad(score, own, retain_graph=True)
        slope = slope[: 5 * SITES]
        wanted = (slope - slope.mean()) / slope.std(unbiased=False)
        torch.testing.assert_close(seen, wanted)


def test_it_does_not_see_the_displacement_and_holds_none_of_the_models_numbers(generator):
    model, point, _, batch, encoder = scene(generator)
    before = encoder.look(batch).detach()
    assert before.shape == (COUNT, 8)
    point.coefficients.data[5 * SITES :] += 1
    encoder.forget()
    torch.testing.assert_close(encoder.look(batch), before)
    point.coefficients.data[: 5 * SITES] *= 1.5
    torch.testing.assert_close(encoder.look(batch), before)  # looked at once
    encoder.forget()
    assert float((encoder.look(batch).detach() - before).abs().max()) > 1e-3
    names = {name.split(".")[0] for name, _ in encoder.named_parameters()}
    assert names == {"body"}
    encoder.look(batch).sum().backward()
    assert point.coefficients.grad is None
    model.volume.set_band(3)
    encoder.forget()
    assert encoder.look(batch).shape == (COUNT, 8)


def test_there_is_no_slope_at_images_of_the_neutral_model(generator):
    """What is left of it in real ones is their noise, and how they differ from it."""
    model, point, poses, batch, _ = scene(generator)
    zero = torch.zeros(COUNT, 3, dtype=F64)
    given = poses[0].values, poses[1].values
    with torch.no_grad():
        clean = model.likelihood(point.coefficients, *given, batch, zero).mean
    own = point.coefficients.detach().clone().requires_grad_()
    mean = model.likelihood(own, *given, batch, zero).mean[:, : len(model.band)]
    rings = ring_correlation(model.band, mean, clean[:, : len(model.band)])
    (slope,) = torch.autograd.grad((rings * KAPPA).sum(), own)
    # correlations of 1 are stationary; rounding of sums of some 1e2 terms
    assert float(slope.abs().max()) < 1e-10


def test_other_volumes_are_refused():
    problem = make_problem(contrast=False).continuous()
    guide = problem.guide
    with pytest.raises(InputError, match="a volume of Gaussians"):
        Score(problem.model, guide.volume, guide.rotation, guide.shift, kappa=KAPPA)


def test_displacements_of_no_coordinate_are_refused():
    with pytest.raises(InputError, match="conformation: expected one coordinate or more, got 0"):
        ResidualDisplacements(0, SITES)
