"""Every configuration key, from the docstrings of the fields: `python -m minidist.config.reference > configs/REFERENCE.md`."""

import json
import re
from collections import Counter
from typing import Any

from pydantic.json_schema import models_json_schema

from minidist.config.stages import CONFIGS

_INTRODUCTION = """# Configuration reference

Every key of every stage. This page is generated from the field docstrings under `minidist/config/`; to regenerate it:

```
python -m minidist.config.reference > configs/REFERENCE.md
```

A key is written `section.key` on the command line (`minidist distill mine.yaml learner.optimizer.lr=1e-4`) and nested in the
file. Unknown keys are refused. `${NAME}` in a value is filled in from the environment. [Writing a configuration](README.md)
introduces the sections by example.
"""
_HEADER = "| key | type | default | meaning |\n|---|---|---|---|\n"
_PLAIN = {"boolean": "true or false", "integer": "integer", "number": "number", "string": "text", "null": "null"}
_BOUNDS = {"minimum": " ≥ {:g}", "exclusiveMinimum": " > {:g}", "maximum": " ≤ {:g}", "exclusiveMaximum": " < {:g}"}
_BOUNDS |= dict.fromkeys(("minLength", "minItems", "minProperties"), ", length ≥ {}") | {"pattern": " matching `{}`"}


def reference() -> str:
    """The page, in Markdown."""
    return _Page().text()


class _Page:
    """The JSON schema of each section, the keys at which the section stands, and the text made from both."""

    def __init__(self) -> None:
        schema = models_json_schema([(config, "validation") for config in CONFIGS.values()], ref_template="{model}")[1]
        self._schemas: dict[str, dict[str, Any]] = schema["$defs"]
        self._keys = {config.__name__: ["stage"] for config in CONFIGS.values()}
        for config in CONFIGS.values():
            self._collect(config.__name__, "")
        shared = Counter(keys[0] for keys in self._keys.values())
        self._titles = {
            name: f"`{keys[0]}`" + f": {self._label(name)}" * (shared[keys[0]] > 1) for name, keys in self._keys.items()
        }

    def text(self) -> str:
        contents = "".join(f"- {self._link(config.__name__)}\n" for config in CONFIGS.values())
        return "\n".join([_INTRODUCTION, contents, *map(self._section, self._titles)])

    def _collect(self, section: str, path: str) -> None:
        for key, field in self._schemas[section]["properties"].items():
            for child in self._sections(field):
                here = f"{path}{key}" + (".NAME" if "additionalProperties" in field else "")
                keys = self._keys.setdefault(child, [])
                keys += [here] if here not in keys else []
                self._collect(child, f"{here}.")

    def _sections(self, field: dict[str, Any]) -> list[str]:
        """The sections that may stand at a key."""
        return [name for name in re.findall(r'"\$ref": "(\w+)"', json.dumps(field)) if "properties" in self._schemas[name]]

    def _label(self, name: str) -> str:
        """What tells a section apart from others at the same key: its type or stage, or else the name of its class."""
        fields = self._schemas[name]["properties"]
        return fields.get("type", fields.get("stage", {})).get("const", name.removesuffix("Config"))

    def _link(self, name: str) -> str:
        title = self._titles[name]
        anchor = re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")  # the name that GitHub gives a heading
        return f"[{title.rpartition(': ')[2]}](#{anchor})"

    def _section(self, name: str) -> str:
        schema, also = self._schemas[name], ", ".join(f"`{key}`" for key in self._keys[name][1:])
        meaning = "\n\n".join(" ".join(paragraph.split()) for paragraph in schema["description"].split("\n\n"))
        rows = "".join(self._row(key, field, key in schema.get("required", ())) for key, field in schema["properties"].items())
        return f"## {self._titles[name]}\n\n{meaning}\n\n" + (f"Also at {also}.\n\n" if also else "") + _HEADER + rows

    def _row(self, key: str, field: dict[str, Any], required: bool) -> str:
        sections = self._sections(field)
        meaning = field.get("description") or ("Selects these keys." if "const" in field else "")
        if not meaning and len(sections) == 1:
            meaning = self._schemas[sections[0]]["description"].partition("\n\n")[0]
        meaning += " It may change when a run resumes." if field.get("free") else ""
        default = "**required**" if required else _default(field)
        return f"| `{key}` | {self._type(field)} | {default} | {_cell(meaning)} |\n"

    def _type(self, field: dict[str, Any]) -> str:
        if name := field.get("$ref"):
            return self._link(name) if name in self._titles else self._type(self._schemas[name])
        if kinds := field.get("anyOf", field.get("oneOf")):
            return " or ".join(map(self._type, kinds))
        if "const" in field or "enum" in field:
            return ", ".join(map(_code, field.get("enum", [field.get("const")])))
        if field.get("type") == "object":
            inner = field["additionalProperties"]
            text = f"NAME: {self._type(inner)}" if isinstance(inner, dict) else "mapping"
        elif "prefixItems" in field:
            return f"[{', '.join(map(self._type, field['prefixItems']))}]"
        elif field.get("type") == "array":
            text = f"list of {self._type(field['items'])}"
        else:
            text = field.get("format") or _PLAIN.get(field.get("type", ""), "any")
        return text + " and".join(bound.format(field[name]) for name, bound in _BOUNDS.items() if name in field)


def _default(field: dict[str, Any]) -> str:
    value = field.get("default")
    if isinstance(value, dict) and value:
        return _code(value["type"]) if "oneOf" in field else "its defaults"
    return _code(value)


def _code(value: Any) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _cell(text: str) -> str:
    """Text on one line, with the characters escaped that a Markdown table reads."""
    parts = re.sub(r"\bNone\b", "null", " ".join(text.split())).split("`")
    parts[::2] = [part.replace("<", "\\<").replace("*", "\\*") for part in parts[::2]]
    return "`".join(parts).replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
