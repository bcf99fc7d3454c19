"""A CUDA device for tests: one that pretends, and the real one where there is one."""

import pytest
import torch
from pretend import CUDA, PretendCuda

REAL = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(params=["pretend", pytest.param("cuda", marks=REAL)])
def device(request):
    """A CUDA device, pretended or real."""
    if request.param == "cuda":
        yield CUDA
    else:
        with PretendCuda():
            yield CUDA


@pytest.fixture
def pretended():
    """The device that pretends."""
    with PretendCuda():
        yield
