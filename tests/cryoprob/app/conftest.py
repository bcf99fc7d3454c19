"""A small simulated stack and a finished fit of it."""

import pytest
import torch

from cryoprob.app.fit import configure, watched
from cryoprob.models.simulate import simulate
from cryoprob.phantoms import blobs

BOX, PIXEL_SIZE, N = 16, 4.0, 80


@pytest.fixture(scope="session")
def simulated(tmp_path_factory):
    """Folder of a stack of 80 images at SNR 2."""
    out = tmp_path_factory.mktemp("sim")
    generator = torch.Generator().manual_seed(11)
    volume = blobs(BOX, PIXEL_SIZE, generator)
    simulate(volume, PIXEL_SIZE, N, 2.0, generator, out=out)
    return out


@pytest.fixture(scope="session")
def fitted(simulated, tmp_path_factory):
    """Folder of a fit of the stack at its true poses."""
    out = tmp_path_factory.mktemp("fits") / "known"
    given = {"particles": simulated / "truth.star", "poses": "known", "seed": 1, "threads": 1}
    watched(configure(given, ["max_iterations=4"], None, out, False), out)
    return out
