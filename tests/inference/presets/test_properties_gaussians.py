"""Checkable properties of presets of Gaussians."""

import pytest
import torch
from brute_force import direct_slices
from chains import bead_chain, write_chain
from scenes import assembled, everything

from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.learn import seeded
from cryoprob.inference.objectives.iwae import Iwae
from cryoprob.inference.objectives.ring_correlation import ring_correlation
from cryoprob.io.structures import density, read_structure
from cryoprob.models.simulate import simulate
from cryoprob.particles import ParticleStack

F64 = torch.float64
BOX, PIXEL, COUNT = 16, 6.0, 40
SMALL = {"width": 8, "layers": 1, "batch": 8, "zdim": 2}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Images of a chain of 16 residues, and its structure in the frame of their poses."""
    folder = tmp_path_factory.mktemp("chain")
    generator = torch.Generator().manual_seed(11)
    write_chain(folder / "chain.pdb", bead_chain(16, generator))
    volume = density(read_structure(folder / "chain.pdb"), BOX, PIXEL, center=False)
    return simulate(volume, PIXEL, COUNT, 4.0, generator, out=folder)


def system(drawn, name, **settings):
    """The preset from the structure, in float64, and the images."""
    stack = ParticleStack.read(drawn.truth, need=("ctf", "rotation", "shift"))
    chain = str(drawn.truth.with_name("chain.pdb"))
    return assembled(stack, name, [chain], **SMALL | settings), stack


def bent(built, generator):
    """Coefficients away from the reference, and conformations [5, 2] that displace the sites."""
    start = built.half.guide.volume.coefficients.detach()
    away = start + 0.1 * torch.randn(len(start), generator=generator, dtype=F64)
    return away, torch.randn(5, 2, generator=generator, dtype=F64)


def test_cryofolds_bonds_do_not_see_rigid_motion_and_slices_are_analytic(drawn, generator):
    built, _ = system(drawn, "cryofold")
    model, (own, z) = built.half.model, bent(built, generator)
    volume, (bonds,) = model.volume, model.terms
    nothing = torch.zeros(2, dtype=F64)
    reference = built.half.guide.volume.coefficients.detach()
    # a file has 1e-3 A: (1e-3 / 0.3)^2 / 2 of each of 15 bonds
    assert -2e-4 < float(bonds(volume, reference, nothing)) <= 0
    value = bonds(volume, own, nothing)
    assert float(value) < -1
    places = volume.sites(own, nothing)[0]
    turn = random_rotations(1, generator, F64)[0]
    moved = own.clone()
    offset = places @ turn.T + torch.tensor([7.0, -3.0, 2.0], dtype=F64) - places
    free = slice(0, places.numel())
    moved[free] += offset.flatten() / volume.spread[free]
    assert float(offset.norm(dim=1).min()) > 1
    torch.testing.assert_close(bonds(volume, moved, nothing), value)
    stretched = own.clone()
    stretched[free] += 0.1 * places.flatten() / volume.spread[free]
    assert abs(float(bonds(volume, stretched, nothing) - value)) > 1
    turns = random_rotations(5, generator, F64)
    for rotation, state in zip(turns, z, strict=True):
        numbers = direct_slices(volume.density(own, state), rotation[None], volume.band)[0]
        found = volume.slices(own, rotation, state)
        # voxels of Gaussians of 0.9 voxels have aliases at the band's rim; measured: 1.3e-3
        assert float((found - numbers).norm() / numbers.norm()) < 3e-3


def scores(built, stack, own):
    """Each image's score in the neutral model of own numbers [P]: the rings that count, [N]."""
    model, guide, objective = built.half.model, built.half.guide, built.algorithm.objective
    batch, nothing = everything(stack), torch.zeros(len(stack), 2, dtype=F64)
    rest = guide.volume.coefficients.detach()[len(own) :]
    given = guide.rotation.values, guide.shift.values, batch, nothing
    mean = model.likelihood(torch.cat([own, rest]), *given).mean[:, : len(model.band)]
    rings = ring_correlation(model.band, mean, batch.image[:, : len(model.band)])
    return (rings * objective.kappa)[:, objective.first :].sum(1)


def slopes(built, stack, own):
    """Gradients of the scores, [N, P]."""
    own = own.detach().requires_grad_()
    found = scores(built, stack, own)
    return torch.stack([torch.autograd.grad(v, own, retain_graph=True)[0] for v in found])


def consensus(built, stack, own):
    """The neutral model that all images together ask for."""
    found = own.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([found], max_iter=120, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = -scores(built, stack, found).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return found.detach()


def test_e2gmms_encoder_reads_slopes_that_cancel_at_the_consensus(drawn):
    built, stack = system(drawn, "e2gmm")
    point, encoder = built.half.guide.volume, built.half.guide.conformation.encoder
    size = built.half.model.volume.own
    start = point.coefficients.detach()[:size].clone()
    ends = []
    for own in (start, consensus(built, stack, start)):
        point.coefficients.data[:size] = own
        raw = slopes(built, stack, own)
        # what the encoder reads is that, image by image at mean 0 and variance 1
        wanted = (raw - raw.mean(1, keepdim=True)) / raw.std(1, unbiased=False, keepdim=True)
        torch.testing.assert_close(encoder.prepare(everything(stack)), wanted)
        ends.append(float(raw.mean(0).norm() / raw.norm(dim=1).mean()))
    # forty slopes of unlike directions have a mean of 1/6 of theirs; here it goes to 0
    assert ends[0] > 0.1 and ends[1] < 0.03  # after 120 steps; measured: 0.16 and 0.01


def test_atomvaes_bound_rises_with_the_number_of_draws(drawn):
    built, stack = system(drawn, "atomvae")
    half, batch = built.half, everything(stack)
    point, means = half.guide.volume.coefficients.detach(), []
    assert isinstance(built.algorithm.objective, Iwae)
    for draws in (1, built.algorithm.objective.draws, 24):
        with seeded(draws), torch.no_grad():
            values = [Iwae(draws)(half.model, half.guide, point, batch) for _ in range(8)]
        sums = torch.stack(values).sum(1)
        means.append((float(sums.mean()), float(sums.var() / len(sums))))
    for (low, one), (high, other) in zip(means, means[1:], strict=False):
        assert high - low > 4 * (one + other) ** 0.5  # standard errors


def test_atomvaes_factors_are_nothing_at_the_reference(drawn, generator):
    built, _ = system(drawn, "atomvae")
    model, (own, z) = built.half.model, bent(built, generator)
    start = built.half.guide.volume.coefficients.detach()
    assert [term.name for term in model.terms] == ["bonds", "deviation"]
    for term in model.terms:
        # a file has 1e-3 A: (1e-3 / 0.3)^2 / 2 of each of 15 bonds
        assert (term(model.volume, start, z).abs() < 2e-4).all(), term.name
        away = term(model.volume, own, z)
        assert (away < -2e-4).all() and float(away.mean()) < -1e-2, term.name
