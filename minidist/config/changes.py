"""Which settings may change when a run resumes, and the first other difference from a recorded configuration."""

from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from minidist.config.base import FREE, Section
from minidist.config.load import dump
from minidist.config.sentence import section_of
from minidist.config.stages import Command


def free_settings(kind: type[Section], prefix: str = "") -> set[str]:
    """Dotted names of the fields marked FREE, in `kind` and its sections."""
    names = set()
    for name, field in kind.model_fields.items():
        section = section_of(field.annotation)
        if field.json_schema_extra == FREE.json_schema_extra:
            names.add(prefix + name)
        elif section is not None and issubclass(section, Section):
            names |= free_settings(section, f"{prefix}{name}.")
    return names


def difference(recorded: dict[str, Any], config: Command) -> tuple[str, Any, Any] | None:
    """The first setting, not FREE, that differs from a run's config.json: its dotted name, the recorded and the new value.

    The record is read by today's classes first, so that fields that have been added or dropped since with their default value
    are no difference.
    """
    # A record that today's classes refuse is compared as it is.
    with suppress(ValidationError, TypeError, AttributeError, LookupError, ArithmeticError):
        recorded = dump(type(config).model_validate(recorded))
    return _first(recorded, dump(config), free_settings(type(config)))


def _first(recorded: Any, new: Any, free: set[str], key: str = "") -> tuple[str, Any, Any] | None:
    if not (isinstance(recorded, dict) and isinstance(new, dict)):
        return None if recorded == new else (key, recorded, new)
    for name in new | recorded:
        path = f"{key}.{name}".lstrip(".")
        if path not in free and (found := _first(recorded.get(name), new.get(name), free, path)):
            return found
    return None
