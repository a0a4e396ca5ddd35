"""Validation errors of pydantic as one sentence."""

import difflib
import re
from collections.abc import Iterable
from typing import Any, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError

from minidist.text import brief, shown, without_secrets

UNUSABLE = "unusable"
"""Type of an error of a value that no setting can have, with its `key` and its `fault`."""


def sentence(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem as a sentence, and how many more there are."""
    problems = _without_copies(error.errors(include_url=False))
    first = problems[0]
    keys, section = _walk(first["loc"][:-1], model)
    last = [shown(str(key), 80) for key in first["loc"][-1:]]
    where = ".".join([*keys, *last]) or "configuration"
    if first["type"] == "extra_forbidden":
        text = f"unknown key {where}{did_you_mean(last[0], section.model_fields)}"
        if where in ("teachers", "routing") and "teacher" in section.model_fields:
            text = f"{where} belongs to distill, and this stage takes one teacher; set teacher, and run it once for each"
    elif first["type"] == "union_tag_invalid":
        context = first.get("ctx", {})
        expected = str(context["expected_tags"]).replace("'", "")
        text = f"{where}.type is {brief(context['tag'])}; expected one of {expected}"
        text += did_you_mean(str(context["tag"]), expected.split(", "))
    elif first["type"] == "union_tag_not_found":
        given = first["input"]
        text = f"{where}.type is missing" if isinstance(given, dict) else f"{where} is {brief(given)}; expected a section"
    elif first["type"] == "missing":
        text = f"{where} is missing"
    elif first["type"] == UNUSABLE:
        context = first.get("ctx", {})
        text = f"{'.'.join([*_walk(first['loc'], model)[0], context['key']])} {context['fault']}"
    elif first["type"] == "value_error":
        text = str(first.get("ctx", {})["error"])
        text = of_teacher(text, ".".join(keys[:2] if len(keys) > 1 else [*keys, *last])) if "teachers" in keys[:1] else text
    else:
        message = str(first["msg"])
        text = f"{where} is {brief(first['input'])}; {message[0].lower()}{message[1:]}"
    return without_secrets(text) + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def of_teacher(text: str, key: str) -> str:
    """A sentence on the section `teacher`, as one on the section `key` of a teacher among several.

    >>> of_teacher("teacher.dtype splits cluster.teacher.shards", "teachers.maths")
    'teachers.maths.dtype splits cluster.teacher.shards'
    """
    return re.sub(r"(?<![\w.])teacher(?=\.[a-z])|^teacher(?= is )", key, text)


def _without_copies(problems: list[Any]) -> list[Any]:
    """Without those of `teacher`, where they are those of the first of several `teachers`."""
    several = any(problem["loc"][:1] == ("teachers",) for problem in problems)
    return [problem for problem in problems if not (several and problem["loc"][:1] == ("teacher",))]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence that refuses `word`: the known word closest to it, if any is close."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


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
