"""YAML and dotted overrides in, a typed configuration out; every refusal is one sentence."""

import difflib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from minidist.config.stages import CONFIGS, Config
from minidist.errors import ConfigError

_VARIABLE = re.compile(r"\$\{(\w+)\}")


def load(path: Path, overrides: Sequence[str] = (), stage: str | None = None) -> Config:
    """Read `path`, apply `section.key=value` overrides in order, and check everything that needs no model.

    `stage` is the verb that was called; the file says in its own `stage:` which one it is for. Values of overrides are
    YAML (`run.steps=20`, `learner.optimizer.betas=[0.9,0.99]`). Raises ConfigError with one sentence.
    """
    tree = _read(path)
    for override in overrides:
        _override(tree, override)
    found = tree.get("stage")
    if not isinstance(found, str) or found not in CONFIGS:
        raise ConfigError(f"{path}: stage is {found!r}; expected one of {', '.join(CONFIGS)}")
    if stage is not None and found != stage:
        raise ConfigError(f"{path} is a configuration for `minidist {found}`, not for `minidist {stage}`")
    try:
        return CONFIGS[found].model_validate(_fill(tree, str(path)))
    except ValidationError as error:
        raise ConfigError(f"{path}: {_sentence(error, CONFIGS[found])}") from None


def dump(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain JSON values, nulls and defaults included."""
    return json.loads(config.model_dump_json())


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"no configuration file at {path}")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold sections such as run: and student:, got {type(tree).__name__}")
    return tree


def _override(tree: dict[str, Any], override: str) -> None:
    """Set one dotted key in place; sections on the way are made when they are missing."""
    dotted, equals, value = override.partition("=")
    if not equals or not dotted:
        raise ConfigError(f"override {override!r} is not of the form section.key=value")
    *sections, key = dotted.split(".")
    for depth, section in enumerate(sections):
        child = tree.get(section)
        if child is None:
            child = tree[section] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"override {override!r}: {'.'.join(sections[: depth + 1])} is a value, not a section")
        tree = child
    try:
        tree[key] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {value!r} is not a valid YAML value") from None


def _fill(value: Any, where: str) -> Any:
    """Fill ${NAME} from the environment in every string; a missing variable is an error, never an empty string."""
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


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem as a sentence, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    where = _key(first["loc"], model) or "configuration"
    if first["type"] == "extra_forbidden":
        text = f"unknown key {where}{_suggestion(first['loc'], model)}"
    elif first["type"] == "union_tag_invalid":
        context = first.get("ctx", {})
        expected = str(context["expected_tags"]).replace("'", "")
        close = difflib.get_close_matches(str(context["tag"]), expected.split(", "), n=1)
        text = f"{where}.type is {context['tag']!r}; expected one of {expected}" + _did_you_mean(close)
    elif first["type"] == "missing":
        text = f"{where} is missing"
    elif first["type"] == "value_error":
        text = str(first.get("ctx", {})["error"])
    else:
        message = str(first["msg"])
        text = f"{where} is {first['input']!r}; {message[0].lower()}{message[1:]}"
    return text + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _suggestion(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """A near miss among the fields that stand at the unknown key's place."""
    here, choice = model, model
    for part in location[:-1]:
        if part in here.model_fields:
            choice = here.model_fields[str(part)].annotation
            here = _section(choice) or here
        else:  # the tag of a union, which pydantic puts into the location and nobody writes
            here = _tagged(choice, str(part)) or here
    return _did_you_mean(difflib.get_close_matches(str(location[-1]), list(here.model_fields), n=1))


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section class of a field, through `X | None` and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section(part))), None)


def _tagged(annotation: Any, tag: str) -> type[BaseModel] | None:
    """The member of a union of sections whose `type` is `tag`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation if "type" in annotation.model_fields and annotation.model_fields["type"].default == tag else None
    return next((found for part in get_args(annotation) if (found := _tagged(part, tag))), None)


def _key(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """The dotted key as the user wrote it."""
    parts, here = [], model
    for index, part in enumerate(location):
        known = part in here.model_fields
        if known or index == len(location) - 1 or not parts:
            parts.append(str(part))
        if known:
            here = _section(here.model_fields[str(part)].annotation) or here
    return ".".join(parts)


def _did_you_mean(close: list[str]) -> str:
    return f"; did you mean {close[0]}?" if close else ""
