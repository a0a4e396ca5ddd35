"""Imports point downward, heavy libraries stay in their rooms, and the command line and the configuration load none of them."""

import ast
import re
import resource
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import minidist

PACKAGE = Path(minidist.__file__).parent
FLOORS = [
    ("text",),
    ("errors", "types", "concurrency"),
    ("config", "protocols", "storage"),
    ("losses", "data", "run"),
    ("models", "cluster", "channels", "evaluation", "loop", "system2"),
    ("rollout", "learners"),
    ("teachers", "methods"),
    ("experience", "pipelines", "publishing"),
    ("preflight", "report", "teaching"),
    ("roles",),
    ("stages",),
    ("cli",),
    ("notebook",),
]
RANK = {name: rank for rank, names in enumerate(FLOORS) for name in names}
MAY_IMPORT = {
    "torch": (
        "losses",
        "models",
        "channels",
        "learners",
        "methods",
        "rollout",
        "teachers",
        "stages/toy",
        "cluster",
        "preflight",
        "system2",
        "teaching",
        "run/tracking",
    ),
    "vllm": ("rollout/vllm", "channels/nccl"),
    "ray": ("cluster", "pipelines/ray_data", "roles/transfer"),
    "deepspeed": ("learners", "teachers/hf"),
}
HEAVY = {"torch", "vllm", "ray", "deepspeed", "transformers", "datasets"}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(path: Path) -> str:
    """Top-level module or package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names of all imports of a file, those inside functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def loaded_by(*arguments: str) -> tuple[set[str], float]:
    """Top-level names of the modules that a fresh interpreter loads, and how long the processor works on it, seconds."""
    start = _processor_seconds()
    done = subprocess.run([sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, check=True)
    seconds = _processor_seconds() - start
    return {name.split(".")[0] for name in re.findall(r"\|\s*([\w.]+)\s*$", done.stderr, re.MULTILINE)}, seconds


def _processor_seconds() -> float:
    """Of all child processes that have ended: other work on the machine does not count."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_downward(path: Path) -> None:
    part = part_of(path)
    assert part in RANK, f"{part} has no floor; add it to FLOORS"
    for name in imported(path):
        package, _, rest = name.partition(".")
        below = rest.split(".")[0]
        if package == "minidist" and below in RANK and below != part:
            assert RANK[below] < RANK[part], f"{part} imports {below}, which is not on a lower floor"


@pytest.mark.parametrize("library", MAY_IMPORT)
def test_heavy_libraries_are_imported_only_where_they_may_be(library: str) -> None:
    users = [path for path in FILES if library in {name.split(".")[0] for name in imported(path)}]
    rooms = [path.relative_to(PACKAGE).with_suffix("") for path in users]
    strangers = [str(room) for room in rooms if not any(room.is_relative_to(allowed) for allowed in MAY_IMPORT[library])]
    assert users and not strangers, f"{library} is imported outside {MAY_IMPORT[library]}: {strangers}"


def test_help_is_fast_and_light() -> None:
    runs = [loaded_by("-m", "minidist.cli", "--help") for _ in range(3)]
    assert "typer" in runs[0][0], "the import log is not read"
    assert not runs[0][0] & HEAVY
    assert statistics.median(seconds for _, seconds in runs) < 1


def test_config_is_light() -> None:
    modules, _ = loaded_by("-c", "import minidist.config")
    assert "pydantic" in modules
    assert not modules & HEAVY
