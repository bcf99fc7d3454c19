"""What a cell cannot tell: measured gains and variances, and the density they stand for."""

import pytest
import torch
from problems import make_problem
from torch.distributions import Normal

from cryoprob.fourier.bands import full_band
from cryoprob.inference.blur import Blur
from cryoprob.inference.filtered import filter_images
from cryoprob.inference.levels import levels

F64 = torch.float64


def gaussian(count, band, generator):
    """Packed coefficients of unit variance per number."""
    parts = torch.randn(2, count, len(band), generator=generator, dtype=F64)
    return torch.complex(parts[0], parts[1] * (band.weight > 1))


def test_a_known_regression_is_found_again(generator):
    band = full_band(16).prefix(6)
    center, rest = gaussian(400, band, generator), gaussian(400, band, generator)
    gain, spread = (torch.rand(band.n_shells, generator=generator, dtype=F64) for _ in range(2))
    within = gain[band.shell] * center + spread[band.shell] * rest
    blur = Blur.between(center, within, band)
    numbers = 400 * band.numbers_per_shell()[:7]
    # five standard errors of a slope and of a variance, in each of 7 shells: 1e-5 false alarms
    assert ((blur.gain - gain)[:7].abs() < 5 * spread[:7] / numbers.sqrt()).all()
    assert ((blur.variance / spread**2 - 1)[:7].abs() < 5 * (2 / numbers).sqrt()).all()
    # outside the band nothing was measured
    assert (blur.gain[7:] == 0).all() and (blur.variance[7:] == 0).all()


def test_finer_cells_tell_more():
    problem = make_problem(box=16, order=4, refine=4, n=2)
    *coarse, fine = levels(problem.model, problem.volume, 0)
    assert fine.blur is None
    gains = torch.stack([level.blur.gain[:8] for level in coarse])
    left = torch.stack([level.blur.variance[:8] for level in coarse])
    assert (gains >= 0).all() and (gains <= 1).all() and (left >= 0).all()
    # half the step halves the distance: the loss falls by four, once it is small
    loss = 1 - gains[:, 4]
    assert (loss.diff() < 0).all() and float(loss[3] / loss[2]) < 0.5
    assert (left[1:, 4] < left[:-1, 4]).all()
    # no cell moves the mean of the image
    assert float(gains[:, 0].min()) > 0.999


def test_nothing_is_random():
    problem = make_problem(box=16, order=2, refine=1, n=2)
    one, other = (levels(problem.model, problem.volume, 1)[0].blur for _ in range(2))
    assert one.gain.equal(other.gain) and one.variance.equal(other.variance)


@pytest.mark.parametrize("radius", [2, 3])
def test_scores_are_those_of_a_wider_gaussian(radius, generator):
    # differences between two centers, against normal densities number by number
    problem = make_problem(n=3)
    model, band = problem.model, full_band(8).prefix(radius)
    blur = Blur(*torch.rand(2, band.n_shells, generator=generator, dtype=F64))
    images = blur.apply(filter_images(model, problem.stack, torch.arange(3)), band)
    slices = gaussian(2, band, generator)
    cross = (images.image.conj()[:, None] * slices).real.sum(-1)
    energy = (images.transfer[:, None] * slices.abs() ** 2).sum(-1)
    found = cross - energy / 2
    batch, shell = problem.batch, band.shell
    scale, spread = model.contrast(batch.index)
    ctf = batch.ctf[:, : len(band)] * scale[:, None]
    variance = model.noise.sigma2[batch.group][:, shell] * spread[:, None] ** 2
    width = (variance + ctf**2 * blur.variance[shell]).sqrt()
    density = []
    for one in slices:
        law = [Normal(blur.gain[shell] * ctf * part, width) for part in (one.real, one.imag)]
        image = batch.image[:, : len(band)]
        imaginary = law[1].log_prob(image.imag) * (band.weight > 1)
        density.append((law[0].log_prob(image.real) + imaginary).sum(1))
    wanted = density[0] - density[1]
    torch.testing.assert_close(found[:, 0] - found[:, 1], wanted, rtol=1e-10, atol=1e-10)


def test_radius():
    gain = torch.tensor([1.0, 0.9, 0.6, 0.4, 0.21, 0.1, 0.3, 0.0])
    blur = Blur(gain, torch.zeros(8))
    assert blur.radius(7) == 6 and blur.radius(5) == 4 and blur.radius(3) == 3
    assert Blur(torch.zeros(8), torch.zeros(8)).radius(5) == 2
