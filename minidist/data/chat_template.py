"""A chat template as transformers runs it (utils/chat_template_utils.py of 5.19): its options, filters, functions and tag, here
in a sandbox that also bounds what the template computes, since a model may come from anybody."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from minidist.data.sandbox import LONGEST_SOURCE, Sandbox, TooMuchError


class _Generation(Extension):
    """`{% generation %}`, around what the assistant writes: here it writes what it holds."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """The text of conversations. `names`: what the template reads beside the messages. Any exception may be raised."""

    def __init__(self, source: str, names: Mapping[str, Any]) -> None:
        if len(source) > LONGEST_SOURCE:
            raise TooMuchError(f"it has more than {LONGEST_SOURCE:,} characters")
        sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        sandbox.filters["tojson"] = _to_json
        sandbox.globals |= {"raise_exception": _raise, "strftime_now": lambda format: datetime.now().strftime(format)}
        sandbox.bound_filters()
        self._sandbox = sandbox
        self._template = sandbox.from_string(sandbox.counted(source))
        self._source = source
        self._names = dict(names)

    def __reduce__(self) -> tuple[Any, ...]:
        return ChatTemplate, (self._source, self._names)  # what Jinja compiles crosses no process

    def write(self, messages: Sequence[Mapping[str, Any]], tools: Any, *, asking: bool) -> str:
        """The text of messages; `asking`: with the beginning of the assistant's next turn."""
        self._sandbox.begin()
        given = {"messages": messages, "tools": tools, "documents": None, "add_generation_prompt": asking}
        pieces = []
        for piece in self._template.generate(given | self._names):
            self._sandbox.charge(len(piece))
            pieces.append(piece)
        return "".join(pieces)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)
