"""What pydantic found wrong, as one sentence for people."""

import difflib
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


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
