import math

import mrcfile
import pytest
import torch

from cryoprob import masks
from cryoprob.checks import InputError


def slow_ball(box, radius, edge):
    """The ball by a triple loop."""
    out = torch.zeros(box, box, box)
    for z in range(box):
        for y in range(box):
            for x in range(box):
                far = math.dist((x, y, z), (box // 2,) * 3) - radius
                cosine = 0.5 + 0.5 * math.cos(math.pi * min(max(far / edge, 0), 1))
                out[z, y, x] = cosine
    return out


def test_sphere_is_the_slow_one():
    # single precision of the result
    torch.testing.assert_close(
        masks.sphere(12, 2.5, 3.0), slow_ball(12, 2.5, 3.0), rtol=0, atol=1e-6
    )


def test_circle_is_the_middle_of_the_sphere():
    middle = masks.sphere(16, 5.0, 2.0)[8]
    torch.testing.assert_close(masks.circle(16, 5.0, 2.0), middle, rtol=0, atol=0)


def test_hard_masks_are_zero_and_one():
    ball = masks.sphere(32, 10.0, dtype=torch.float64)
    assert set(ball.unique().tolist()) == {0.0, 1.0} and ball.dtype == torch.float64
    # lattice points in a ball: the surface's share of half a voxel, randomly signed
    assert ball.sum() == pytest.approx(4 / 3 * math.pi * 10**3, rel=0.02)
    assert ball[16, 16, 26] == 1 and ball[16, 16, 27] == 0


def two_balls(box=32):
    """A large ball off center with a hole, and a small one far from it."""
    axis = torch.arange(-(box // 2), box // 2, dtype=torch.float32)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    large = ((x + 4) ** 2 + y**2 + z**2).sqrt()
    small = ((x - 10) ** 2 + y**2 + z**2).sqrt()
    return large, ((large <= 6) & (large > 2)).float() + 0.8 * (small <= 2).float(), small


def test_automatic_mask_is_the_largest_piece_without_holes_grown_and_soft():
    large, volume, small = two_balls()
    mask = masks.automatic(volume, 1.0, resolution_A=2.5, level=0.5, extend_px=1.0, edge_px=2.0)
    # the low-passed border moves by less than a voxel
    assert (mask[large <= 6] == 1).all()
    assert (mask[large > 6 + 1 + 1 + 2] == 0).all()
    assert (mask[small <= 2] == 0).all()
    assert mask.min() == 0 and mask.max() == 1 and mask.dtype == volume.dtype
    assert ((mask > 0.2) & (mask < 0.8)).any()


def test_extension_and_edge_are_in_voxels():
    large, volume, _ = two_balls()
    wide = masks.automatic(volume, 1.0, resolution_A=2.5, level=0.5, extend_px=4.0, edge_px=0.0)
    near = masks.automatic(volume, 1.0, resolution_A=2.5, level=0.5, extend_px=1.0, edge_px=0.0)
    reach = [float(large[m > 0].max()) for m in (near, wide)]
    assert reach[1] - reach[0] == pytest.approx(3, abs=0.5)  # the lattice
    assert set(wide.unique().tolist()) == {0.0, 1.0}


def test_automatic_mask_does_not_depend_on_scale_or_offset():
    _, volume, _ = two_balls()
    plain = masks.automatic(volume, 2.0)
    torch.testing.assert_close(masks.automatic(50 * volume - 7, 2.0), plain, rtol=0, atol=0)


@pytest.mark.parametrize("noise", [0.0, 3.0])
@pytest.mark.parametrize(
    ("path", "pixel_size", "kept", "largest"),
    [("relion-70s/truth.mrc", 5.0, 0.98, 0.25), ("adk-path/map_mean.mrc", 1.5, 0.995, 0.15)],
)
def test_automatic_mask_holds_the_molecule(
    path, pixel_size, kept, largest, noise, data, generator
):
    truth = torch.from_numpy(mrcfile.read(data / path).astype("f4"))
    drawn = torch.randn(truth.shape, generator=generator)
    mask = masks.automatic(truth + noise * truth.std() * drawn, pixel_size)
    # 99.3 and 99.9 percent of the power were seen, in 17 and 10 percent of the box; noise of
    # three times the map's spread per voxel moves neither by more than half a percent
    assert (truth * mask).square().sum() > kept * truth.square().sum()
    assert mask.mean() < largest


def test_useless_maps_are_told():
    cube = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(1))
    broken = cube.clone()
    broken[1, 2, 3] = math.nan
    cases = {
        "one map": cube[None],
        r"\[8, 8, 6\]": cube[..., :6],
        "finite": broken,
        "constant map": torch.ones(8, 8, 8),
    }
    for words, volume in cases.items():
        with pytest.raises(InputError, match=words):
            masks.automatic(volume, 1.0)
    with pytest.raises(InputError, match="Lower the level"):
        masks.automatic(cube, 1.0, level=100.0)
