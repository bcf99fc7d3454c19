"""Every tutorial runs in smoke size, draws its figures and warns of nothing of ours."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = sorted((Path(__file__).resolve().parents[1] / "tutorials").glob("*.py"))
BY_NAME = pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)


def figures(path):
    """The figures that a tutorial names."""
    return sorted(re.findall(r'FIGURES / "([^"]+\.png)"', path.read_text()))


def test_they_are_numbered_without_a_hole():
    numbers = [int(path.stem[:2]) for path in TUTORIALS]
    assert numbers == list(range(1, len(TUTORIALS) + 1)) and len(numbers) >= 4


@pytest.mark.slow
@BY_NAME
def test_it_runs_in_smoke_size(path, tmp_path):
    settings = {
        "CRYOPROB_TUTORIAL": "smoke",
        "CRYOPROB_FIGURES": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
    }
    # the categories that the package warns in; other packages' deprecations are not its own
    strict = ["-W", "error::UserWarning", "-W", "error::RuntimeWarning"]
    done = subprocess.run(
        [sys.executable, *strict, str(path)],
        env=os.environ | settings,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = sorted(file.name for file in tmp_path.iterdir())
    assert found == figures(path) != []
    for name in found:
        image = (tmp_path / name).read_bytes()
        assert image[:8] == b"\x89PNG\r\n\x1a\n" and len(image) > 5000
        assert name.startswith(path.stem[:2])


@BY_NAME
def test_it_is_a_notebook_in_plain_text(path):
    """Cells of the percent format, a question at the top, exercises at the end."""
    text = path.read_text()
    cells = re.split(r"^# %%", text, flags=re.M)
    assert cells[0] == "" and len(cells) > 8
    assert "**Question: " in cells[1] and cells[-1].startswith(" [markdown]")
    exercises = re.findall(r"^# (\d)\. ", cells[-1].partition("## Exercises")[2], flags=re.M)
    assert exercises == [str(n + 1) for n in range(len(exercises))] and 3 <= len(exercises) <= 5
    for cell in cells[1:]:
        if cell.startswith(" [markdown]"):
            assert all(not line or line.startswith("#") for line in cell.splitlines()[1:])


@BY_NAME
def test_it_uses_public_names_only(path):
    tree = ast.parse(path.read_text())
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {alias.name for alias in node.names}
    assert not [name for name in names if name.startswith("_")]
    assert "assert " in path.read_text()
