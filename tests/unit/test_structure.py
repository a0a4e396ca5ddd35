"""The size and shape of the code: few modules at the top, short functions and classes, few parameters, names of the field."""

import ast
import re
from pathlib import Path

import pytest

import minidist

PACKAGE = Path(minidist.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path.relative_to(PACKAGE): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = [(path, node) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, Function)]
PRONOUNS = {"said", "taught", "told", "theirs"}
"""Words that do not name the thing."""


def lines(node: Function | ast.ClassDef) -> int:
    """Lines of a definition, docstring included and decorators not."""
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def parameters(function: Function) -> list[str]:
    """Names of the parameters but the first of methods and of autograd functions."""
    arguments = function.args
    named = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    return [argument.arg for argument in named if argument is not None and argument.arg not in ("self", "cls", "ctx")]


def words(node: ast.AST) -> set[str]:
    """Words of the name that a node reads or binds."""
    names = (getattr(node, field, None) for field in ("id", "arg", "attr", "name"))
    return {word for name in names if isinstance(name, str) for word in re.split("_+", name.lower())}


def test_at_most_six_modules_stand_at_the_top() -> None:
    top = [path.name for path in PACKAGE.glob("*.py") if path.name != "__init__.py"]
    assert len(top) <= 6, f"move modules into folders: {top}"


def test_functions_are_short() -> None:
    lengths = sorted(lines(function) for _, function in FUNCTIONS)
    assert lengths[int(0.9 * len(lengths))] <= 20, "nine functions in ten have at most 20 lines"
    assert [f"{path}: {function.name}" for path, function in FUNCTIONS if lines(function) > 62] == []


def test_classes_are_short() -> None:
    classes = [(path, node) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    assert [f"{path}: {node.name}" for path, node in classes if lines(node) > 180] == []


def test_functions_have_few_parameters() -> None:
    """Dataclasses and configuration sections, whose fields are their parameters, define no constructors."""
    many = [f"{path}: {function.name}" for path, function in FUNCTIONS if len(parameters(function)) > 6]
    assert [name for name in many if not name.startswith("config/")] == []


def test_functions_declare_what_they_return() -> None:
    assert [f"{path}: {function.name}" for path, function in FUNCTIONS if function.returns is None] == []


@pytest.mark.parametrize("word", sorted(PRONOUNS))
def test_names_are_nouns_of_the_field(word: str) -> None:
    found = {f"{path}:{node.lineno}" for path, tree in TREES.items() for node in ast.walk(tree) if word in words(node)}  # type: ignore[attr-defined]
    assert sorted(found) == []
