"""Every configuration key, from the docstrings of the fields: `python -m minidist.config.reference > configs/REFERENCE.md`."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from minidist.config.base import Section
from minidist.config.stages import CONFIGS

Sections = tuple[type[Section], ...]
"""The classes that may stand at one key: a single section, or the members of a union."""

_INTRODUCTION = """# Configuration reference

Every key of every stage. This page is generated from the field docstrings under `minidist/config/`; to regenerate it:

```
python -m minidist.config.reference > configs/REFERENCE.md
```

A key is written `section.key` on the command line (`minidist distill mine.yaml learner.optimizer.lr=1e-4`) and nested in the
file. Unknown keys are refused. `${NAME}` in a value is filled in from the environment. [Writing a configuration](README.md)
introduces the sections by example.
"""
_PLAIN = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path", NoneType: "null", Any: "any"}
_BOUNDS = {
    "ge": " ≥ {:g}",
    "gt": " > {:g}",
    "le": " ≤ {:g}",
    "lt": " < {:g}",
    "min_length": ", length ≥ {}",
    "pattern": " matching `{}`",
}
_HEADER = ("| key | type | default | meaning |", "|---|---|---|---|")
_SHARED = 3  # A key that this many members of a union have alike stands once, in the union's table.


def reference() -> str:
    """The page, in Markdown."""
    return _Page().text()


def sections_in(annotation: Any) -> Sections:
    """The section classes inside a type, through unions, lists and mappings, in order.

    >>> from minidist.config.run import RunConfig
    >>> [section.__name__ for section in sections_in(dict[str, RunConfig] | None)]
    ['RunConfig']
    """
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    return tuple(dict.fromkeys(section for part in get_args(annotation) for section in sections_in(part)))


class _Page:
    """Where each section stands in the configurations, and the text made from that."""

    def __init__(self) -> None:
        self._uses: dict[Sections, dict[str, list[str]]] = {}  # Sections to paths to stages.
        for stage, config in CONFIGS.items():
            self._collect(stage, config, "")
        self._titles = {sections: self._title(sections) for sections in self._uses}
        # Each member of a union has one heading, under the first union that it is in.
        self._members: dict[type[Section], str] = {}
        self._headed: set[type[Section]] = set()  # Members that have keys to list, hence a heading.
        for sections, title in self._titles.items():
            for member, label in (_labels(sections) if len(sections) > 1 else {}).items():
                self._members.setdefault(member, f"`{_path(title)}.{label}`")

    def text(self) -> str:
        stages = "\n".join(f"- [`stage: {stage}`](#{_anchor(f'stage: {stage}')})" for stage in CONFIGS)
        parts = [_INTRODUCTION, stages + "\n"]
        parts += [_heading(2, f"stage: {name}", config) + self._table(config) for name, config in CONFIGS.items()]
        parts.append("## Sections\n")
        for sections, title in self._titles.items():
            also = ", ".join(f"`{path}`" for path in self._uses[sections] if path != _path(title))
            note = f"Also at {also}.\n\n" if also else ""
            if len(sections) == 1:
                parts.append(_heading(3, title, sections[0]) + note + self._table(sections[0]))
            else:
                parts.append(f"### {title}\n\n{note}" + self._union(sections, title))
        return "\n".join(parts)

    def _collect(self, stage: str, section: type[Section], path: str) -> None:
        for name, field in section.model_fields.items():
            sections = sections_in(field.annotation)
            here = f"{path}{name}" + (".NAME" if get_origin(field.annotation) is dict else "")
            if sections and stage not in (stages := self._uses.setdefault(sections, {}).setdefault(here, [])):
                stages.append(stage)
            for child in sections:
                self._collect(stage, child, f"{here}.")

    def _title(self, sections: Sections) -> str:
        """The first key that holds the sections, with its stages where other sections stand at the same key."""
        path, stages = next(iter(self._uses[sections].items()))
        rivals = [other for other, uses in self._uses.items() if next(iter(uses)) == path]
        return f"`{path}`" + (f" ({', '.join(stages)})" if len(rivals) > 1 else "")

    def _union(self, sections: Sections, title: str) -> str:
        """A table of the members, one of the keys that several of them share, and one for each member's other keys."""
        labels, path = _labels(sections), _path(title)
        here = [section for section in sections if self._members[section].startswith(f"`{path}.")]
        counts = Counter(row for section in here for row in self._rows(section))
        shared = [row for row, count in counts.items() if count >= _SHARED]
        tables = {section: table for section in here if (table := self._table(section, shared))}
        self._headed.update(tables)
        rows = []
        for section, label in labels.items():
            name = f"[`{label}`](#{_anchor(self._members[section])})" if section in self._headed else f"`{label}`"
            rows.append(f"| {name} | {_cell(_doc(section))} |")
        text = "\n".join(["One of these:\n", "| | meaning |", "|---|---|", *rows]) + "\n"
        if shared:
            values = {each: label.partition(": ")[2] for each, label in labels.items()}
            holders = [", ".join(f"`{values[each]}`" for each in here if row in self._rows(each)) for row in shared]
            table = "\n".join(f"{row} {of} |" for row, of in zip(shared, holders, strict=True))
            text += f"\nKeys that several of them share:\n\n{_HEADER[0]} of |\n{_HEADER[1]}---|\n{table}\n"
        return text + "".join(f"\n{_heading(4, self._members[each], each)}{table}" for each, table in tables.items())

    def _table(self, section: type[Section], without: Sequence[str] = ()) -> str:
        rows = [row for row in self._rows(section) if row not in without]
        return "\n".join([*_HEADER, *rows]) + "\n" if rows else ""

    def _rows(self, section: type[Section]) -> list[str]:
        return [self._row(name, field) for name, field in section.model_fields.items() if not _is_fixed(field)]

    def _row(self, name: str, field: FieldInfo) -> str:
        sections = sections_in(field.annotation)
        meaning = field.description or (_doc(sections[0]) if len(sections) == 1 else "")
        # A mark of a field is the rest of a sentence about it, such as "may change when a run resumes".
        meaning += "".join(f" It {mark}." for mark in field.metadata if isinstance(mark, str))
        return f"| `{name}` | {self._type(field.annotation, field.metadata)} | {_default(field, sections)} | {_cell(meaning)} |"

    def _type(self, annotation: Any, metadata: list[Any]) -> str:
        bounds = _bounds(metadata)
        if annotation in _PLAIN:
            return _PLAIN[annotation] + bounds
        origin, parts = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return self._type(parts[0], [*parts[1:], *metadata])
        if (sections := sections_in(annotation)) and origin is not dict:
            title = self._titles[sections]
            return f"[`{_path(title)}`](#{_anchor(title)})" + (" or null" if NoneType in parts else "")
        if origin is Literal or (isinstance(annotation, type) and issubclass(annotation, Enum)):
            values = parts or [member.value for member in annotation]
            return ", ".join(f"`{value if isinstance(value, str) else json.dumps(value)}`" for value in values)
        if origin is dict:
            title = self._titles.get(sections)
            mapping = "mapping" if parts[1] is Any else f"NAME: {self._type(parts[1], [])}"
            return f"NAME: [`{_path(title)}`](#{_anchor(title)})" if title else mapping
        if origin is list:
            return f"list of {self._type(parts[0], [])}{bounds}"
        if origin is tuple:
            return f"[{', '.join(self._type(part, []) for part in parts)}]"
        return " or ".join(self._type(part, metadata if part is not NoneType else []) for part in parts)


def _labels(sections: Sections) -> dict[type[Section], str]:
    """What tells each member of a union apart: `key: value` of the fields that have one value alone."""
    fixed = [
        {name: str(get_args(field.annotation)[0]) for name, field in section.model_fields.items() if _is_fixed(field)}
        for section in sections
    ]
    varied = [name for name in fixed[0] if len({values.get(name) for values in fixed}) > 1]
    values = [[f"{name}: {each[name]}" for name in varied if name in each] for each in fixed]
    # The first field alone, and the next ones where members share its value.
    firsts = Counter(each[0] for each in values)
    return {
        section: ", ".join(each if firsts[each[0]] > 1 else each[:1]) for section, each in zip(sections, values, strict=True)
    }


def _is_fixed(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def _bounds(metadata: list[Any]) -> str:
    found = [(text, getattr(constraint, name, None)) for constraint in metadata for name, text in _BOUNDS.items()]
    return " and".join(text.format(limit) for text, limit in found if limit is not None)


def _default(field: FieldInfo, sections: Sections) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "**required**"
    if isinstance(value, BaseModel):
        return (
            "its defaults"
            if len(sections) == 1
            else next(f"`{label}`" for each, label in _labels(sections).items() if type(value) is each)
        )
    return f"`{value if isinstance(value, str) else json.dumps(value, default=str)}`"


def _doc(section: type[Section]) -> str:
    """The first paragraph of a section's docstring."""
    return (section.__doc__ or "").strip().partition("\n\n")[0]


def _cell(text: str) -> str:
    """Text on one line, with the characters escaped that a Markdown table reads."""
    parts = re.sub(r"\bNone\b", "null", " ".join(text.split())).split("`")
    parts[::2] = [part.replace("<", "\\<").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|")


def _heading(level: int, title: str, section: type[Section]) -> str:
    paragraphs = (section.__doc__ or "").strip().split("\n\n")
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return f"{'#' * level} {title}\n\n{text}\n\n"


def _path(title: str) -> str:
    """The key that a title names."""
    return title.split(" (")[0].strip("`")


def _anchor(title: str) -> str:
    """The name that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    print(reference(), end="")
