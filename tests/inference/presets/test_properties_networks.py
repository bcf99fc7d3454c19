"""Checkable properties of presets that search or read poses for a network's volume."""

from dataclasses import replace
from functools import cache
from tempfile import TemporaryDirectory

import pytest
import torch
from scenes import assembled, everything, plan_of

from cryoprob.fourier.bands import full_band
from cryoprob.geometry.grids import RotationGrid
from cryoprob.geometry.rotations import angle_between, random_rotations
from cryoprob.inference.alternating import search_poses
from cryoprob.inference.candidates import Keep
from cryoprob.inference.dense import DenseGrid
from cryoprob.inference.filtered import filter_images
from cryoprob.inference.grids import on_grid, pose_grids
from cryoprob.inference.levels import Level
from cryoprob.inference.objectives.profile_log_joint import ProfileLogJoint
from cryoprob.inference.objectives.symmetric import Symmetric
from cryoprob.inference.pruned import PrunedPass
from cryoprob.inference.search import best_poses, candidates
from cryoprob.inference.treatments.modal import Modal
from cryoprob.inference.voxel_model import voxel_model
from cryoprob.io.mrc import write_map
from cryoprob.models.image_likelihood import shift_phase
from cryoprob.models.volumes.gaussian_mixture import GaussianMixture
from cryoprob.models.volumes.linear_modes import LinearModes
from cryoprob.particles import ParticleStack

F64 = torch.float64
BOX, PIXEL = 12, 6.0
SMALL = {
    "zdim": 0,
    "coarse_order": 0,
    "max_order": 1,
    "shift_extent": 2.0,
    "width": 16,
    "layers": 1,
}
"""576 rotations from 72, 21 shifts from 5 or so; one map."""


def blank(count):
    noise = torch.randn(count, BOX, BOX, generator=torch.Generator().manual_seed(1))
    return ParticleStack.from_arrays(noise.double(), PIXEL)


class Searched:
    """A preset that searches poses, at its network's first map; images of poses of its grids.

    Truths are drawn from the prior on the grids, and images from the model.
    """

    def __init__(self, name, snr, count, *, noise=True):
        self.plan, self.count = plan_of(name, **SMALL), count
        self.built = assembled(blank(count), name, **SMALL)
        self.half, self.modal = self.built.half, self.built.algorithm.modal
        network = self.half.model.volume
        network.set_band(3)  # which cells of 60 degrees can tell something of
        self.density = network.density(self.half.guide.volume.coefficients.detach())
        model = voxel_model(self.half.model, self.density)
        self.model = on_grid(model, *pose_grids(model, self.plan, 1, seed=5))
        generator = torch.Generator().manual_seed(7)
        turns, moves = self.model.rotation.matrices(), self.model.shift.points()
        self.cell = torch.randint(len(turns), (count,), generator=generator)
        mass = self.model.shift.log_mass().exp()
        self.move = torch.multinomial(mass, count, replacement=True, generator=generator)
        self.rotation, self.shift = turns[self.cell], moves[self.move]
        slices = model.volume.slices(self.density, self.rotation)
        clean = model.band.unpack(slices * shift_phase(model.band, self.shift, PIXEL))
        self.half.model.noise.sigma2.fill_(float(clean.var()) / snr)
        drawn = torch.randn(count, BOX, BOX, generator=generator, dtype=F64)
        images = clean + noise * (clean.var() / snr).sqrt() * drawn
        self.stack = ParticleStack.from_arrays(images, PIXEL)
        self.images = filter_images(self.model, self.stack, torch.arange(count))

    def whole(self):
        """The best poses of the whole grid: log joint over noise, rotation, shift."""
        return best_poses(self.model, self.density, Modal(), self.images)


def test_cryodrgn_bnb_finds_the_poses_of_noiseless_images():
    """By the preset's own search, at the network's own map, on the finest grid."""
    found = Searched("cryodrgn-bnb", 1e4, 20, noise=False)
    search_poses(found.half, found.stack, found.plan, found.modal, seed=5, states=16)
    turns, moves = (part.mode(everything(found.stack)) for part in found.half.guide.drawn)
    assert found.modal.bound is not None and len(found.model.rotation.cells()) == 576
    for wanted in ((found.rotation, found.shift), found.whole()[1:]):
        torch.testing.assert_close(turns, wanted[0])  # points of one grid, as six numbers
        torch.testing.assert_close(moves, wanted[1])


def kept(found):
    """Mask [n, T, Q] of the fine poses that the preset's beam looks at, and the candidates."""
    keep = Keep(0.0, found.modal.beam, max(1, found.modal.beam // 2))
    size = found.modal.block_bytes
    coarse = candidates(found.model, found.density, found.images, keep, 0, size)
    turns = torch.zeros(found.count, 576, dtype=torch.bool)
    turns[coarse.row[:, None], RotationGrid(0).children(coarse.cell)] = True
    grid = found.model.shift.grid
    parents = grid.parent(torch.arange(len(grid)))
    moves = (parents[None, :, None] == coarse.shift[:, None]).any(2)
    return moves[:, :, None] & turns[:, None], coarse


def test_cryodrgn2s_beam_keeps_the_truth_as_often_as_its_mass_says():
    """Where images are drawn from the model, P(truth kept) is the mean posterior mass kept."""
    found = Searched("cryodrgn2", 0.3, 400)
    mask, coarse = kept(found)
    posterior = DenseGrid.of(found.model, found.density).posterior(found.images)
    mass = (posterior.weights * mask).sum((1, 2))
    size = found.modal.block_bytes
    problem = found.model, found.density, Level.of(found.model), found.images
    seen = PrunedPass(*problem, coarse, size)
    seen.scan(Keep(1.0))
    # what the evidence falls short by is the mass outside; rounding of some 100 nats
    lost = posterior.log_evidence - seen.log_evidence
    torch.testing.assert_close(lost, -mass.log(), rtol=1e-6, atol=1e-8)
    truth = mask[torch.arange(found.count), found.move, found.cell].double()
    error = (mass * (1 - mass)).sum().sqrt() / found.count
    assert abs(float(truth.mean() - mass.mean())) < 4 * float(error)
    # and its best pose is the best that it looks at: the whole grid's where that is kept
    value, turn, move = best_poses(found.model, found.density, found.modal, found.images)
    logits = posterior.logits.masked_fill(~mask, -torch.inf).flatten(1)
    torch.testing.assert_close(value, logits.amax(1))
    inside = mask.flatten(1).gather(1, posterior.logits.flatten(1).argmax(1)[:, None])[:, 0]
    _, turns, moves = found.whole()
    same = turn.isclose(turns).flatten(1).all(1) & move.isclose(moves).all(1)
    assert same.equal(inside) and 0.1 < float(inside.double().mean()) < 0.9  # both are seen


SIDE = 8
BEADS = torch.tensor([[10.0, 2, 0], [-7, 6, 1], [-2, -8, 5], [1, 3, -9]], dtype=F64)
"""A, of unlike weights: no two views are alike."""


def beads(offset=0.0):
    """A map [8, 8, 8]; the last bead moved along y."""
    places = BEADS + torch.tensor([[0.0, 0, 0]] * 3 + [[0, offset, 0]], dtype=F64)
    heights = torch.tensor([1.0, 0.8, 0.6, 0.5], dtype=F64)
    volume = GaussianMixture(SIDE, PIXEL, places, heights, 0.9 * PIXEL, dtype=F64)
    return volume.density(volume.start(torch.Generator()))


def near(count, generator):
    """Views uniform within 60 degrees of where the presets' encoders start (of seed 1)."""
    start = random_rotations(1, torch.Generator().manual_seed(1), F64)
    drawn = random_rotations(40 * count, generator, F64)
    close = angle_between(drawn, torch.eye(3, dtype=F64)) < 60
    return start @ drawn[close][:count]


def pictures(components, rotation, z):
    """Noiseless images [N, 8, 8] of ``V_0 + z V_1`` at zero shift, of variance 1, and the factor."""
    volume = LinearModes(SIDE, 1, dtype=F64)
    clean = volume.band.unpack(volume.slices(components, rotation, z))
    factor = 1 / clean.std()
    return clean * factor, factor


def test_cryoposenets_encoder_learns_the_poses_of_a_map_that_is_held():
    """Within 60 degrees of its start; from all views it ends in mirrored ones, as the paper's."""
    generator = torch.Generator().manual_seed(3)
    turns, truth = near(300, generator), beads()
    images, factor = pictures(torch.stack([truth, truth]), turns, torch.zeros(300, 1, dtype=F64))
    stack = ParticleStack.from_arrays(images, PIXEL)
    small = {"width": 64, "batch": 32, "epochs": 40.0, "learn_rate": 2e-3}
    built = assembled(stack, "cryoposenet", dtype=torch.float32, **small)
    guide, errors = built.half.guide, []
    guide.volume.coefficients.data.copy_(truth * factor)
    algorithm = replace(built.algorithm, held={"volume": 1.0})
    while True:
        guide.forget()
        with torch.no_grad():
            found = guide.rotation.mode(everything(stack, torch.float32)).double()
        errors.append(float(angle_between(found, turns).median()))
        if built.state.done:
            break
        algorithm.step(built.state, stack)
    assert guide.volume.coefficients.detach().equal((truth * factor).float())
    # the paper's bar; untrained it is that of views at random
    assert errors[0] > 35 and errors[-1] < 10


def test_cryoposenets_rotations_are_proper_and_their_slopes_those_of_differences():
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(5, SIDE, SIDE, generator=generator, dtype=F64)
    stack = ParticleStack.from_arrays(images, PIXEL)
    half = assembled(stack, "cryoposenet", width=8).half
    half.guide.volume.coefficients.data.copy_(beads() / beads().std())
    batch, bias = everything(stack), half.guide.rotation.head.bias
    turns = half.guide.rotation.mode(batch).detach()
    one = torch.eye(3, dtype=F64).expand_as(turns)
    torch.testing.assert_close(turns @ turns.mT, one, rtol=0, atol=1e-12)  # the paper's is 1e-6
    torch.testing.assert_close(torch.linalg.det(turns), torch.ones(5, dtype=F64))

    def value():
        half.guide.forget()
        point = half.guide.volume.coefficients.detach()
        return ProfileLogJoint()(half.model, half.guide, point, batch).sum()

    value().backward()
    slopes = []
    for k in range(6):
        ends = []
        for step in (1e-5, -1e-5):
            bias.data[k] += step
            ends.append(float(value().detach()))
            bias.data[k] -= step
        slopes.append((ends[0] - ends[1]) / 2e-5)
    # linear interpolation has kinks; none of them lies within 1e-5 here
    wanted = torch.tensor(slopes, dtype=F64)
    torch.testing.assert_close(bias.grad, wanted, rtol=1e-4, atol=1e-4 * float(wanted.norm()))
    assert float(wanted.norm()) > 0.1


@pytest.mark.parametrize("name", ["cryoai", "cryofire"])
def test_the_symmetric_loss_is_the_better_of_an_image_and_its_half_turn(name):
    images = torch.randn(12, SIDE, SIDE, generator=torch.Generator().manual_seed(4), dtype=F64)
    stack = ParticleStack.from_arrays(images, PIXEL)
    built = assembled(
        stack, name, width=8, layers=1, **({"zdim": 2} if name == "cryofire" else {})
    )
    half, batch = built.half, everything(stack)
    objective, point = built.algorithm.objective, half.guide.volume.coefficients.detach()

    def value(objective, batch):
        with torch.no_grad():
            return objective(half.model, half.guide, point, batch)

    assert isinstance(objective, Symmetric)
    found, plain = value(objective, batch), value(ProfileLogJoint(), batch)
    assert (found >= plain).all() and (found > plain + 1e-3).any()
    turned_back = replace(
        batch, image=full_band(SIDE).pack(images.roll((-1, -1), (1, 2)).flip(1, 2))
    )
    torch.testing.assert_close(turned_back.image, batch.image.conj(), rtol=0, atol=1e-9)
    torch.testing.assert_close(value(objective, turned_back), found, rtol=1e-9, atol=1e-9)
    smooth = value(Symmetric(smooth=True), batch)
    assert (smooth <= found + 1e-9).all() and (smooth >= found - 0.694).all()  # log 2


TRAIN, HELD_OUT = 600, 300


@cache
def cryofire():
    """A trained encoder, from a reference; images of a moving bead, their poses and z; errors.

    z is independent of the pose. Errors are mean squares of what the encoder's poses and z give,
    against noiseless images of variance 1: before the training and after it, of the images
    trained on and of others.
    """
    generator = torch.Generator().manual_seed(3)
    turns = near(TRAIN + HELD_OUT, generator)
    z = torch.randn(len(turns), 1, generator=generator, dtype=F64)
    components = torch.stack([beads(), (beads(8.0) - beads()) / 2])
    clean, factor = pictures(components, turns, z)
    images = clean + 0.1 * torch.randn(clean.shape, generator=generator, dtype=F64)
    stack = ParticleStack.from_arrays(images, PIXEL)
    small = {"zdim": 1, "width": 64, "layers": 1, "batch": 32, "epochs": 16.0, "learn_rate": 2e-3}
    with TemporaryDirectory() as folder:
        write_map(f"{folder}/map.mrc", (factor * beads()).float(), PIXEL)
        train, settings = stack.subset(torch.arange(TRAIN)), small | {"shift_extent": 1.0}
        built = assembled(
            train, "cryofire", [f"{folder}/map.mrc"], dtype=torch.float32, **settings
        )
        built.begin()
    before = seen_by(built, stack, clean)[0]
    while not built.state.done:
        built.algorithm.step(built.state, train)
    after, states = seen_by(built, stack, clean)
    return turns, z, states, before, after


def seen_by(built, stack, clean):
    """Mean squared error of images trained on, and of others; z of all."""
    model, guide, batch = built.half.model, built.half.guide, everything(stack, torch.float32)
    guide.forget()
    with torch.no_grad():
        found = guide.draw(batch, 1)
        poses = found.rotation[0], found.shift[0], batch, found.conformation[0]
        mean = model.likelihood(guide.volume.coefficients, *poses).mean
    guide.forget()
    error = (full_band(SIDE).unpack(mean) - clean).square().mean((1, 2))
    errors = [float(part.mean()) for part in error.split([TRAIN, HELD_OUT])]
    return errors, found.conformation[0].double()


def test_cryofires_encoder_knows_images_it_was_not_trained_on():
    *_, before, after = cryofire()
    assert after[0] < 0.7 * before[0]  # it has learned something
    # the system's bar is 1.5; here 600 images give 0.99, 16 images trained on for longer 1.18
    assert after[1] < 1.1 * after[0]


def tells(turns, z):
    """Chance that a linear probe explains z [n, 1] by turns as well, if they are independent."""
    count, draws = len(z), 19999
    design = torch.cat([torch.ones(count, 1, dtype=F64), turns.flatten(1)], 1)
    basis, away = torch.linalg.qr(design)[0], z[:, 0] - z.mean()
    generator = torch.Generator().manual_seed(5)
    shuffled = torch.rand(draws, count, generator=generator).argsort(1)
    found = (away @ basis).square().sum()
    chance = (away[shuffled] @ basis).square().sum(1)
    return float((1 + (chance >= found).sum()) / (1 + draws))


def test_the_probe_tells_what_is_apart_from_the_pose_and_what_is_not(false_alarm):
    turns, z, *_ = cryofire()
    assert tells(turns[TRAIN:], z[TRAIN:]) > false_alarm
    mixed = z + 1.5 * turns[:, :1, 0]
    assert tells(turns[TRAIN:], mixed[TRAIN:]) < false_alarm


@pytest.mark.xfail(strict=True, reason="a known weakness of the system: z encodes the pose")
def test_cryofires_z_is_apart_from_the_pose(false_alarm):
    """Measured after this short training: three quarters of z's variance are linear in R.

    A fresh encoder's features tell of the view more than of anything else, and little in the loss
    takes that out of z.
    """
    turns, _, states, *_ = cryofire()
    assert tells(turns[TRAIN:], states[TRAIN:]) > false_alarm
