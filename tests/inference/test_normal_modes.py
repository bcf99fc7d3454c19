"""Amplitudes of normal modes of a molecule from its images, at known poses."""

import pyro
import torch
from pyro import poutine

from cryoprob.elastic_network import normal_modes
from cryoprob.fourier.bands import full_band
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.vectors import DiracVector, NormalVector
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.objectives.profile_log_joint import ProfileLogJoint
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.io.structures import adk
from cryoprob.models import sites
from cryoprob.models.conformations.normal_modes import NormalModeAmplitudes
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.volumes.displacements import LinearDisplacements
from cryoprob.models.volumes.gaussian_mixture import GaussianMixture
from cryoprob.particles import ParticleStack

BOX, PIXEL, N, COUNT, SNR = 16, 6.0, 60, 3, 20.0
UNIT = 60.0
"""A, about the prior's spread of the softest mode, over all 214 sites."""


def molecule():
    """Open adenylate kinase that moves by 5 A along its three softest modes."""
    atoms = adk("open")
    modes, energies = normal_modes(atoms.positions.float(), COUNT)
    volume = GaussianMixture.from_structure(
        atoms, BOX, PIXEL, displacement=LinearDisplacements(modes), free=()
    )
    prior = NormalModeAmplitudes.moving(energies, len(atoms), 5.0)
    return volume, prior


def imaged(volume, prior, generator):
    """A model with noise of the wanted SNR, its images, and their amplitudes."""
    poses = UniformRotation(), GaussianShift(6.0)
    noise = RadialNoise(torch.ones(1, BOX // 2 + 2))
    model = ParticleModel(volume, *poses, noise, PIXEL, conformation=prior)
    rotation, shift = random_rotations(N, generator, torch.float32), torch.zeros(N, 2)
    blank = torch.randn(N, BOX, BOX, generator=generator)
    empty = ParticleStack.from_arrays(blank, PIXEL, None, rotation, shift)
    index, band, own = torch.arange(N), full_band(BOX), volume.start(generator)
    power = volume.projection(own, rotation, torch.zeros(N, COUNT)).var((1, 2)).mean()
    noise.sigma2.fill_(float(power) / SNR)
    given = {"volume": own, "rotation": rotation, "shift": shift}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        drawn = poutine.trace(pyro.condition(poutine.uncondition(model), data=given))
        nodes = drawn.get_trace(empty.batch(index, band)).nodes
    images = band.unpack(nodes[sites.IMAGE]["value"])
    stack = ParticleStack.from_arrays(images, PIXEL, None, rotation, shift)
    return model, stack, own, nodes[sites.CONFORMATION]["value"]


def fitted(law, objective, generator):
    """True amplitudes, and q of them after 150 gradient steps from zero."""
    model, stack, own, truth = imaged(*molecule(), generator)
    moving = PerImage(law, torch.zeros(N, COUNT))
    poses = {"rotation": Known(stack.rotation.float()), "shift": Known(stack.shift.float())}
    guide = Guide(**poses, volume=Point(own), conformation=moving)
    batch = stack.batch(torch.arange(N), full_band(BOX))
    optimizer = torch.optim.Adam(moving.parameters(), lr=0.05)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        for _ in range(150):
            optimizer.zero_grad()
            (-objective(model, guide, own, batch).sum()).backward()
            optimizer.step()
    return truth, moving.numbers.detach()


def likeness(found, truth):
    """Correlation over the images, mode by mode."""
    pairs = zip(found.T, truth.T, strict=True)
    return torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs])


def test_the_most_probable_amplitudes(generator):
    law = DiracVector(COUNT, UNIT)
    truth, numbers = fitted(law, ProfileLogJoint(), generator)
    # measured: .996, .987, .963, softest mode first
    assert (likeness(law.mode(numbers), truth) > 0.93).all()


def test_a_normal_q_knows_its_error(generator):
    law = NormalVector(COUNT, UNIT, UNIT / 10)
    truth, numbers = fitted(law, Elbo(), generator)
    found, width = law.mode(numbers), law.widths(numbers)
    assert (likeness(found, truth) > 0.93).all()
    off = ((found - truth) / width).square().mean(0).sqrt()
    # 60 images: 9 % of error, thrice; and a q of independent numbers is too narrow, by 1.1 to 1.3
    assert (off > 0.75).all() and (off < 1.6).all()
    # much narrower than the prior
    assert (width.mean(0) < 0.4 * truth.std(0)).all()
