"""What a shell offers after a verb: configuration files, and the keys and values of their sections.

A shell waits for every answer, so the sections are read from the source text of minidist/config: importing them takes several
times as long as reading them.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from minidist.stages import STAGES

_SOURCES = Path(__file__).parents[1] / "config"
_STAGE = re.compile(r"^stage:\s*[\"']?(\w+)", re.MULTILINE)
_DEFINED = re.compile(r"^(?:class )?(\w+)(?=[(:]| = )", re.MULTILINE)
_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)
_OF_STAGE = re.compile(r"^    stage: Literal\[\"(\w+)\"\]", re.MULTILINE)
Candidate = tuple[str, str]
"""A text that may stand at the cursor, and its meaning."""


def files(incomplete: str) -> list[Candidate]:
    """YAML files and directories that begin with a text; of a directory that is the only one, what it holds."""
    folder, name = (Path(incomplete).parent, Path(incomplete).name) if not incomplete.endswith("/") else (Path(incomplete), "")
    prefix = incomplete[: len(incomplete) - len(name)]
    try:
        entries = sorted(folder.expanduser().iterdir())
    except OSError:
        return []
    shown = [each for each in entries if each.name.startswith(name) and (name.startswith(".") or not each.name.startswith("."))]
    found = [f"{prefix}{each.name}{'/' * each.is_dir()}" for each in shown if each.is_dir() or each.suffix in (".yaml", ".yml")]
    if len(found) == 1 and found[0].endswith("/"):
        return files(found[0]) or [(found[0], "")]
    return [(each, "") for each in found]


def overrides(verb: str, config: Path | None, before: list[str], incomplete: str) -> list[Candidate]:
    """`section.key=value` of a verb's configurations that begin with a text.

    Args:
        verb: of the command line.
        config: the configuration, which tells the stage where it can be read.
        before: the words before the one at the cursor; bash divides `key=value` into three.
        incomplete: the word at the cursor.
    """
    roots = _roots(verb, config)
    if before[-1:] == ["="] and len(before) > 1:
        return [(value, "") for value in _values(roots, before[-2]) if value.startswith(incomplete)]
    key, equals, value = incomplete.partition("=")
    if equals:
        return [(f"{key}={each}", "") for each in _values(roots, key) if each.startswith(value)]
    return _keys(roots, key)


def _roots(verb: str, config: Path | None) -> list[str]:
    """Classes of the stages that a configuration may be of."""
    try:
        found = _STAGE.search(config.read_text(encoding="utf-8")) if config is not None and config.is_file() else None
    except (OSError, ValueError):
        found = None
    stages = [name for name, stage in STAGES.items() if verb == stage.verb] or list(STAGES)
    stages = ["distill"] if verb == "plan" else stages
    if found is not None and found[1] in stages:
        stages = [found[1]]
    return _source().of_stages(stages)


def _keys(roots: list[str], incomplete: str) -> list[Candidate]:
    """Dotted keys. A section that is the only one is followed by its keys, a single key by its values: a shell that is left
    with one candidate would end the word there."""
    *path, name = incomplete.split(".")
    owners = _descend(roots, path)
    found: dict[str, str] = {}
    for owner in owners:
        for field in _source().fields(owner):
            if field.startswith(name) and field != "stage":
                ending = "." if _source().sections(owner, field) else "="
                found.setdefault(".".join([*path, field]) + ending, _source().meaning(owner, field))
    if len(found) != 1:
        return list(found.items())
    [(key, meaning)] = found.items()
    if key.endswith("."):
        return _keys(roots, key) or [(key, meaning)]
    return [(key, meaning), *((key + value, "") for value in _values(roots, key.removesuffix("=")))]


def _values(roots: list[str], key: str) -> list[str]:
    """Values of a key that has a fixed set of them; else its default."""
    *path, field = key.split(".")
    found = {value: None for owner in _descend(roots, path) for value in _source().choices(owner, field)}
    return list(found) or sorted({value for owner in _descend(roots, path) for value in _source().default(owner, field)})


def _descend(roots: list[str], path: list[str]) -> list[str]:
    """The classes of the section at a path below others. A name follows a mapping of sections."""
    owners, named = roots, False
    for field in path:
        if named:
            named = False
            continue
        below = [(owner, section) for owner in owners for section in _source().sections(owner, field)]
        named = any(_source().is_mapping(owner, field) for owner, _ in below)
        owners = list(dict.fromkeys(section for _, section in below))
    return [] if named else owners


class _Source:
    """Classes of sections, and the names that stand for several of them. A file is parsed when a name that it defines is asked
    for: a word needs a few of them."""

    def __init__(self) -> None:
        self._texts = {file: file.read_text(encoding="utf-8") for file in sorted(_SOURCES.rglob("*.py"))}
        self._homes = {name: file for file, text in self._texts.items() for name in _DEFINED.findall(text)}
        self._parsed: dict[Path, dict[str, ast.stmt]] = {}
        self._fields: dict[str, dict[str, tuple[ast.AnnAssign, str]]] = {}

    def of_stages(self, stages: list[str]) -> list[str]:
        """The classes of the configurations of these stages."""
        found = []
        for text in self._texts.values():
            for match in _OF_STAGE.finditer(text):
                if match[1] in stages:
                    found.append(_CLASS.findall(text[: match.start()])[-1])
        return found

    def is_section(self, name: str) -> bool:
        """Whether a name is that of a class."""
        return isinstance(self._node(name), ast.ClassDef)

    def _node(self, name: str) -> ast.stmt | None:
        """What defines a name; None for a name that these files only import."""
        if (file := self._homes.get(name)) is None:
            return None
        if file not in self._parsed:
            defined = self._parsed[file] = {}
            for node in ast.parse(self._texts[file]).body:
                if isinstance(node, ast.ClassDef):
                    defined[node.name] = node
                elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    defined[node.targets[0].id] = node
        return self._parsed[file].get(name)

    def fields(self, owner: str) -> dict[str, tuple[ast.AnnAssign, str]]:
        """The fields of a class and of its bases, with their docstrings."""
        if owner not in self._fields:
            node = self._node(owner)
            self._fields[owner] = self._read(node) if isinstance(node, ast.ClassDef) else {}
        return self._fields[owner]

    def _read(self, node: ast.ClassDef) -> dict[str, tuple[ast.AnnAssign, str]]:
        found: dict[str, tuple[ast.AnnAssign, str]] = {}
        for base in reversed(node.bases):
            found |= self.fields(base.id) if isinstance(base, ast.Name) else {}
        for place, each in enumerate(node.body):
            if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                if any(isinstance(part, ast.Name) and part.id == "ClassVar" for part in ast.walk(each.annotation)):
                    found.pop(each.target.id, None)
                else:
                    found[each.target.id] = each, _docstring(node.body[place + 1 : place + 2])
        return found

    def meaning(self, owner: str, field: str) -> str:
        """The first sentence of a field's docstring."""
        return self.fields(owner)[field][1].partition(". ")[0]

    def sections(self, owner: str, field: str) -> list[str]:
        """The classes that may stand at a field, whose keys may be written after its own; those of a list may not."""
        names = self._names(owner, field)
        return [] if "list" in names and "dict" not in names else [name for name in names if self.is_section(name)]

    def is_mapping(self, owner: str, field: str) -> bool:
        """Whether the sections at a field have names of their own."""
        return "dict" in self._names(owner, field)

    def choices(self, owner: str, field: str) -> list[str]:
        """The values of a field that has a fixed set of them."""
        if field not in self.fields(owner) or self.sections(owner, field):
            return []
        found: list[str] = []
        for node in self._walk(self.fields(owner)[field][0].annotation, set()):
            if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id == "Literal":
                found += [str(each.value) for each in ast.walk(node.slice) if isinstance(each, ast.Constant)]
        return found + (["true", "false"] if "bool" in self._names(owner, field) else [])

    def default(self, owner: str, field: str) -> list[str]:
        """The default of a field, if it is a number or a text."""
        value = self.fields(owner)[field][0].value if field in self.fields(owner) else None
        if isinstance(value, ast.Call):
            value = next((each.value for each in value.keywords if each.arg == "default"), None)
        plain = isinstance(value, ast.Constant) and isinstance(value.value, int | float | str)
        return [str(value.value)] if isinstance(value, ast.Constant) and plain and value.value != "" else []

    def _names(self, owner: str, field: str) -> list[str]:
        """Names in a field's annotation."""
        if field not in self.fields(owner):
            return []
        nodes = self._walk(self.fields(owner)[field][0].annotation, set())
        return list(dict.fromkeys(node.id for node in nodes if isinstance(node, ast.Name)))

    def _walk(self, node: ast.AST, seen: set[str]) -> Iterator[ast.AST]:
        """The parts of an annotation, with what its names stand for."""
        for part in ast.walk(node):
            yield part
            if isinstance(part, ast.Name) and part.id not in seen:
                seen.add(part.id)
                if isinstance(alias := self._node(part.id), ast.Assign):
                    yield from self._walk(alias.value, seen)


@cache
def _source() -> _Source:
    return _Source()


def _docstring(following: list[ast.stmt]) -> str:
    """The text below a field, on one line."""
    for node in following:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            return " ".join(node.value.value.split())
    return ""
