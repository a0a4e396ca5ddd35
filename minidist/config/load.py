"""Reads YAML and dotted overrides into a typed configuration; every refusal is one sentence."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from minidist.config.sentence import sentence, without_password
from minidist.config.stages import CONFIGS, Command
from minidist.errors import ConfigError

_VARIABLE = re.compile(r"\$\{(\w+)\}")


class _EachKeyOnce(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            problem = f"the key {repeated[0]!r} stands twice in one section; keep one of the two"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


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
        raise ConfigError(f"{path}: stage is {found!r}; expected one of {', '.join(CONFIGS)}")
    try:
        return CONFIGS[found].model_validate(_fill(tree, str(path)))
    except ValidationError as error:
        raise ConfigError(f"{path}: {sentence(error, CONFIGS[found])}") from None


def variables(path: Path, overrides: Sequence[str] = ()) -> set[str]:
    """Names of the environment variables that a configuration file and overrides name. Raises ConfigError."""
    _read(path)
    return set(_VARIABLE.findall("\n".join([path.read_text(encoding="utf-8"), *overrides])))


def dump(config: Command) -> dict[str, Any]:
    """The resolved configuration as plain JSON values, nulls and defaults included."""
    return json.loads(config.model_dump_json())


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"no configuration file at {path}")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _EachKeyOnce)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold sections such as run: and student:, got {type(tree).__name__}")
    return tree


def _override(tree: dict[str, Any], override: str) -> None:
    """Set one dotted key in place, and create missing sections on the path."""
    shown = without_password(override)
    dotted, equals, value = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"override {shown!r} is not of the form section.key=value")
    *sections, key = dotted.split(".")
    for depth, section in enumerate(sections):
        child = tree.get(section)
        if child is None:
            child = tree[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {shown!r}: {'.'.join(sections[: depth + 1])} is a value, not a section")
        tree = child
    try:
        tree[key] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"override {shown!r}: its value is not a valid YAML value") from None


def _fill(value: Any, where: str) -> Any:
    """Expand ${NAME} from the environment in every string; a missing variable is an error."""
    if isinstance(value, dict):
        return {key: _fill(child, f"{where}: {key}") for key, child in value.items()}
    if isinstance(value, list):
        return [_fill(child, where) for child in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"{where} uses ${{{match[1]}}}, which is not set; export {match[1]}=... first")
        return os.environ[match[1]]

    return _VARIABLE.sub(variable, value)
