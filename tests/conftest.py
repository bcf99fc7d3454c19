"""Shared fixtures: the test data, the one false-alarm rate, and the guard of global state."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if "PYTEST_XDIST_WORKER" in os.environ:  # one of several on the machine's processors
    torch.set_num_threads(1)

FALSE_ALARM = 1e-4
"""Chance that a right program fails one statistical test."""


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of foreign and simulated data; CRYOPROB_TEST_DATA, else shared/data beside the checkout."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("CRYOPROB_TEST_DATA", default))
    if not (folder / "README.md").exists():
        pytest.skip(f"test data not found in {folder}: set CRYOPROB_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def false_alarm() -> float:
    """The one stated false-alarm rate of the statistical tests."""
    return FALSE_ALARM


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator."""
    return torch.Generator().manual_seed(20260101)


@pytest.fixture(autouse=True)
def guard_global_state() -> Iterator[None]:
    """Fail a test that changes torch's defaults, its seed-free random state or Pyro's parameter store."""
    import pyro

    before = torch.get_default_dtype(), torch.get_num_threads()
    yield
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before
    assert not list(pyro.get_param_store().keys())
