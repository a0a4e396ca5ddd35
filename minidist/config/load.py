"""Reads YAML and dotted overrides into a typed configuration; every refusal is one sentence."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from minidist.config.sentence import sentence
from minidist.config.stages import CONFIGS, Command
from minidist.config.trees import parse_tree, read_tree
from minidist.errors import ConfigError
from minidist.text import brief, secret_name, shown

_VARIABLE = re.compile(r"\$\{(\w+)\}")


def load(path: Path, overrides: Sequence[str] = ()) -> Command:
    """Read `path`, apply the overrides in order, and check everything that needs no model.

    Args:
        path: YAML file whose key `stage` names the stage.
        overrides: `section.key=value`, values in YAML: `run.steps=20`, `learner.optimizer.betas=[0.9,0.99]`.

    Raises:
        ConfigError: with one sentence.
    """
    tree = _read(path)
    for override in overrides:
        _override(tree, override)
    if tree.get("stage") == "score" and tree.get("output") == "table":
        tree["stage"] = "score_table"  # the verb has two stages, by the form of its output
    if tree.get("stage") == "evaluate" and "systems" in tree:
        tree["stage"] = "evaluate_programs"
    found = tree.get("stage")
    if not isinstance(found, str) or found not in CONFIGS:
        raise ConfigError(f"{path}: stage is {brief(found)}; expected one of {', '.join(CONFIGS)}")
    try:
        return CONFIGS[found].model_validate(_fill(tree, str(path)))
    except ValidationError as error:
        raise ConfigError(f"{path}: {sentence(error, CONFIGS[found])}") from None
    except (TypeError, AttributeError, LookupError, ArithmeticError) as error:  # of a rule that expects another type
        raise ConfigError(f"{path}: a value is of another type than its key takes ({shown(str(error))})") from error


def variables(path: Path, overrides: Sequence[str] = ()) -> set[str]:
    """Names of the environment variables that a configuration file and overrides name. Raises ConfigError."""
    _read(path)
    return set(_VARIABLE.findall("\n".join([path.read_text(encoding="utf-8"), *overrides])))


def dump(config: Command) -> dict[str, Any]:
    """The resolved configuration as plain JSON values, nulls and defaults included."""
    return json.loads(config.model_dump_json())


def _read(path: Path) -> dict[str, Any]:
    tree = read_tree(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold sections such as run: and student:, got {type(tree).__name__}")
    return tree


def _override(tree: dict[str, Any], override: str) -> None:
    """Set one dotted key in place, and create missing sections on the path."""
    given = shown(override)
    dotted, equals, value = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"override {given!r} is not of the form section.key=value")
    *sections, key = dotted.split(".")
    for depth, section in enumerate(sections):
        child = tree.get(section)
        if child is None:
            child = tree[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {given!r}: {'.'.join(sections[: depth + 1])} is a value, not a section")
        tree = child
    tree[key] = parse_tree(value, f"override {given!r}: its value")


def _fill(value: Any, where: str) -> Any:
    """Expand ${NAME} from the environment in every string; a missing variable is an error."""
    if isinstance(value, dict):
        return {key: _fill(child, f"{where}: {shown(str(key), 80)}") for key, child in value.items()}
    if isinstance(value, list):
        return [_fill(child, where) for child in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if secret_name(match[1]):
            raise ConfigError(
                f"{where} uses ${{{match[1]}}}, a secret that config.json would record; leave it to the environment"
            )
        if match[1] not in os.environ:
            raise ConfigError(f"{where} uses ${{{match[1]}}}, which is not set; export {match[1]}=... first")
        return os.environ[match[1]]

    return _VARIABLE.sub(variable, value)
