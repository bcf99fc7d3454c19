"""Terms of a model: counted once where they belong, their slopes, and what does not change them."""

from math import log

import pyro
import pytest
import torch
from chains import bead_chain
from problems import make_problem
from pyro import poutine
from pyro.distributions import Delta
from pyro.infer import Trace_ELBO

from cryoprob.checks import InputError
from cryoprob.fourier.bands import full_band
from cryoprob.geometry.rotations import random_rotations
from cryoprob.inference.grids import off_grid
from cryoprob.inference.guide import Guide
from cryoprob.inference.half import Half
from cryoprob.inference.joint import Joint, JointState
from cryoprob.inference.laws.vectors import DiracVector, NormalVector
from cryoprob.inference.learn import seeded
from cryoprob.inference.objectives.base import log_terms
from cryoprob.inference.objectives.elbo import Elbo
from cryoprob.inference.objectives.iwae import Iwae
from cryoprob.inference.objectives.profile_log_joint import ProfileLogJoint
from cryoprob.inference.objectives.ring_correlation import RingCorrelation
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.models import sites
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.noises.radial_noise import RadialNoise
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.poses.gaussian_shift import GaussianShift
from cryoprob.models.poses.uniform_rotation import UniformRotation
from cryoprob.models.structure_factors import Bonds, Deviation, Positivity
from cryoprob.models.volumes.displacements import LinearDisplacements, ResidualDisplacements
from cryoprob.models.volumes.gaussian_mixture import GaussianMixture
from cryoprob.particles import ParticleStack

F64 = torch.float64
BOX, PIXEL, SITES, COUNT = 8, 8.0, 6, 5
PAIRS = torch.stack([torch.arange(SITES - 1), torch.arange(1, SITES)], 1)


class Bent:
    """Images of noise, a chain that a network moves, and z at a normal q."""

    def __init__(self, generator, terms=(), law=None):
        where = bead_chain(SITES, generator)
        self.reference = where
        moving = ResidualDisplacements(2, SITES, width=4, layers=1, dtype=F64)
        options = {"displacement": moving, "free": ("positions", "amplitudes"), "dtype": F64}
        self.volume = GaussianMixture(BOX, PIXEL, where, 1.0, **options)
        self.own = torch.randn(len(self.volume.spread), generator=generator, dtype=F64)
        self.model = ParticleModel(
            self.volume,
            UniformRotation(dtype=F64),
            GaussianShift(4.0, dtype=F64),
            RadialNoise(torch.ones(BOX // 2 + 2, dtype=F64)),
            PIXEL,
            conformation=GaussianConformation(torch.ones(2, dtype=F64)),
            terms=terms,
        )
        images = torch.randn(COUNT, BOX, BOX, generator=generator, dtype=F64)
        self.turns = random_rotations(COUNT, generator, F64)
        self.moves = torch.zeros(COUNT, 2, dtype=F64)
        self.stack = ParticleStack.from_arrays(images, PIXEL, None, self.turns, self.moves.float())
        self.z = torch.randn(COUNT, 2, generator=generator, dtype=F64)
        self.guide = Guide(
            rotation=Known(self.turns),
            shift=Known(self.moves),
            volume=Point(self.own),
            conformation=PerImage(law or NormalVector(2, width=0.3, fixed=True), self.z),
        )

    def batch(self, index=None):
        index = torch.arange(COUNT) if index is None else index
        return self.stack.batch(index, full_band(BOX), F64)


def all_terms(generator):
    """Two that count for each particle, one that counts once."""
    reference = bead_chain(SITES, generator)
    return [Bonds(PAIRS, 3.0, 0.5), Deviation(reference, 2.0), Positivity(0.1)]


def direct(bent, own, z):
    """Nats of the terms: of each conformation [*], and once."""
    each = sum(term(bent.volume, own, z) for term in bent.model.terms if term.local)
    return each, bent.model.terms[2](bent.volume, own)


def a_guide(bent, index, own, z):
    def guide(batch):
        pyro.sample(sites.VOLUME, Delta(own, event_dim=1))
        with sites.particles(batch):
            pyro.sample(sites.ROTATION, Delta(bent.turns[index], event_dim=2))
            pyro.sample(sites.SHIFT, Delta(bent.moves[index], event_dim=1))
            pyro.sample(sites.CONFORMATION, Delta(z, event_dim=1))

    return guide


def seeded_generator():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("particles", [1, 2])
def test_pyro_counts_each_particle_once_and_the_whole_once(particles):
    losses = []
    index = torch.tensor([0, 3])
    for terms in ([], all_terms(seeded_generator())):
        bent = Bent(seeded_generator(), terms)
        options = {"num_particles": particles, "vectorize_particles": particles > 1}
        guide = a_guide(bent, index, bent.own, bent.z[index])
        bound = Trace_ELBO(max_plate_nesting=1, **options)
        losses.append(bound.loss(bent.model, guide, bent.batch(index)))
    each, once = direct(bent, bent.own, bent.z[index])
    # two of five particles stand for all five
    wanted = float(each.sum() * COUNT / 2 + once)
    assert each.shape == (2,) and once.shape == () and wanted < -1
    assert losses[0] - losses[1] == pytest.approx(wanted, rel=1e-9)


def test_objectives_count_those_of_each_draw():
    bent = Bent(seeded_generator(), all_terms(seeded_generator()))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        poses = bent.guide.draw(bent.batch(), 3)
    found = log_terms(bent.model, bent.guide, bent.own, poses, bent.batch())
    each, _ = direct(bent, bent.own, poses.conformation)
    prior = bent.model.conformation.prior().log_prob(poses.conformation)
    assert each.shape == (3, COUNT)
    torch.testing.assert_close(found.prior, prior)
    torch.testing.assert_close(found.potential, each)
    bare = Bent(seeded_generator())
    likelihood = log_terms(bare.model, bent.guide, bent.own, poses, bent.batch()).likelihood
    torch.testing.assert_close(found.likelihood, likelihood)


@pytest.mark.parametrize("objective", [Elbo(3), ProfileLogJoint()])
def test_a_weight_on_the_divergence_leaves_the_terms_alone(objective):
    """Bonds hold from the first step of a training whose divergence hardly counts then."""
    law = DiracVector(2) if objective.kind == "profile_log_joint" else None
    values = []
    for terms in ([], all_terms(seeded_generator())):
        bent = Bent(seeded_generator(), terms, law)
        for beta in (1.0, 0.05):
            with seeded(1), torch.no_grad():
                found = objective.weighted(beta)(bent.model, bent.guide, bent.own, bent.batch())
            values.append(found)
    assert not torch.allclose(values[0], values[1])  # the divergence is weighed
    torch.testing.assert_close(values[2] - values[0], values[3] - values[1])
    assert float((values[3] - values[1]).max()) < -1


def test_ring_correlations_count_them_and_priors_and_form_slices_once(monkeypatch):
    bent = Bent(seeded_generator(), all_terms(seeded_generator()))
    counted, formed = [], GaussianMixture.slices
    monkeypatch.setattr(
        GaussianMixture, "slices", lambda *a, **k: counted.append(1) or formed(*a, **k)
    )
    bare = Bent(seeded_generator())
    with torch.no_grad():
        with seeded(1):
            found = RingCorrelation(3.0, first=1)(bent.model, bent.guide, bent.own, bent.batch())
        assert len(counted) == 1
        with seeded(1):
            other = RingCorrelation(3.0, first=1)(bare.model, bare.guide, bent.own, bent.batch())
        with seeded(1):
            poses = bent.guide.draw(bent.batch(), 1)
        each, _ = direct(bent, bent.own, poses.conformation)
        torch.testing.assert_close(found - other, each[0])
        bare.model.conformation.scale.mul_(2.0)
        with seeded(1):
            wide = RingCorrelation(3.0, first=1)(bare.model, bare.guide, bent.own, bent.batch())
    gain = poses.conformation[0].square().sum(1) * (1 - 1 / 4) / 2 - 2 * log(2)
    torch.testing.assert_close(wide - other, gain)  # two numbers of a normal prior, twice as wide


def test_iwae_of_one_draw_is_the_elbo_and_more_draws_are_no_worse(generator):
    """Burda et al. 2016, theorem 1, with terms: in the mean over draws."""
    bent = Bent(generator, all_terms(generator))
    values = []
    for objective in (Elbo(), Iwae(1), Iwae(4), Iwae(16)):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(2)
            each = [
                objective(bent.model, bent.guide, bent.own, bent.batch()).sum() for _ in range(60)
            ]
        values.append(torch.stack(each))
    torch.testing.assert_close(values[0], values[1])  # the same draws
    means = [float(value.mean()) for value in values[1:]]
    errors = [float(value.std()) / 60**0.5 for value in values[1:]]
    # four standard errors of the difference: 3e-5, one-sided
    for (low, high), pair in zip(
        zip(means, means[1:], strict=False), zip(errors, errors[1:], strict=False), strict=True
    ):
        assert high > low - 4 * (pair[0] ** 2 + pair[1] ** 2) ** 0.5
    assert means[2] > means[0] + 4 * (errors[0] + errors[2])  # these draws do gain


def test_the_volumes_prior_has_what_counts_once(generator):
    bent = Bent(generator, all_terms(generator))
    own = bent.volume.start(generator)
    _, once = direct(bent, own, bent.z)
    assert float(once) == 0  # amplitudes of 1: nothing is below zero
    own[3 * SITES : 4 * SITES] *= -1
    _, once = direct(bent, own, bent.z)
    assert float(once) < -1e-3
    wanted = bent.volume.prior().log_prob(own) + once
    torch.testing.assert_close(bent.model.log_prior_volume(own), wanted)
    assert off_grid(bent.model).log_prior_volume(own) == wanted


def test_gradients(generator):
    bent = Bent(generator, all_terms(generator))

    def value(own, z):
        each, once = direct(bent, own, z)
        return each.sum() + once

    leaves = bent.own.clone().requires_grad_(), bent.z.clone().requires_grad_()
    assert torch.autograd.gradcheck(value, leaves)


def test_training_raises_a_chains_bonds(generator):
    """Without images to speak of, the bonds go to their lengths."""
    start, end = [], []
    for terms in ([], [Bonds(PAIRS, 3.8, 0.01)]):
        bent = Bent(seeded_generator(), terms)
        bent.model.noise.sigma2.fill_(1e6)
        state = JointState(Half(bent.model, bent.guide, torch.arange(COUNT)))
        strain = Bonds(PAIRS, 3.8, 0.01)
        free = {"noise": False, "batch": COUNT, "radius": 3, "steps": 50, "volume_rate": 0.02}
        start.append(strain(bent.volume, bent.own, bent.z).mean().item())
        Joint(Elbo(), 1, **free).step(state, bent.stack)
        volume = bent.guide.volume.coefficients.detach()
        end.append(strain(bent.volume, volume, bent.z).mean().item())
    assert start[0] == start[1]
    assert end[1] > 0.2 * start[1]  # most of the strain is gone
    assert end[1] > 0.5 * end[0]  # the prior alone does not do that


def test_a_body_that_moves_as_one_keeps_its_bonds(generator):
    where = bead_chain(SITES, generator)
    turn, shift = random_rotations(1, generator, F64)[0], torch.randn(3, generator=generator)
    other = where @ turn.T + 5 * shift
    bent = torch.randn(SITES, 3, generator=generator, dtype=F64)
    volumes = [GaussianMixture(BOX, PIXEL, p, dtype=F64) for p in (where, other)]
    inside = bent, bent @ turn.T
    for term in (Bonds(PAIRS, 3.0), Deviation(where, 1.0, superpose=True)):
        values = [
            term(volume, (offset / volume.spread.view(-1, 3)).flatten())
            for volume, offset in zip(volumes, inside, strict=True)
        ]
        assert float(values[0]) < -1
        torch.testing.assert_close(*values)
    fixed = Deviation(where, 1.0)
    assert float(fixed(volumes[0], volumes[0].start(generator))) == 0
    assert float(fixed(volumes[1], volumes[1].start(generator))) < -1


def test_zero_at_the_base_and_at_z_0(generator):
    """A fresh network moves nothing; a trained one nothing at z = 0."""
    bent = Bent(generator)
    where, volume = bent.reference, bent.volume
    terms = Bonds(PAIRS, (where[1:] - where[:-1]).norm(dim=1)), Deviation(where, 1.0)
    for own, z in ((volume.start(generator), bent.z), (bent.own, 0 * bent.z)):
        if z.any():
            places = volume.sites(own, z)[0]
            torch.testing.assert_close(places, where.expand_as(places))
            for term in terms:
                # rounding of lengths of some A, squared, over sd^2
                assert float(term(volume, own, z).abs().max()) < 1e-20
        else:
            alone = GaussianMixture(
                BOX, PIXEL, where, 1.0, free=("positions", "amplitudes"), dtype=F64
            )
            neutral = alone.slices(own[: volume.own], bent.turns)
            torch.testing.assert_close(volume.slices(own, bent.turns, z), neutral)


def test_terms_where_there_is_no_conformation(generator):
    """They count once, whatever they are."""
    problem = make_problem(contrast=False).continuous()
    volume = GaussianMixture(BOX, 5.0, bead_chain(SITES, generator), 1.0, dtype=F64)
    old = problem.model
    parts = old.rotation, old.shift, old.noise, old.pixel_size
    model = ParticleModel(volume, *parts, terms=[Bonds(PAIRS, 3.0)])
    own = volume.start(generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        trace = poutine.trace(poutine.condition(model, {"volume": own})).get_trace(problem.batch)
    node = trace.nodes["bonds"]
    assert not node["cond_indep_stack"]
    torch.testing.assert_close(node["fn"].log_prob(node["value"]), model.terms[0](volume, own))
    two = torch.stack([own, own + 1])[:, None]
    assert model.terms[0](volume, two).shape == (2, 1)


def test_a_dirac_conformation_and_linear_modes(generator):
    """Terms do not ask what moves the sites, nor how z is treated."""
    bent = Bent(generator, [Bonds(PAIRS, 3.0)], DiracVector(2))
    modes = torch.randn(2, SITES, 3, generator=generator, dtype=F64)
    volume = GaussianMixture(
        BOX, PIXEL, bent.reference, displacement=LinearDisplacements(modes), dtype=F64
    )
    model = ParticleModel(
        volume,
        *(bent.model.rotation, bent.model.shift, bent.model.noise, PIXEL),
        conformation=bent.model.conformation,
        terms=bent.model.terms,
    )
    poses = bent.guide.draw(bent.batch(), 1)
    own = volume.start(generator)
    found = log_terms(model, bent.guide, own, poses, bent.batch())
    places = bent.reference + torch.einsum("nk,ksc->nsc", bent.z, modes)
    lengths = (places[:, 1:] - places[:, :-1]).norm(dim=-1)
    wanted = -((lengths - 3.0) ** 2).sum(1) / (2 * 0.1**2)
    normal = -(bent.z**2).sum(1) / 2 - log(2 * torch.pi)
    torch.testing.assert_close(found.potential, wanted[None])
    torch.testing.assert_close(model.log_potential(own, bent.z), wanted)
    torch.testing.assert_close(found.prior, normal[None])


def test_what_does_not_fit_is_refused(generator):
    problem = make_problem(contrast=False).continuous()
    old = problem.model
    parts = old.volume, old.rotation, old.shift, old.noise, old.pixel_size
    with pytest.raises(InputError, match="differ from each other"):
        ParticleModel(*parts, terms=[Positivity(1.0), Positivity(2.0)])
    with pytest.raises(InputError, match="differ from each other"):
        ParticleModel(*parts, terms=[Positivity(1.0, name="image")])
    with pytest.raises(InputError, match="a volume of Gaussians"):
        Bonds(PAIRS)(old.volume, problem.volume)
    with pytest.raises(InputError, match="a positive deviation"):
        Bonds(PAIRS, sd=0.0)
    with pytest.raises(InputError, match="closed-form"):
        _ = ParticleModel(*parts, terms=[Positivity(1.0)]).linear_volume
    positive = ParticleModel(*parts, terms=[Positivity(1.0)])
    assert float(positive.log_prior_volume(problem.volume)) < float(
        old.log_prior_volume(problem.volume)
    )
