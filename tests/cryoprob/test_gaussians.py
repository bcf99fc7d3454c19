"""Sums of Gaussians: the windowed map against the plain sum, gradients, bad grids."""

from math import pi, sqrt

import pytest
import torch

from cryoprob.checks import InputError
from cryoprob.gaussians import gaussian_blur, gaussian_density, narrowest


def test_gaussians_equal_the_plain_sum():
    """The windowed sum against all voxels at once, with unequal widths and sites near the edge."""
    generator = torch.Generator().manual_seed(5)
    n, box, pixel_size = 300, 12, 1.5  # more sites than one block holds
    positions = (torch.rand(n, 3, generator=generator, dtype=torch.float64) - 0.5) * 22
    weights = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    variances = 1 + 9 * torch.rand(n, 2, generator=generator, dtype=torch.float64)
    k = (torch.arange(box).double() - box // 2) * pixel_size
    z, y, x = torch.meshgrid(k, k, k, indexing="ij")
    far = (torch.stack([x, y, z], -1) - positions[:, None, None, None]).square().sum(-1)[..., None]
    shape = variances[:, None, None, None]
    want = weights[:, None, None, None] * torch.exp(-far / 2 / shape) * (2 * pi * shape) ** -1.5
    got = gaussian_density(positions, weights, variances, box, pixel_size, torch.float64)
    # cut at 5 sd: at most exp(-12.5) = 4e-6 of a peak of 0.06, of a few sites
    torch.testing.assert_close(got, want.sum((0, -1)), rtol=0, atol=1e-6)
    single = gaussian_density(positions, weights, variances, box, pixel_size)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), got, rtol=0, atol=1e-5)


def test_gaussians_have_gradients():
    positions = torch.tensor([[0.3, -0.2, 0.1], [1.0, 2.0, -1.5]], dtype=torch.float64)
    inputs = (positions, torch.ones(2, 1).double(), torch.full((2, 1), 1.3).double())
    for value in inputs:
        value.requires_grad_()
    assert torch.autograd.gradcheck(lambda *v: gaussian_density(*v, 6, 1.0, torch.float64), inputs)


def test_blur_is_one_over_e_at_its_resolution():
    transform = torch.exp(torch.tensor(-2 * (pi * gaussian_blur(7.0) / 7.0) ** 2))
    assert float(transform) == pytest.approx(1 / torch.e, rel=1e-6)
    assert narrowest(3.0) == pytest.approx(12 / (pi * sqrt(2)))


def test_totals_do_not_depend_on_the_place_between_voxels_at_the_narrowest():
    """The claim of ``narrowest``; at half of that width the total wobbles by percents."""
    offsets = torch.linspace(0, 0.5, 6).double()
    spread = {}
    for width in (narrowest(1.0), narrowest(1.0) / 2):
        maps = [
            gaussian_density(
                torch.stack([o, o, o])[None],
                torch.ones(1, 1),
                torch.full((1, 1), width**2),
                12,
                1.0,
                torch.float64,
            )
            for o in offsets
        ]
        totals = torch.stack([m.sum() for m in maps])
        spread[width] = float(totals.max() - totals.min())
    wide, narrow = spread.values()
    assert wide < 3e-6  # 5 sd cut, 6e-7 an axis; alias 2e-7
    assert narrow > 0.01


@pytest.mark.parametrize(("box", "pixel_size"), [(7, 1.0), (0, 1.0), (8, 0.0), (8, float("nan"))])
def test_bad_grids_are_refused(box, pixel_size):
    one = torch.ones(1, 1)
    with pytest.raises(InputError, match="positive"):
        gaussian_density(torch.zeros(1, 3), one, one, box, pixel_size)
