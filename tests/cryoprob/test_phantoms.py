"""Phantoms: they fit, are non-negative, repeat with the generator, and have a hand."""

import pytest
import torch

from cryoprob.checks import InputError
from cryoprob.fourier.transforms import crop_map
from cryoprob.gaussians import gaussian_density
from cryoprob.geometry.rotations import random_rotations
from cryoprob.phantoms import PHANTOMS, RADIUS, bead_walk, blobs, mirror_correlation

BOX, PIXEL = 32, 4.0  # 128 A: adenylate kinase fits as well


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def grid(box):
    k = torch.arange(box).double() - box // 2
    return torch.meshgrid(k, k, k, indexing="ij")


def some_beads(seed, n=8):
    g = seeded(seed)
    positions = torch.randn(n, 3, generator=g, dtype=torch.float64) * 14
    weights = 0.5 + torch.rand(n, generator=g, dtype=torch.float64)
    return positions, weights, 20 + 20 * torch.rand(n, generator=g, dtype=torch.float64)


def map_correlation(first, second):
    return float(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1])


@pytest.mark.parametrize("name", PHANTOMS)
def test_phantoms_are_positive_centered_and_fit(name):
    for seed in (0, 1):
        map_ = PHANTOMS[name](BOX, PIXEL, seeded(seed)).double()
        z, y, x = grid(BOX)
        assert map_.shape == (BOX, BOX, BOX)
        assert float(map_.min()) >= 0
        assert 0.5 < float(map_.max()) < 3
        outside = (z**2 + y**2 + x**2).sqrt() > RADIUS * BOX
        # beads reach to two sd of the ball's edge: 2.3 % of a bead's mass at the edge, less inside
        assert float(map_[outside].sum() / map_.sum()) < 0.01
        offset = torch.stack([(map_ * axis).sum() for axis in (z, y, x)]) / map_.sum()
        # the open form is in the frame of the closed one: 1.5 A off
        assert float(offset.norm()) < (0.5 if name == "adk-open" else 1e-3)


@pytest.mark.parametrize("name", ["bead-walk", "blobs"])
def test_drawn_phantoms_repeat_with_the_generator(name):
    first, again, other = (PHANTOMS[name](BOX, PIXEL, seeded(s)) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert map_correlation(first, other) < 0.95


def test_phantoms_do_not_touch_the_global_random_state():
    before = torch.random.get_rng_state()
    for make in PHANTOMS.values():
        make(16, 6.0, seeded(0))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("name", PHANTOMS)
def test_phantoms_scale_with_the_pixel(name):
    """The molecule is made in units of the box, or in A: the map keeps its values or its size."""
    coarse, fine = (PHANTOMS[name](BOX, p, seeded(2)).double() for p in (PIXEL, PIXEL / 2 * 1.9))
    if name.startswith("adk"):
        total = [float(m.sum()) * p**3 for m, p in ((coarse, PIXEL), (fine, PIXEL / 2 * 1.9))]
        assert total[0] == pytest.approx(total[1], rel=1e-5)
    else:
        torch.testing.assert_close(coarse, fine, rtol=1e-4, atol=1e-5)


def test_mirror_correlation_is_one_for_what_lies_in_a_plane():
    positions, weights, variances = some_beads(1)
    flat = positions * torch.tensor([1.0, 0, 1])
    turned = flat @ random_rotations(1, seeded(2), torch.float64)[0].mT
    # the search ends within 2 degrees or so: beads 20 A away move by 0.7 A, of an sd of 5 A
    assert 0.98 < mirror_correlation(turned, weights, variances, 128.0, seeded(3)) <= 1 + 1e-9


def test_mirror_correlation_does_not_depend_on_pose_or_seed():
    positions, weights, variances = some_beads(4)
    turn = random_rotations(1, seeded(5), torch.float64)[0]
    moved = (positions @ turn.mT + 7, positions * torch.tensor([1.0, -1, 1]))
    first = mirror_correlation(positions, weights, variances, 128.0, seeded(6))
    assert first < 0.95
    for seed, other in enumerate(moved):
        again = mirror_correlation(other, weights, variances, 128.0, seeded(7 + seed))
        assert again == pytest.approx(first, abs=0.01)  # both end close to the same maximum


def test_mirror_correlation_is_the_best_over_a_brute_force_of_maps():
    """Maps of the mirror image at many rotations: none is better, and the best is close."""
    positions, weights, variances = some_beads(8)
    positions = positions - weights @ positions / weights.sum()
    here = gaussian_density(positions, weights[:, None], variances[:, None], 24, 5.5)
    mirrored = positions * torch.tensor([-1.0, 1, 1])
    best = max(
        map_correlation(
            here,
            gaussian_density(mirrored @ r.mT, weights[:, None], variances[:, None], 24, 5.5),
        )
        for r in random_rotations(400, seeded(9), torch.float64)
    )
    found = mirror_correlation(positions, weights, variances, 24 * 5.5, seeded(10))
    assert best - 1e-3 < found < best + 0.1  # 400 rotations leave about 20 degrees between them


@pytest.mark.parametrize("name", ["bead-walk", "blobs"])
def test_one_generator_gives_one_molecule_in_every_box(name):
    fine, small = (PHANTOMS[name](box, 96 / box, seeded(6)).double() for box in (64, 32))
    # the finer map has no more below Nyquist of the coarser, where beads have 0.03 of their power
    assert map_correlation(crop_map(fine, 32), small) > 0.999
    tiny = PHANTOMS[name](8, 12.0, seeded(6)).double()
    # drawn wider, never narrower than voxels allow
    assert 0.8 < map_correlation(crop_map(fine, 8), tiny) < 0.999


@pytest.mark.parametrize(
    "make", [lambda g: bead_walk(30, 32, 3.0, g), lambda g: blobs(32, 3.0, g)]
)
def test_maps_of_drawn_phantoms_differ_from_mirror_maps(make):
    """By maps alone: the mirror image sampled by the nearest voxel, over 300 rotations."""
    map_ = make(seeded(11)).double()
    z, y, x = grid(32)
    ball = (z**2 + y**2 + x**2).sqrt() < 13
    points = torch.stack([x, y, z], -1)[ball]
    scores = []
    for turn in random_rotations(300, seeded(12), torch.float64):
        x2, y2, z2 = (points @ turn.mT).round().long().unbind(-1)
        turned = map_.flip(0).roll(1, 0)[z2 + 16, y2 + 16, x2 + 16]
        scores.append(map_correlation(map_[ball], turned))
    assert max(scores) < 0.85
    x2, y2, z2 = points.round().long().unbind(-1)
    assert map_correlation(map_[ball], map_[z2 + 16, y2 + 16, x2 + 16]) > 0.999


def test_walks_that_do_not_fit_or_have_no_hand_are_refused():
    with pytest.raises(InputError, match="at least 4"):
        bead_walk(3, 32, 3.0, seeded(0))
    with pytest.raises(InputError, match="none in 300 tries"):
        bead_walk(30, 32, 3.0, seeded(0), sd=12.0)
