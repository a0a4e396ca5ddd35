"""A row as a prompt and its answer: by the templates of a source, or from a column of messages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from minidist.config.data import SourceConfig
from minidist.data.conversations import Message, is_conversation, read_messages, split_last, up_to_answer
from minidist.data.rendering import Asking, Renderer, visible
from minidist.data.templates import BadRow, Template
from minidist.data.values import read_json

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Exchange:
    """A prompt and its answer.

    asking: the user's text, or a conversation up to the assistant's turn. answer: the assistant's text or message; None where
    the row has none. messages: the whole conversation, of a row that is one. tools: as the chat template reads them.
    """

    asking: Asking
    answer: str | Message | None
    messages: tuple[Message, ...] = ()
    tools: Any = None

    @property
    def text(self) -> str:
        """The prompt for people: the user's text, or the last message."""
        return visible(self.last)

    @property
    def last(self) -> str:
        """The user's text, or that of the last message, with the marks of `Renderer.guard`."""
        return self.asking if isinstance(self.asking, str) else str(self.asking[-1]["content"])

    @property
    def answer_text(self) -> str | None:
        """The answer for people and graders."""
        if self.answer is None:
            return None
        return visible(self.answer if isinstance(self.answer, str) else str(self.answer["content"]))

    def cut(self, renderer: Renderer, tokens: int, side: str) -> "Exchange":
        """With `tokens` tokens less at one side of the last text that is asked. Raises BadRow where none would be left."""
        kept = renderer.cut(self.last, tokens, side)
        if not kept.strip():
            raise BadRow("the prompt is too long even without all of its last text")
        return self.asked(kept)

    def asked(self, text: str) -> "Exchange":
        """With another text in place of the last that is asked."""
        if isinstance(self.asking, str):
            return replace(self, asking=text)
        return replace(self, asking=[*self.asking[:-1], self.asking[-1] | {"content": text}], messages=())


class ExchangeReader:
    """Rows of a source to exchanges. Raises BadRow for a row that is none.

    guard: changes every text of a user; see `Renderer.guard`.
    """

    def __init__(self, source: SourceConfig, guard: Callable[[str], str]) -> None:
        self._source, self._guard = source, guard
        answer = source.answer or ("{{ answer }}" if source.task is not None else None)
        self._prompt = Template(source.prompt, "prompt", self._guard)
        self._answer = Template(answer, "answer", self._guard) if answer else None

    def read(self, row: Record) -> Exchange:
        """The exchange of a row."""
        column, tools = self._source.messages, self._tools(row)
        if column is not None:
            messages = read_messages(row.get(column), column, self._guard)
            if self._source.labels == "last":
                messages = up_to_answer(messages)
            return _conversation(messages, column, tools)
        prompt = self._cell(self._prompt, row)
        answer = self._cell(self._answer, row) if self._answer else None
        if isinstance(prompt, str) and not prompt.strip():
            raise BadRow("the prompt is empty")
        if isinstance(prompt, str) and not isinstance(answer, list):
            return Exchange(prompt, answer, tools=tools)
        asking = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        written = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer or []
        # A column such as `chosen` may repeat the prompt's messages.
        repeated = len(asking) if written[: len(asking)] == asking else 0
        return _conversation(asking + written[repeated:], self._prompt.column or "prompt", tools)

    def _tools(self, row: Record) -> Any:
        tools = row.get(self._source.tools) if self._source.tools is not None else None
        try:
            return read_json(tools) if isinstance(tools, str) else tools
        except (ValueError, RecursionError):
            raise BadRow(f"its {self._source.tools} is no JSON") from None

    def _cell(self, template: Template, row: Record) -> str | list[Message]:
        """The messages of a column, where the template names one; else the filled template."""
        cell = row.get(template.column) if template.column is not None else None
        return read_messages(cell, template.column or "", self._guard) if is_conversation(cell) else template.fill(row)


def _conversation(messages: list[Message], column: str, tools: Any) -> Exchange:
    asking, answer = split_last(messages, column)
    return Exchange(asking, answer, tuple(messages), tools)
