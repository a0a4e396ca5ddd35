"""YAML as configurations have it: sections, lists, texts, numbers, true, false and null, of a bounded size and depth.

A file may come from others: an alias that stands for itself, aliases of aliases that would fill the memory, nesting, tags and
numbers without an end are refused in one sentence.
"""

import stat
from pathlib import Path
from typing import Any

import yaml

from minidist.errors import ConfigError
from minidist.text import shown

_LARGEST_FILE = 1 << 20  # bytes
_MOST_NODES = 100_000  # values, those counted again that an alias repeats
_DEEPEST = 40
_LARGEST_NUMBER = 2.0**63


class _Loader(yaml.SafeLoader):
    """Refuses a mapping that has a key twice, of which YAML would take the last, and what JSON cannot hold."""

    def get_single_node(self) -> Any:
        node = super().get_single_node()
        if node is not None:
            _measure(node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    twice = f"the key {shown(repr(key.value), 80)} stands twice in one section"
                    raise _problem(node, f"{twice}; keep one of the two")
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_scalar_value(self, node: yaml.ScalarNode) -> Any:
        """A number, true, false, null or a text, by the tag of the node."""
        make = {"int": self.construct_yaml_int, "float": self.construct_yaml_float, "bool": self.construct_yaml_bool}
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        try:
            if len(str(node.value)) > 1000:
                raise ValueError
            value = make[kind](node)
        except (ValueError, KeyError, IndexError, OverflowError):
            raise _problem(node, f"{shown(repr(node.value), 80)} is no {kind}") from None
        if abs(value) >= _LARGEST_NUMBER and abs(value) != float("inf"):
            raise _problem(node, f"{shown(str(node.value), 80)} is out of the range of numbers, -2^63 to 2^63")
        return value

    def construct_timestamp_text(self, node: yaml.ScalarNode) -> str:
        """The text of a date: no setting is one."""
        return str(self.construct_scalar(node))


for _kind in ("int", "float", "bool"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_scalar_value)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", _Loader.construct_timestamp_text)
for _kind in ("binary", "omap", "pairs", "set"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_undefined)


def read_tree(path: Path) -> Any:
    """The values of a YAML file. Raises ConfigError with one sentence that names the file."""
    if not path.exists():
        raise ConfigError(f"no configuration file at {path}")
    return parse_tree(read_text(path, "give the path of a YAML file"), str(path))


def read_text(path: Path, remedy: str) -> str:
    """A text of a configuration in a file of its own. Raises ConfigError, with the file, the fault and the remedy."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe or a device would never end
            raise ConfigError(f"{path} is not a file; {remedy}")
        with path.open("rb") as file:
            raw = file.read(_LARGEST_FILE + 1)
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 (byte {error.start}: {error.reason}); convert it to UTF-8") from None
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path} cannot be read: {reason}; {remedy}") from None
    if len(raw) > _LARGEST_FILE:
        raise ConfigError(f"{path} has more than {_LARGEST_FILE:,} bytes, which no configuration needs; {remedy}")
    return text


def parse_tree(text: str, where: str) -> Any:
    """The values of a YAML text. Raises ConfigError with one sentence; `where` names the text."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not valid YAML: {shown(str(error), 500)}") from None
    except RecursionError:
        raise ConfigError(f"{where} is not valid YAML: it is nested deeper than {_DEEPEST} levels") from None
    except (ValueError, TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:  # PyYAML's own, of odd tags
        raise ConfigError(f"{where} is not valid YAML: {shown(str(error), 300)}") from None


def _problem(node: yaml.Node, found: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, found, node.start_mark)


def _measure(root: yaml.Node) -> None:
    """Raise ConstructorError for a tree that holds itself, is nested too deep, or has too many values, aliases followed."""
    sizes: dict[int, tuple[int, int]] = {}  # of each node: values, and levels
    open_nodes: set[int] = set()
    stack = [(root, False)]
    while stack:
        node, done = stack.pop()
        children = _children(node)
        if done:
            open_nodes.discard(id(node))
            below = [sizes[id(child)] for child in children]
            size, depth = 1 + sum(count for count, _ in below), 1 + max((levels for _, levels in below), default=0)
            if depth > _DEEPEST or size > _MOST_NODES:
                limit = f"{_DEEPEST} levels deep" if depth > _DEEPEST else f"of {_MOST_NODES:,} values, aliases followed"
                raise _problem(node, f"it is larger than any configuration needs to be, {limit}")
            sizes[id(node)] = size, depth
        elif id(node) in open_nodes:
            raise _problem(node, "an alias stands for a section that holds it")
        elif id(node) not in sizes:
            open_nodes.add(id(node))
            stack.append((node, True))
            stack += [(child, False) for child in children]


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
