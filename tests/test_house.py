"""The house: which way its arrows go, what its doors are, and that every room says what it is for."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import pytest_flops

PACKAGE = Path(pytest_flops.__file__).parent
BASE = {"metrics", "units", "errors"}
ARROWS = {
    "plugin": {"measuring", "counting", "reporting", "budgets", "results"},
    "torch_flops": {"measuring", "counting", "results"},
    "measuring": {"counting", "results"},
    "counting": {"formulas", "results"},
    "reporting": {"budgets", "results"},
    "budgets": {"results"},
    "formulas": set(),
    "results": set(),
}
"""What each room may import, for type checking too; beside these all import the base, each part of which
imports only what follows it."""


def imports(source: str) -> Iterator[str]:
    """Yield every module that a file imports, at the top, inside functions and for type checking."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def arrows() -> Iterator[tuple[str, str, str]]:
    """Yield every import between rooms: the file, its room, and the room that it imports."""
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        for name in imports(path.read_text()):
            package, _, rest = name.partition(".")
            target = rest.partition(".")[0]
            if package == "pytest_flops" and parts != ("__init__",) and target != parts[0]:
                yield str(path), parts[0], target


def test_every_arrow_goes_downhill():
    allowed = {(room, target) for room, targets in ARROWS.items() for target in targets | BASE}
    allowed |= {("metrics", "units"), ("metrics", "errors"), ("units", "errors")}
    assert [arrow for arrow in arrows() if arrow[1:] not in allowed] == []


def test_every_room_is_known():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert rooms - {"__init__", "__pycache__"} == ARROWS.keys() | BASE
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= 8


@pytest.mark.parametrize(
    ("module", "rooms"), [("pytest", {"plugin"}), ("tabulate", {"results"}), ("_pytest", set())]
)
def test_only_one_wing_imports(module, rooms):
    found = {
        path.relative_to(PACKAGE).parts[0]
        for path in PACKAGE.rglob("*.py")
        if any(name.partition(".")[0] == module for name in imports(path.read_text()))
    }
    assert found == rooms


def test_public_names_are_the_same_everywhere():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    for_type_checking = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    lazy = {name: f"pytest_flops.{room}" for name, room in pytest_flops._ROOMS.items()}
    assert for_type_checking == lazy
    assert sorted({*lazy, "__version__"}) == sorted(pytest_flops.__all__) == dir(pytest_flops)
    for name, room in lazy.items():
        assert getattr(pytest_flops, name) is getattr(import_module(room), name)


def test_the_version_is_that_of_the_distribution():
    assert f'version = "{pytest_flops.__version__}"' in (PACKAGE.parent / "pyproject.toml").read_text()


def documented(tree: ast.AST, *, inside: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the public classes, functions and methods of a module, and whether each has a docstring."""
    for node in getattr(tree, "body", []):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
            yield f"{inside}{node.name}", ast.get_docstring(node) is not None
            if isinstance(node, ast.ClassDef):
                yield from documented(node, inside=f"{inside}{node.name}.")


def functions() -> Iterator[tuple[str, int]]:
    """Yield every function of the package and its length in lines."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                yield f"{path.name}:{node.name}", node.end_lineno - node.lineno + 1


def test_everything_public_has_a_docstring():
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path
        assert [name for name, has_one in documented(tree) if not has_one] == [], path


def test_functions_are_short():
    lengths = dict(functions())
    assert max(lengths.values()) <= 50, max(lengths, key=lengths.get)
    assert sorted(lengths.values())[len(lengths) // 2] <= 12
