"""Contrast and defocus summed out with the poses, beside sums over everything, term by term."""

from dataclasses import dataclass

import pytest
import torch
from imaged import F64, imaged_model, make_imaged
from problems import make_problem
from pyro.infer import TraceEnum_ELBO
from torch.distributions import Normal

from cryoprob.checks import InputError
from cryoprob.inference.amplitude_law import AmplitudeLaw, Amplitudes
from cryoprob.inference.dense import DenseGrid
from cryoprob.inference.e_step import e_step
from cryoprob.inference.guide import Guide
from cryoprob.inference.imaging import exact_imaging
from cryoprob.inference.imaging_e_step import imaging_e_step
from cryoprob.inference.laws.scalars import NormalScalar
from cryoprob.inference.treatments.conditional_gaussian import ConditionalGaussian
from cryoprob.inference.treatments.exact import Exact
from cryoprob.inference.treatments.gaussian_volume import GaussianVolume
from cryoprob.inference.treatments.known import Known
from cryoprob.inference.treatments.local import Local
from cryoprob.inference.treatments.per_image import PerImage
from cryoprob.inference.treatments.point import Point
from cryoprob.models.gaussian_contrast import GaussianContrast
from cryoprob.models.gaussian_defocus import GaussianDefocus
from cryoprob.models.particle_model import ParticleModel

CONTRAST, SCALE_A = 0.3, 1500.0
"""Where three zeros of the CTF move within a box of 10 A resolution."""


@dataclass
class Scene:
    """A problem whose model has latent contrasts, defoci, or both; on a grid, or at its poses."""

    problem: object
    model: ParticleModel

    @property
    def volume(self):
        return self.problem.volume

    def guide(self, rotation=None, shift=None, volume=None):
        poses = rotation or Exact(), shift or Exact()
        volume = volume or Point(self.volume)
        parts = exact_imaging(self.model)
        return Guide(rotation=poses[0], shift=poses[1], volume=volume, **parts)

    def known(self):
        """A guide at the poses of the particles."""
        stack = self.problem.stack
        return self.guide(Known(stack.rotation), Known(stack.shift))


SITES = {"contrast": (True, 0), "defocus": (False, 3), "both": (True, 3)}


def make_scene(which, **options):
    contrast, nodes = SITES[which]
    options = {"n": 3, "signal": 6.0, "contrast": not contrast} | options
    problem = make_problem(**options)
    old = problem.model
    parts = old.volume, old.rotation, old.shift, old.noise, old.pixel_size
    amplitude = GaussianContrast(CONTRAST, F64) if contrast else old.contrast
    defocus = GaussianDefocus(SCALE_A, nodes, F64) if nodes else None
    return Scene(problem, ParticleModel(*parts, amplitude, defocus=defocus))


class Oracle:
    """Every contrast of a fine line, node, shift and rotation, [K, J, T, Q, N], by ``log_prob``.

    At the given poses [K, J, 1, 1, N].
    """

    def __init__(self, scene, volume=None, known=False):
        model, batch, stack = scene.model, scene.problem.batch, scene.problem.stack
        turns, moves = stack.rotation, stack.shift
        prior = torch.zeros((), dtype=F64)
        if not known:
            turns, moves = model.rotation.matrices()[:, None], model.shift.points()[:, None, None]
            prior = model.shift.log_mass()[:, None, None] + model.rotation.log_mass
        self.contrast = self.defocus = torch.zeros(1, dtype=F64)
        values = {}
        if isinstance(model.contrast, GaussianContrast):
            # 12 standard deviations to either side in steps of a tenth of the narrowest posterior
            self.contrast = torch.linspace(-2.6, 4.6, 601, dtype=F64)
            step = float(self.contrast[1] - self.contrast[0])
            mass = Normal(torch.tensor(1.0, dtype=F64), CONTRAST).log_prob(self.contrast)
            prior = prior + (mass + torch.tensor(step).log())[:, None, None, None, None]
            values["contrast"] = self.contrast[:, None, None, None, None]
        if model.defocus is not None:
            self.defocus = model.defocus.points
            prior = prior + model.defocus.log_mass[:, None, None, None]
            values["defocus"] = self.defocus[:, None, None, None]
        at = scene.volume if volume is None else volume
        law = model.likelihood(at, turns, moves, batch, **values)
        joint = law.log_prob(batch.image) + prior
        self.joint = joint[(None,) * (5 - joint.dim())]
        self.evidence = self.joint.flatten(0, 3).logsumexp(0)
        self.weights = (self.joint - self.evidence).exp()

    def moments(self, dimension, values):
        """Posterior mean and deviation of values along a dimension, [N]."""
        others = [d for d in range(4) if d != dimension]
        weights = self.weights.sum(others)
        mean = values @ weights
        return mean, (values**2 @ weights - mean**2).clamp(min=0).sqrt()


def agrees(scene, found, known=False):
    """Evidence, posteriors and the sums of the M-step."""
    oracle = Oracle(scene, known=known)
    # float64; the contrast's line is exact to exp(-(pi / 0.1)^2 / 2)
    close = {"rtol": 1e-8, "atol": 1e-8}
    torch.testing.assert_close(found.summary.bound, oracle.evidence, **close)
    for dimension, site in enumerate(("contrast", "defocus")):
        mean, std = oracle.moments(dimension, getattr(oracle, site))
        if site not in scene.model.local_priors:
            assert not len(getattr(found.imaging, site))
            continue
        torch.testing.assert_close(getattr(found.imaging, site), mean, **close)
        # a difference of squares
        close_std = {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(getattr(found.imaging, f"{site}_std"), std, **close_std)
    if not known:
        shares = oracle.weights.sum((0, 1))  # [T, Q, N]
        shift = torch.einsum("tn,tx->nx", shares.sum(1), scene.model.shift.points())
        torch.testing.assert_close(found.summary.shift, shift, **close)
    sums_are_gradients(scene, found, known)


def sums_are_gradients(scene, found, known):
    """The gradient of the evidence is that of the expected log joint (Fisher's identity)."""
    volume = scene.volume.clone().requires_grad_()
    sigma2 = scene.model.noise.sigma2
    try:
        sigma2.requires_grad_()
        Oracle(scene, volume, known).evidence.sum().backward()
        slope = sigma2.grad
    finally:
        sigma2.requires_grad_(False)
        sigma2.grad = None
    sums = found.parts[0]
    equations = sums.insertion.equations()
    wanted = equations.right_side() - equations.apply(scene.volume)
    scale = float(wanted.abs().max())
    torch.testing.assert_close(volume.grad, wanted, rtol=1e-7, atol=1e-8 * scale)
    # d log p / d sigma2 = (residual / sigma2 - numbers) / (2 sigma2)
    numbers = scene.problem.batch.band.numbers_per_shell().to(sigma2)
    slopes = (sums.residual / sigma2 - sums.counts[:, None] * numbers) / (2 * sigma2)
    torch.testing.assert_close(slope, slopes, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("which", SITES)
def test_the_whole_grid(which):
    scene = make_scene(which)
    found = imaging_e_step(scene.model, scene.guide(), scene.problem.stack)
    agrees(scene, found)
    assert all(bool(part.isnan().all()) for part in (found.summary.cross, found.summary.energy))


@pytest.mark.parametrize("which", SITES)
def test_known_poses(which):
    scene = make_scene(which, n=5)
    found = imaging_e_step(scene.model, scene.known(), scene.problem.stack)
    agrees(scene, found, known=True)
    # nobody may regress on one amplitude: there is none, or none at one defocus
    assert all(bool(part.isnan().all()) for part in (found.summary.cross, found.summary.energy))


@pytest.mark.parametrize("which", SITES)
def test_a_search_that_keeps_everything(which):
    scene = make_scene(which, order=1, refine=1)
    whole = imaging_e_step(scene.model, scene.guide(), scene.problem.stack)
    exact = [Exact(1.0, coarse_order=0, least=10**6) for _ in "Rt"]
    found = imaging_e_step(scene.model, scene.guide(*exact), scene.problem.stack)
    same(found, whole)
    everywhere = Local(scene.problem.stack.rotation, 180.0), Local(scene.problem.stack.shift, 99.0)
    found = imaging_e_step(scene.model, scene.guide(*everywhere), scene.problem.stack)
    same(found, whole, 1e-3)  # a local search leaves 1e-4 of the mass out of the sums


def same(found, wanted, sums=1e-9):
    """Two E-steps give the same; the M-step's sums, and what is found with them, to ``sums``."""
    torch.testing.assert_close(found.summary.bound, wanted.summary.bound, rtol=1e-10, atol=1e-9)
    for name in ("contrast", "contrast_std", "defocus", "defocus_std"):
        one, other = (getattr(part.imaging, name) for part in (found, wanted))
        torch.testing.assert_close(one, other, rtol=max(sums, 1e-7), atol=1e-7)
    for name in ("rotation", "shift", "entropy", "probability"):
        one, other = (getattr(part.summary, name) for part in (found, wanted))
        torch.testing.assert_close(one, other, rtol=sums, atol=max(sums, 1e-8))
    one, other = (part.parts[0].insertion.equations().right_side() for part in (found, wanted))
    torch.testing.assert_close(one, other, rtol=sums, atol=sums * float(other.abs().max()))
    torch.testing.assert_close(
        found.parts[0].residual, wanted.parts[0].residual, rtol=sums, atol=0
    )


def test_the_nodes_of_the_defocus_are_those_that_pyro_enumerates():
    scene = make_scene("defocus")
    guide = scene.guide()
    found = imaging_e_step(scene.model, guide, scene.problem.stack)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(scene.model, guide, scene.problem.batch)
    wanted = -loss - float(scene.model.volume.prior().log_prob(scene.volume))
    assert float(found.summary.bound.sum()) == pytest.approx(wanted, abs=1e-8)


def test_narrow_priors_are_given_values():
    """Contrasts of 1 +- 1e-5 and defoci of +- 1e-3 A are as good as known."""
    scene = make_scene("both")
    scene.model.contrast.scale.fill_(1e-5)
    scene.model.defocus.points.mul_(1e-3 / SCALE_A)
    found = imaging_e_step(scene.model, scene.guide(), scene.problem.stack)
    given = scene.model.as_given()
    alone = Guide(rotation=Exact(), shift=Exact(), volume=Point(scene.volume))
    wanted = e_step(given, alone, scene.problem.stack)
    # to first order nothing changes; to second 1e-10 of an energy of some thousand
    torch.testing.assert_close(found.summary.bound, wanted.summary.bound, rtol=0, atol=1e-5)
    entropy = found.summary.entropy, wanted.summary.entropy
    torch.testing.assert_close(*entropy, rtol=0, atol=1e-5)


def test_a_law_of_maps():
    """The bound under q of the map: sums over exp of the mean log joint."""
    scene = make_scene("both")
    q = GaussianVolume(scene.volume, torch.full_like(scene.volume, 0.01))
    stack = scene.problem.stack
    grid = imaging_e_step(scene.model, scene.guide(volume=q), stack)
    tight = imaging_e_step(scene.model, scene.guide(), stack)
    lost = (tight.summary.bound - grid.summary.bound).min()
    assert float(lost) > 0.01
    rotation, shift = Known(stack.rotation), Known(stack.shift)
    known = imaging_e_step(scene.model, scene.guide(rotation, shift, q), stack)
    # beside the oracle at one pose: energies larger by the slices' variance
    oracle, at = Oracle(scene, known=True), scene.model
    values = {"contrast": oracle.contrast[:, None, None], "defocus": oracle.defocus[:, None]}
    batch = scene.problem.batch
    law = at.likelihood(scene.volume, stack.rotation, stack.shift, batch, **values)
    variance = q.maps.slice_variance(at.volume.slicer, stack.rotation)
    joint = oracle.joint[:, :, 0, 0] - law.log_prob_lost(variance)
    wanted = joint.flatten(0, 1).logsumexp(0)
    torch.testing.assert_close(known.summary.bound, wanted, rtol=1e-8, atol=1e-8)


def test_single_precision_at_strong_signals():
    """No cancellation: contrast known to a thousandth of its prior."""
    law = AmplitudeLaw(0.3**2)
    energy = torch.tensor([0.0, 1.0, 1e4, 1e6], dtype=F64)
    cross = energy * torch.tensor([1.0, 1.3, 0.8, 1.02], dtype=F64)
    value, found = law.summed(cross, energy)
    single, other = law.summed(cross.float(), energy.float())
    # eight digits of the largest number in it
    torch.testing.assert_close(single.double(), value, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(other.mean.double(), found.mean, rtol=1e-5, atol=1e-6)
    assert float(found.mean[0]) == 1 and float(found.variance[0]) == pytest.approx(0.09)


@pytest.mark.parametrize("power", [1e7, 1e8])
def test_single_precision_knows_how_sure_a_contrast_is(power):
    """At 3 and 1 in ten thousand of it; a mean square less a squared mean has 4 digits, or none."""
    imaged = make_imaged(power=power, spread=CONTRAST)
    found = []
    for kind in (F64, torch.float32):
        model = imaged_model(16, imaged.model.contrast).to(kind)
        parts = (Known(value.to(kind)) for value in imaged.poses)
        poses = dict(zip(("rotation", "shift"), parts, strict=True))
        guide = Guide(**poses, **exact_imaging(model), volume=Point(imaged.volume.to(kind)))
        found.append(imaging_e_step(model, guide, imaged.stack).imaging.contrast_std)
    torch.testing.assert_close(found[1], found[0], rtol=0.01, atol=0)


def test_single_precision_where_poses_are_summed_out():
    """Weights of 1 and rounding at two poses of 1e7, one a standard deviation beside the other."""
    weights = torch.tensor([[[0.7, 0.3]], [[0.1, 0.9]]])
    mean = torch.tensor([[[0.8, 0.8003]], [[1.3, 1.3003]]])
    variance = torch.tensor([[[1e-7, 1.1e-7]], [[1e-7, 1.1e-7]]])
    mass, first, square = Amplitudes(mean, variance).moments(weights)
    share = weights.double() / weights.double().sum(2, keepdim=True)
    center = (share * mean).sum(2, keepdim=True)
    wanted = (share * ((mean - center) ** 2 + variance)).sum((1, 2))
    found = square / mass - (first / mass) ** 2
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=0)
    torch.testing.assert_close(1 + first / mass, center[:, 0, 0], rtol=1e-7, atol=0)


def test_blocks_are_as_large_as_they_are_told(monkeypatch):
    """Scores of all nodes at once, with what is held beside them."""
    scene, sizes = make_scene("both"), []
    cells = len(scene.model.rotation.matrices()) * len(scene.model.shift.points())
    plain = DenseGrid.posterior

    def noted(grid, images):
        sizes.append(len(images))
        found = plain(grid, images)
        assert found.logits.shape[1:].numel() == cells
        return found

    monkeypatch.setattr(DenseGrid, "posterior", noted)
    exact = [Exact(block_bytes=5 * 4 * cells * 3) for _ in "Rt"]
    imaging_e_step(scene.model, scene.guide(*exact), scene.problem.stack)
    assert sizes == [1] * 9  # three images at three nodes


def test_what_is_refused():
    scene = make_scene("both")
    stack = scene.problem.stack
    law = PerImage(NormalScalar(0.1), torch.ones(3, dtype=F64))
    parts = {"rotation": Exact(), "shift": Exact(), "volume": Point(scene.volume)}
    laws = Guide(**parts, contrast=law, defocus=Known(torch.zeros(3, dtype=F64)))
    with pytest.raises(InputError, match="contrast ConditionalGaussian, defocus Exact.*PerImage"):
        imaging_e_step(scene.model, laws, stack)
    mixed = Guide(**parts, contrast=ConditionalGaussian(), defocus=Known(torch.zeros(3)))
    with pytest.raises(InputError, match="defocus Known"):
        imaging_e_step(scene.model, mixed, stack)
    beside = Guide(**parts, contrast=law, defocus=Exact())
    with pytest.raises(InputError, match="got.*contrast PerImage, defocus Exact"):
        imaging_e_step(scene.model, beside, stack)
    law = PerImage(NormalScalar(100.0), torch.zeros(3, dtype=F64))
    line = make_scene("both").model
    line.defocus = GaussianDefocus(SCALE_A, dtype=F64)
    beside = Guide(**parts, contrast=ConditionalGaussian(), defocus=law)
    with pytest.raises(InputError, match="got.*contrast ConditionalGaussian, defocus PerImage"):
        imaging_e_step(line, beside, stack)
    with pytest.raises(InputError, match="contrast and defocus: expected known.*imaging_e_step"):
        e_step(scene.model, scene.guide(), stack)
