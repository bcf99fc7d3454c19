"""The house rules: who may import whom, how long code may be, that every name is told of."""

import ast
import doctest
import importlib
import re
import statistics
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = {"cryoprob": "cryoprob", "models": "cryoprob.models", "inference": "cryoprob.inference"}
FACES = ("cryoprob", "cryoprob.__main__")
"""The lazy package and its entry point: they name every room, inside functions only."""

FILES = {
    ".".join([name, *path.relative_to(ROOT / folder).with_suffix("").parts]).removesuffix(
        ".__init__"
    ): path
    for folder, name in ROOMS.items()
    for path in sorted((ROOT / folder).rglob("*.py"))
}
MODULES = pytest.mark.parametrize("module", FILES)
FORBIDDEN = re.compile(r"\b(todo|fixme|xxx|hack|wip|session)s?\b", re.I)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def tree(module):
    """The module's syntax tree."""
    return ast.parse(FILES[module].read_text())


def imports(body):
    """Full names that the statements import, of modules and of things in them."""
    names = set()
    for node in ast.walk(body):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def functions(module):
    """All functions of the module, nested ones too."""
    return [node for node in ast.walk(tree(module)) if isinstance(node, FUNCTIONS)]


def inside(name, room):
    return name == room or name.startswith(f"{room}.")


def closed_to(module):
    """The rooms that a module must not import."""
    if module in FACES or inside(module, "cryoprob.app"):
        return ()
    if inside(module, "cryoprob.inference"):
        return ("cryoprob.app",)
    if inside(module, "cryoprob.models"):
        return ("cryoprob.app", "cryoprob.inference")
    return ("cryoprob.app", "cryoprob.inference", "cryoprob.models", "pyro")


@MODULES
def test_imports_go_one_way(module):
    wrong = {
        name for name in imports(tree(module)) for room in closed_to(module) if inside(name, room)
    }
    assert not wrong


@pytest.mark.parametrize("module", [name for name in FACES if name in FILES])
def test_the_faces_import_inside_functions_only(module):
    """At the top nothing heavy: only the standard library and plain names."""
    for node in tree(module).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            heads = {name.partition(".")[0] for name in imports(node)}
            assert heads <= set(sys.stdlib_module_names), ast.unparse(node)


@MODULES
def test_imports_are_absolute(module):
    found = [node for node in ast.walk(tree(module)) if isinstance(node, ast.ImportFrom)]
    assert not [ast.unparse(node) for node in found if node.level]


@MODULES
def test_files_are_short(module):
    assert len(FILES[module].read_text().splitlines()) <= 400


def test_functions_are_short():
    """Median at most 8 lines, 95 % under 40, none over 80, docstrings included."""
    lengths = {
        f"{module}.{node.name}": node.end_lineno - node.lineno + 1
        for module in FILES
        for node in functions(module)
    }
    longest = sorted(lengths, key=lengths.get)[-5:]
    assert statistics.median(lengths.values()) <= 8
    assert sum(n < 40 for n in lengths.values()) >= 0.95 * len(lengths), longest
    assert max(lengths.values()) <= 80, longest


def unannotated(node):
    """Names of a function's arguments without annotation, and ``return`` where that has none."""
    spread = [node.args.vararg, node.args.kwarg]
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, *filter(None, spread)]
    bare = [a.arg for a in given if a.annotation is None and a.arg not in ("self", "cls")]
    return bare + ["return"] * (node.returns is None)


@MODULES
def test_everything_is_annotated(module):
    wrong = {node.name: unannotated(node) for node in functions(module) if unannotated(node)}
    assert not wrong


def public(body):
    """Functions and classes without a leading underscore, public methods of the classes too."""
    for node in body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body)


@MODULES
def test_public_names_are_documented(module):
    bare = [node.name for node in public(tree(module).body) if not ast.get_docstring(node)]
    assert not bare
    assert ast.get_docstring(tree(module)) or not tree(module).body


def listed(module):
    """The names of ``__all__``, or None."""
    for node in tree(module).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return None


@MODULES
def test_every_module_says_what_it_offers(module):
    names = listed(module)
    assert names is not None or not list(public(tree(module).body)), "no __all__"
    found = importlib.import_module(module)
    assert not [name for name in names or [] if not hasattr(found, name)]
    assert len(set(names or [])) == len(names or [])


def test_the_wheel_holds_every_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {
        name if path.name == "__init__.py" else name.rpartition(".")[0]
        for name, path in FILES.items()
    }
    assert sorted(settings["packages"]) == sorted(on_disk)
    mapped = {name: folder for folder, name in ROOMS.items() if folder != "cryoprob"}
    assert settings["package-dir"] == mapped


@pytest.mark.parametrize("folder", sorted({path.parent for path in FILES.values()}))
def test_every_folder_is_a_package(folder):
    assert (folder / "__init__.py").exists()


def written():
    """Everything a reader may see."""
    yield from FILES.values()
    names = ["*.md", "*.toml", ".ci/run", "tutorials/**/*.py", "tutorials/**/*.md"]
    for name in names:
        yield from ROOT.glob(name)


@pytest.mark.parametrize("path", list(written()), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_leftovers(path):
    lines = path.read_text().splitlines()
    assert not [line for line in lines if FORBIDDEN.search(line)]


@pytest.mark.parametrize("module", ["cryoprob", "cryoprob.__main__", "cryoprob.app.cli"])
def test_help_is_not_kept_waiting_by_torch(module):
    """Seconds of import are paid where they are used."""
    show = "print(*sorted({'torch', 'pyro', 'arviz', 'matplotlib'} & set(sys.modules)))"
    code = f"import sys, {module}; {show}"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_doctests():
    """Collected by import name, so that no second copy of a module is made; there are some."""
    results = {name: doctest.testmod(importlib.import_module(name)) for name in FILES}
    assert not {name: found for name, found in results.items() if found.failed}
    assert sum(found.attempted for found in results.values()) > 0
