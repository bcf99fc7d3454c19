"""Conformations against the truth: matching by brute force, and what must not matter."""

from itertools import permutations

import pytest
import torch
from scipy.stats import norm

from cryoprob.checks import InputError
from cryoprob.geometry.rotations import random_rotations
from cryoprob.metrics.conformation_error import confusion, path_error

F64 = torch.float64


def drawn(count, n, generator):
    return torch.randint(count, (n,), generator=generator)


def most_right(found, truth, count):
    """Images that agree under the best of all one-to-one renamings of ``count`` labels."""
    tables = (torch.tensor(names) for names in permutations(range(count)))
    return max(int((names[found] == truth).sum()) for names in tables)


@pytest.mark.parametrize(("found", "true"), [(3, 3), (5, 3), (2, 4), (1, 3)])
def test_matching_is_the_best_of_all(found, true, generator):
    for _ in range(5):
        mine, truth = drawn(found, 40, generator), drawn(true, 40, generator)
        error = confusion(mine, truth)
        right = most_right(mine, truth, max(found, true))
        assert error.wrong == pytest.approx(1 - right / 40)
        sizes = truth.bincount(minlength=true)
        assert float((error.recall * sizes).sum()) == pytest.approx(right)
        assert error.counts.sum() == 40 and (error.matched >= 0).sum() == min(found, true)


def test_names_do_not_matter(generator):
    mine, truth = drawn(4, 60, generator), drawn(3, 60, generator)
    first = confusion(mine, truth)
    again = confusion(torch.tensor([17, -2, 5, 40])[mine], torch.tensor([3, 1, 2])[truth])
    assert (again.wrong, again.weight) == (first.wrong, first.weight)
    assert again.recall[[2, 0, 1]].equal(first.recall) and again.names.tolist() == [1, 2, 3]
    renamed = confusion(torch.tensor([2, 0, 1])[truth], truth)
    assert (renamed.wrong, renamed.weight) == (0, 0)
    assert renamed.matched.tolist() == [2, 0, 1] and (renamed.recall == 1).all()


def test_numbers_by_hand():
    """Six images of A and two of B; one of A went to a class of its own."""
    truth = torch.tensor([0, 0, 0, 0, 0, 0, 1, 1])
    found = torch.tensor([7, 7, 7, 7, 7, 3, 9, 9])
    error = confusion(found, truth)
    assert error.wrong == 1 / 8 and error.weight == 1 / 8
    assert error.recall.tolist() == [pytest.approx(5 / 6), 1] and error.matched.tolist() == [7, 9]
    lost = confusion(torch.zeros(8, dtype=torch.long), truth)
    assert lost.wrong == 2 / 8 and lost.weight == 2 / 8 and lost.matched.tolist() == [0, -1]


def test_shares_count_by_their_largest_and_weigh_by_their_mean(generator):
    truth = drawn(3, 50, generator)
    shares = torch.softmax(torch.randn(50, 3, generator=generator, dtype=F64), 1)
    error, hard = confusion(shares, truth), confusion(shares.argmax(1), truth)
    assert error.wrong == hard.wrong and error.counts.equal(hard.counts)
    weights = truth.bincount() / 50
    wanted = (shares.mean(0)[error.matched] - weights).abs().max()
    assert error.weight == pytest.approx(float(wanted))


def test_a_class_without_images_is_matched_last():
    shares = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.3, 0.7, 0.0]], dtype=F64)
    error = confusion(shares, torch.tensor([0, 0, 1]))
    assert error.wrong == 0 and error.matched.tolist() == [0, 1]


def path(n, generator):
    """A bent path in four coordinates, and the places on it."""
    t = 2 * torch.rand(n, generator=generator, dtype=F64) - 1
    noise = 0.02 * torch.randn(n, 2, generator=generator, dtype=F64)
    return torch.cat([torch.stack([t, 2 * t**2], 1), noise], 1), t


def test_a_bent_path_is_told_by_the_curve(generator):
    z, t = path(500, generator)
    error = path_error(z, t)
    # as wide as high: its first axis may lie anywhere, and folds it
    assert error.leading < 0.7 and error.curve > 0.995


def test_coordinates_may_be_any_others(generator):
    """Turned, scaled and mirrored; and a truth by another clock."""
    z, t = path(300, generator)
    first = path_error(z, t)
    turn = torch.block_diag(random_rotations(1, generator, F64)[0], torch.ones(1, 1, dtype=F64))
    mirrored = (z @ turn.roll(1, 0)) * torch.tensor([-1.0, 1.0, 1.0, 1.0], dtype=F64)
    for other in (path_error(3 * mirrored + 1, t), path_error(z, t.exp()), path_error(z, -t)):
        assert other.leading == pytest.approx(first.leading)
        assert other.curve == pytest.approx(first.curve)
    one = t[:, None]
    assert path_error(one, t) == path_error(one**3 + one, t)
    assert path_error(one.exp(), t).curve == pytest.approx(1)


def test_noise_has_no_order(generator, false_alarm):
    """Of 200 images by chance: normal of variance 1 / 199 (here at a fixed seed)."""
    limit = float(norm.isf(false_alarm / 2)) / 199**0.5
    for size in (1, 2, 8):
        z = torch.randn(200, size, generator=generator, dtype=F64)
        t = torch.rand(200, generator=generator, dtype=F64)
        error = path_error(z, t)
        assert error.leading < limit and error.curve < limit
    still = path_error(torch.ones(200, 2), t)
    assert (still.leading, still.curve) == (0, 0)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: confusion(torch.zeros(3).long(), torch.zeros(4).long()), "as many images"),
        (lambda: confusion(torch.zeros(0).long(), torch.zeros(0).long()), "as many images"),
        (lambda: path_error(torch.zeros(3, 2), torch.zeros(2)), "as many images"),
        (lambda: path_error(torch.zeros(3), torch.arange(3.0)), "size"),
        (lambda: path_error(torch.zeros(3, 2), torch.ones(3)), "that vary"),
        (lambda: path_error(torch.zeros(2, 2), torch.tensor([1.0, torch.nan])), "finite"),
    ],
)
def test_what_does_not_compare(call, told):
    with pytest.raises(InputError, match=told):
        call()
