"""The likelihood of images against dense Gaussians, loops over poses, and as a distribution."""

import math
from itertools import product

import pytest
import torch
from problems import PIXEL_SIZE, dense_covariance
from scipy import stats
from torch.distributions import MultivariateNormal

from cryoprob.fourier.bands import full_band
from cryoprob.models.image_likelihood import ImageLikelihood, shift_phase

F64 = torch.float64
BOX, N, Q, T = 8, 3, 4, 2


class Parts:
    """Random factors of a likelihood of N images at Q rotations and T shifts."""

    def __init__(self, generator, *, image_radius=BOX, radius=BOX // 2 - 1):
        self.band = full_band(BOX).prefix(image_radius)
        self.inner = full_band(BOX).prefix(radius)
        self.generator = generator

    def slices(self, *shape):
        image = torch.randn(*shape, BOX, BOX, generator=self.generator, dtype=F64)
        return self.inner.pack(image)

    def phase(self, *shape):
        shift = 6 * torch.randn(*shape, 2, generator=self.generator, dtype=F64)
        return shift_phase(self.inner, shift, PIXEL_SIZE)

    def ctf(self, *shape):
        return torch.randn(*shape, len(self.inner), generator=self.generator, dtype=F64)

    def sigma2(self, *shape):
        return 0.3 + torch.rand(*shape, BOX // 2 + 2, generator=self.generator, dtype=F64)

    def images(self, *shape):
        noise = torch.randn(*shape, BOX, BOX, generator=self.generator, dtype=F64)
        return self.band.pack(noise)


def one_by_one(slices, phase, ctf, sigma2, band, value):
    """Log density of one image at one pose: a product of normal densities of its numbers."""
    mean = torch.zeros(len(band), dtype=torch.complex128)
    mean[: len(slices)] = ctf * phase * slices
    total = 0.0
    for k in range(len(band)):
        variance = float(sigma2[band.shell[k]])
        numbers = [complex(value[k] - mean[k]).real]
        if float(band.weight[k]) > 1:
            numbers.append(complex(value[k] - mean[k]).imag)
        total += sum(
            -(x**2) / variance / 2 - math.log(2 * math.pi * variance) / 2 for x in numbers
        )
    return total


@pytest.mark.parametrize("image_radius", [BOX, 3, 2])
def test_every_combination_of_dimensions_is_the_loop(image_radius, generator):
    # rotations enumerated at dim -2 or known, shifts at -3, -2 or known; contrast of each image
    parts = Parts(generator, image_radius=image_radius, radius=2)
    rotations, shifts = [(Q, 1), (N,), ()], [(T, 1, 1), (T, 1), (N,), ()]
    others = [(N,), (1,), ()]
    for r, t, c, s in product(rotations, shifts, others, [(N,), ()]):
        if r == (Q, 1) and t == (T, 1):
            continue  # both at the same dimension: no program does so
        slices, phase, ctf, sigma2 = (
            parts.slices(*r),
            parts.phase(*t),
            parts.ctf(*c),
            parts.sigma2(*s),
        )
        found = ImageLikelihood(slices, phase, ctf, sigma2, parts.band)
        value = parts.images(N)
        batch = torch.broadcast_shapes(found.batch_shape, (N,))
        scores = found.expand(batch).log_prob(value)
        assert scores.shape == batch == found.log_prob(value).shape
        torch.testing.assert_close(scores, found.log_prob(value))
        pieces = [v.expand(*batch, v.shape[-1]) for v in (slices, phase, ctf, sigma2, value)]
        for place in product(*(range(min(n, 2)) for n in batch)):
            *factors, image = (piece[place] for piece in pieces)
            wanted = one_by_one(*factors, parts.band, image)
            # 64 terms of order one
            assert float(scores[place]) == pytest.approx(wanted, abs=1e-10)


def test_density_is_that_of_all_pixels(generator):
    # a full covariance matrix of the D^2 real pixels, and images that no transform has touched
    parts = Parts(generator)
    slices, phase, ctf, sigma2 = parts.slices(N), parts.phase(N), parts.ctf(N), parts.sigma2(N)
    pixels = torch.randn(N, BOX, BOX, generator=generator, dtype=F64)
    found = ImageLikelihood(slices, phase, ctf, sigma2, parts.band)
    mean = parts.inner.unpack(ctf * phase * slices).flatten(1)
    covariance = torch.stack([dense_covariance(v, BOX) for v in sigma2])
    wanted = MultivariateNormal(mean, covariance).log_prob(pixels.flatten(1))
    scores = found.log_prob(parts.band.pack(pixels))
    torch.testing.assert_close(scores, wanted, rtol=0, atol=1e-9)  # 1e-12 of some 100 nats


def test_shift_moves_the_particle(generator):
    # by whole pixels: +2 along x and -1 along y of an image [y, x]; a sign, or x for y, shows
    inner = full_band(BOX).prefix(3)
    image = inner.unpack(inner.pack(torch.randn(BOX, BOX, generator=generator, dtype=F64)))
    shift = torch.tensor([2.0, -1.0], dtype=F64) * PIXEL_SIZE
    moved = inner.unpack(inner.pack(image) * shift_phase(inner, shift, PIXEL_SIZE))
    torch.testing.assert_close(moved, image.roll((-1, 2), (0, 1)))


def test_mean_and_samples(generator):
    parts = Parts(generator, radius=2)
    found = ImageLikelihood(
        parts.slices(Q, 1), parts.phase(T, 1, 1), parts.ctf(N), parts.sigma2(N), parts.band
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        sample = found.rsample((5,))
        torch.manual_seed(3)
        again = found.expand((T, Q, N)).rsample((5,))
    assert found.mean.shape == (T, Q, N, len(parts.band))
    assert sample.shape == (5, T, Q, N, len(parts.band)) and sample.equal(again)
    assert (sample.imag[..., parts.band.weight == 1] == 0).all()


@pytest.fixture(scope="module")
def drawn():
    """A likelihood of one pose, and 4000 images of it."""
    parts = Parts(torch.Generator().manual_seed(11))
    found = ImageLikelihood(parts.slices(), parts.phase(), parts.ctf(), parts.sigma2(), parts.band)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return found, found.sample((4000,))


def test_goodness_of_fit(drawn, false_alarm):
    # -2 log p up to its constant is the sum of D^2 squared standard normal numbers
    found, sample = drawn
    top = float(found.log_prob(found.mean))
    square = 2 * (top - found.log_prob(sample))
    assert stats.kstest(square.numpy(), stats.chi2(BOX**2).cdf).pvalue > false_alarm
    # and each shell alone has the right variance
    residual = (sample - found.mean).abs().square()
    for shell, count in enumerate(found.band.numbers_per_shell().tolist()):
        power = residual[:, found.band.shell == shell].sum() / found.sigma2[shell]
        tail = stats.chi2(count * len(sample)).sf(float(power))
        assert false_alarm / 12 < tail < 1 - false_alarm / 12, shell


def test_numbers_are_independent_and_normal(drawn, false_alarm):
    # a random projection of all numbers, white after division by sigma: normal for any mixture
    found, sample = drawn
    scale = found.sigma2[found.band.shell].sqrt()
    white = torch.view_as_real((sample - found.mean) / scale).flatten(1)
    keep = white.abs().sum(0) > 0
    assert int(keep.sum()) == BOX**2
    mix = torch.randn(BOX**2, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    for column in (white[:, keep] @ (mix / mix.norm(dim=0))).T:
        assert stats.kstest(column.numpy(), "norm").pvalue > false_alarm / 3


def test_images_drawn_have_no_point_symmetry(drawn, false_alarm):
    # noise with real coefficients would equal its own mirror image about the origin
    found, sample = drawn
    noise = found.band.unpack((sample - found.mean) / found.sigma2[found.band.shell].sqrt())
    mirror = noise.flip(-2, -1).roll((1, 1), (-2, -1))
    # pairs count twice, and the 4 own mirrors are a square each: mean 4, variance about 2 D^2
    total = float((noise * mirror).sum((-2, -1)).mean() - 4)
    error = math.sqrt(2 * BOX**2 / len(sample))
    assert abs(total) < stats.norm.isf(false_alarm / 2) * error


def test_gradients(generator):
    parts = Parts(generator, radius=2)
    slices, phase, ctf, sigma2 = parts.slices(2, 1), parts.phase(N), parts.ctf(N), parts.sigma2(N)
    value = parts.images(N)

    def score(a, b, c, d):
        return ImageLikelihood(a, b, c, d, parts.band).log_prob(value)

    inputs = [v.requires_grad_() for v in (slices, phase, ctf, sigma2)]
    assert torch.autograd.gradcheck(score, inputs)


def test_nothing_of_images_times_poses_times_pixels(generator, monkeypatch):
    # the largest tensor in a product is [T, N, 2 m] or [Q, 2 m] or [T, Q, N]
    sizes = []
    product_ = torch.Tensor.__matmul__

    def watched(left, right):
        sizes.extend((left.numel(), right.numel()))
        return product_(left, right)

    parts = Parts(generator)
    found = ImageLikelihood(
        parts.slices(50, 1), parts.phase(20, 1, 1), parts.ctf(N), parts.sigma2(N), parts.band
    )
    monkeypatch.setattr(torch.Tensor, "__matmul__", watched)
    found.log_prob(parts.images(N))
    assert sizes and max(sizes) <= 20 * N * 2 * len(parts.inner)


def test_a_larger_batch_keeps_its_factors_small():
    """Expanding (as Pyro's plates do) copies nothing: no image x pose x pixel tensor exists."""
    band = full_band(8)
    inside = len(band.prefix(3))
    slices = torch.randn(5, 1, inside, dtype=torch.complex128)
    phase = torch.ones(3, 1, 1, inside, dtype=torch.complex128)
    ctf, sigma2 = torch.ones(2, inside).double(), torch.ones(2, band.n_shells).double()
    small = ImageLikelihood(slices, phase, ctf, sigma2, band)
    large = small.expand(torch.Size([4, 3, 5, 2]))
    assert large.sigma2.shape == (2, band.n_shells) and large.batch_shape == (4, 3, 5, 2)
    image = torch.randn(2, len(band), dtype=torch.complex128)
    assert torch.equal(large.log_prob(image)[1], small.log_prob(image))
