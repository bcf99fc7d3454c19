"""Quarter turns of packed images against pixels that are moved by hand."""

import torch

from cryoprob.fourier.bands import full_band
from cryoprob.fourier.quarter_turns import turn_coefficients, turn_even

F64 = torch.float64


def test_pixels_change_places(generator):
    """A value at (x, y) from the center goes to (-y, x), periodically; each image its own turns."""
    box, band = 8, full_band(8)
    images = torch.randn(5, box, box, generator=generator, dtype=F64)
    quarters = torch.tensor([0, 1, 2, 3, 1])
    found = band.unpack(turn_coefficients(band, band.pack(images), quarters))
    wanted = images.clone()
    for n, count in enumerate(quarters.tolist()):
        for _ in range(count):
            old = wanted[n].clone()
            for y in range(-4, 4):
                for x in range(-4, 4):
                    wanted[n, (x + 4) % box, (-y + 4) % box] = old[y + 4, x + 4]
    torch.testing.assert_close(found, wanted)  # moved, not computed: rounding of the transform


def test_smaller_bands_are_prefixes(generator):
    band, quarters = full_band(12), torch.tensor([1, 3])
    values = band.pack(torch.randn(2, 12, 12, generator=generator, dtype=F64))
    small = band.prefix(4)
    part = turn_coefficients(small, values[:, : len(small)], quarters)
    assert part.equal(turn_coefficients(band, values, quarters)[:, : len(small)])


def test_even_functions_turn_along(generator):
    """kx^2 and ky^2 change places by one turn, and are back after two."""
    band = full_band(10).prefix(4)
    values = (band.kx**2 + 3 * band.ky**2).to(F64).expand(3, -1)
    found = turn_even(band, values, torch.tensor([0, 1, 2]))
    assert found[0].equal(values[0]) and found[2].equal(values[0])
    assert found[1].equal((band.ky**2 + 3 * band.kx**2).to(F64))
