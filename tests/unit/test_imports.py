"""Imports point downward, and what must start fast loads nothing heavy."""

import ast
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

import minidist

PACKAGE = Path(minidist.__file__).parent
FLOORS = [
    ("errors", "types", "concurrency"),
    ("config", "protocols"),
    ("losses", "data", "run"),
    ("models", "cluster", "evaluation", "loop"),
    ("rollout", "learners"),
    ("teachers", "methods"),
    ("experience", "preflight"),
    ("roles",),
    ("stages",),
    ("cli",),
]
RANK = {name: rank for rank, names in enumerate(FLOORS) for name in names}
MAY_IMPORT_RAY = {"cluster"}
HEAVY = {"torch", "vllm", "ray", "deepspeed", "transformers", "datasets"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(path: Path) -> str:
    """Top-level module or subpackage that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names of everything a file imports, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def loaded_by(*arguments: str) -> tuple[set[str], float]:
    """Top-level names of the modules that a fresh interpreter loads, and its seconds."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    return {name.split(".")[0] for name in re.findall(r"\|\s*([\w.]+)\s*$", done.stderr, re.MULTILINE)}, seconds


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    own = part_of(path)
    assert own in RANK, f"{own} stands on no floor yet; give it one in FLOORS"
    for name in imported(path):
        package, _, rest = name.partition(".")
        below = rest.split(".")[0]
        if package == "minidist" and below in RANK and below != own:
            assert RANK[below] < RANK[own], f"{own} imports {below}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_ray_stays_where_it_belongs(path: Path) -> None:
    uses_ray = any(name.split(".")[0] == "ray" for name in imported(path))
    assert not uses_ray or part_of(path) in MAY_IMPORT_RAY


def test_help_is_fast_and_light() -> None:
    runs = [loaded_by("-m", "minidist.cli", "--help") for _ in range(3)]
    assert "typer" in runs[0][0], "the import log is not read"
    assert not runs[0][0] & HEAVY
    assert statistics.median(seconds for _, seconds in runs) < 1


def test_config_is_light() -> None:
    modules, _ = loaded_by("-c", "import minidist.config")
    assert "pydantic" in modules
    assert not modules & HEAVY
