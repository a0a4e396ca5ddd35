"""Validation errors of pydantic as one sentence."""

import difflib
from typing import Any, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError


def sentence(error: ValidationError, model: type[BaseModel]) -> str:
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
    """The closest field name of the section that holds the unknown key."""
    _, section = _walk(location[:-1], model)
    return _did_you_mean(difflib.get_close_matches(str(location[-1]), list(section.model_fields), n=1))


def _key(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """The dotted key as the user wrote it."""
    parts, _ = _walk(location[:-1], model)
    return ".".join([*parts, *map(str, location[-1:])])


def _walk(location: tuple[int | str, ...], model: type[BaseModel]) -> tuple[list[str], type[BaseModel]]:
    """The keys along a location, without the union tags that pydantic adds, and the section at its end."""
    keys: list[str] = []
    section, annotation = model, None
    for part in map(str, location):
        if get_origin(annotation) is dict:  # the part is a key of the user's choice
            annotation = get_args(annotation)[1]
            section = section_of(annotation) or section
        elif part in section.model_fields:
            annotation = section.model_fields[part].annotation
            section = section_of(annotation) or section
        elif (member := _tagged(annotation, part)) is not None:
            section = member
            continue
        keys.append(part)
    return keys, section


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class of a field, through `X | None` and unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part))), None)


def _tagged(annotation: Any, tag: str) -> type[BaseModel] | None:
    """The member of a discriminated union that has this tag: as the default of its field `type`, or as a `Tag`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation if "type" in annotation.model_fields and annotation.model_fields["type"].default == tag else None
    parts = get_args(annotation)
    if any(isinstance(part, Tag) and part.tag == tag for part in parts):
        return parts[0]
    return next((found for part in parts if (found := _tagged(part, tag))), None)


def _did_you_mean(close: list[str]) -> str:
    return f"; did you mean {close[0]}?" if close else ""
