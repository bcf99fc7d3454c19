"""Exact poses with a q of the conformation: Pyro's own value, and bounds."""

from dataclasses import replace

import pytest
import torch
from problems import make_problem, some_map
from pyro.infer import TraceEnum_ELBO

from cryoprob.checks import InputError
from cryoprob.inference.guide import Guide
from cryoprob.inference.laws.vectors import DiracVector, NormalVector
from cryoprob.inference.learn import seeded
from cryoprob.inference.objectives.summed_poses import SummedPoses
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.models.conformations.gaussian import GaussianConformation
from cryoprob.models.gaussian_defocus import GaussianDefocus
from cryoprob.models.particle_model import ParticleModel
from cryoprob.models.structure_factors import Deviation
from cryoprob.models.volumes.displacements import LinearDisplacements
from cryoprob.models.volumes.gaussian_mixture import GaussianMixture
from cryoprob.models.volumes.linear_modes import LinearModes

F64 = torch.float64


@pytest.fixture(scope="module")
def moving():
    """A problem whose map has one mode; its guide is a normal law of z for every image."""
    problem = make_problem(n=3, contrast=False)
    old, box = problem.model, problem.stack.box
    mode = some_map(box, torch.Generator().manual_seed(5))
    volume = LinearModes(box, 1, 0.5, 0.5, dtype=F64)
    prior = GaussianConformation(torch.ones(1, dtype=F64))
    parts = old.rotation, old.shift, old.noise, old.pixel_size, old.contrast
    model = ParticleModel(volume, *parts, prior)
    point = Point(torch.stack([problem.volume, mode]))
    return problem, model, point


def guide_of(point, law, places):
    state = PerImage(law, torch.tensor(places, dtype=F64)[:, None])
    return Guide(rotation=Exact(), shift=Exact(), conformation=state, volume=point)


def test_it_is_pyros(moving):
    """TraceEnum_ELBO on the unmodified model and guide, within Monte Carlo error of both."""
    problem, model, point = moving
    guide = guide_of(point, NormalVector(1, width=0.3), [0.2, -0.4, 1.0])
    assert guide.kind == "elbo"
    volume = point.coefficients.detach()
    with seeded(1), torch.no_grad():
        ours = SummedPoses(600)(model, guide, volume, problem.batch).sum()
        parts = SummedPoses(100)(model, guide, volume, problem.batch)
    elbo, prior = TraceEnum_ELBO(max_plate_nesting=1), model.volume.prior().log_prob(volume)
    with seeded(2), torch.no_grad():
        loss = [-elbo.loss(model, guide, problem.batch) - float(prior) for _ in range(300)]
    theirs = torch.tensor(loss, dtype=F64)
    error = float(theirs.std() / 300**0.5) * (1 + 0.5**0.5)
    assert parts.shape == (3,)
    assert abs(float(ours - theirs.mean())) < 4.5 * error


def test_it_is_pyros_with_terms(moving):
    """At the same draws of z a term as it is, and in all what Pyro counts."""
    problem, old, _ = moving
    box, generator = problem.stack.box, torch.Generator().manual_seed(0)
    where = 6 * torch.randn(4, 3, generator=generator, dtype=F64)
    modes = 2 * torch.randn(1, 4, 3, generator=generator, dtype=F64)
    moves = LinearDisplacements(modes)
    volume = GaussianMixture(box, old.pixel_size, where, 5.0, displacement=moves, dtype=F64)
    parts = old.rotation, old.shift, old.noise, old.pixel_size, old.contrast, old.conformation
    own = volume.start(generator)
    guide = guide_of(Point(own), NormalVector(1, width=0.3), [0.5, -1.0, 1.5])
    elbo, prior, theirs = TraceEnum_ELBO(max_plate_nesting=1), volume.prior().log_prob(own), []
    found = []
    for terms in ([], [Deviation(where, 1.0)]):
        model = ParticleModel(volume, *parts, terms)
        with seeded(1), torch.no_grad():
            found.append(SummedPoses(40)(model, guide, own, problem.batch))
            theirs += [-elbo.loss(model, guide, problem.batch) - float(prior) for _ in range(40)]
    with seeded(1):
        z = guide.conformation.draw(problem.batch, 40).value.detach()
    wanted = -z.square().sum(-1).mean(0) * modes.square().sum() / 2
    torch.testing.assert_close(found[1] - found[0], wanted)
    theirs = torch.tensor(theirs[40:], dtype=F64)
    # three images' variance of a term, 40 draws each of theirs and of ours
    error = float(theirs.std() / 40**0.5) * 2**0.5
    assert abs(float(found[1].sum() - theirs.mean())) < 4.5 * error
    assert float(wanted.sum()) < -5 * error  # it would be seen if it were left out


def test_it_bounds_the_evidence_and_touches_it(moving):
    """Quadrature over z of the sum over poses: above every q's bound; near it for the best q."""
    problem, model, point = moving
    volume = point.coefficients.detach()
    nodes = torch.linspace(-6, 6, 241, dtype=F64)
    at = []
    for z in nodes.tolist():
        narrow = guide_of(point, NormalVector(1, width=1e-9, fixed=True), [z] * 3)
        narrow.conformation.draw = lambda batch, count, z=z: _at(z, len(batch))
        at.append(SummedPoses()(model, narrow, volume, problem.batch))
    log_joint = torch.stack(at).detach()  # log p(x, z) on the nodes
    evidence = torch.logsumexp(log_joint, 0) + torch.log(nodes[1] - nodes[0])
    weight = torch.softmax(log_joint, 0)
    mean = (weight * nodes[:, None]).sum(0)
    width = ((weight * (nodes[:, None] - mean) ** 2).sum(0)).sqrt()
    poor = guide_of(point, NormalVector(1, width=0.3), [2.0, -2.0, 2.0])
    good = guide_of(point, NormalVector(1), [0.0] * 3)
    numbers = good.conformation.law.around(mean[:, None], (width**2)[:, None, None])
    good.conformation.numbers.data = numbers
    with seeded(3), torch.no_grad():
        found = {
            name: SummedPoses(2000)(model, guide, volume, problem.batch)
            for name, guide in (("poor", poor), ("good", good))
        }
    # 2000 draws of less than a nat each: 0.02 a standard deviation
    assert (found["poor"] < found["good"]).all() and (found["good"] < evidence + 0.1).all()
    assert (evidence - found["good"] < 0.5).all()


def _at(z, count):
    """A draw at z of weight 1, whose own density does not count."""
    from cryoprob.inference.laws.base import Draws

    return Draws.at(torch.full((count, 1), z, dtype=F64))


def test_other_guides_are_refused(moving):
    problem, model, point = moving
    volume = point.coefficients.detach()
    dirac = guide_of(point, DiracVector(1), [0.0] * 3)
    poses = Known(problem.stack.rotation), Known(problem.stack.shift)
    state = PerImage(NormalVector(1), torch.zeros(3, 1, dtype=F64))
    known = Guide(rotation=poses[0], shift=poses[1], conformation=state, volume=point)
    for guide in (dirac, known):
        with pytest.raises(InputError, match="Exact poses"):
            SummedPoses()(model, guide, volume, problem.batch)


def test_the_defocus_is_summed_out_along_with_the_poses(moving):
    """At the same draws of z: as the sum over particles whose own defocus is shifted."""
    problem, old, point = moving
    prior = GaussianDefocus(1500.0, 3, F64)
    parts = old.volume, old.rotation, old.shift, old.noise, old.pixel_size, old.contrast
    model = ParticleModel(*parts, old.conformation, defocus=prior)
    guide = guide_of(point, NormalVector(1, width=0.3), [0.2, -0.4, 1.0])
    volume, each = point.coefficients.detach(), []
    with torch.no_grad():
        for node in prior.points:
            optics = problem.stack.optics.defocused(node.expand(3))
            moved = replace(problem, stack=replace(problem.stack, optics=optics))
            with seeded(1):
                each.append(SummedPoses(1)(old, guide, volume, moved.batch))
        wanted = torch.logsumexp(torch.stack(each) + prior.log_mass[:, None], 0)
        parts = {"rotation": Exact(), "shift": Exact(), "volume": point, "defocus": Exact()}
        summed = Guide(**parts, conformation=guide.conformation)
        with seeded(1):
            found = SummedPoses(1)(model, summed, volume, problem.batch)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-8)  # float64, hundred nats
    assert float((torch.stack(each).amax(0) - found).abs().max()) > 0.01  # more than one counts
