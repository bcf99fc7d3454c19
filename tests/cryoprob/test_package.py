"""The package's own name: what it gives, and at what price."""

import ast
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import cryoprob as cp


def test_every_public_name_is_there():
    assert cp.__version__ == version("cryoprob")
    for name in cp.__all__:
        assert getattr(cp, name) is not None
    assert set(cp.__all__) <= set(dir(cp))
    assert cp.metrics.align_maps is cp.align_maps


def test_checkers_are_told_the_same_names():
    """What stands under TYPE_CHECKING, what is lazy, and ``__all__`` are one list."""
    body = ast.parse(Path(cp.__file__).read_text()).body
    block = next(node for node in body if isinstance(node, ast.If))
    told = {alias.name: node.module for node in block.body for alias in node.names}
    assert told == cp._HOME
    assert {*told, "__version__"} == set(cp.__all__)


def test_what_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = cp.nonsense


def test_import_takes_no_time_and_no_torch():
    code = "import sys, cryoprob; assert not {'torch', 'numpy', 'pyro'} & set(sys.modules)"
    best = float("inf")
    for _ in range(3):
        before = os.times()
        subprocess.run([sys.executable, "-c", code], check=True)
        after = os.times()
        best = min(best, sum(after[2:4]) - sum(before[2:4]))  # CPU seconds of children
    assert best < 0.5  # the bar of the design
