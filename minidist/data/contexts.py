"""Rows to the prompts that a teacher reads in place of the student's (`teacher.context`)."""

from dataclasses import replace
from typing import Any

from minidist.config.context import STUDENT_PROMPT, ContextConfig
from minidist.data.conversations import Message, is_conversation, read_messages, split_last
from minidist.data.exchanges import Exchange, Record
from minidist.data.rendering import Renderer, visible
from minidist.data.templates import BadRow, Template
from minidist.errors import ConfigError
from minidist.types import Array

_CUTS = 8  # tries until a text that is cut fits: a text cut in a word may have more tokens


def context_templates(config: ContextConfig, guard: Any = str) -> list[Template]:
    """The templates of a context: of the prompt and, where it is set, of the system message."""
    texts = {"prompt": config.prompt, "system": config.system}
    given = frozenset({STUDENT_PROMPT})
    return [Template(text, f"teacher.context.{key}", guard, given) for key, text in texts.items() if text is not None]


class ContextReader:
    """Makes the teacher's prompt of a row.

    Args:
        config: the section `teacher.context`.
        renderer: with the teacher's tokenizer and chat template. Raises ConfigError where a system message has no template.
        room: tokens of the longest sequence that the teacher takes.
    """

    def __init__(self, config: ContextConfig, renderer: Renderer, room: int) -> None:
        if config.system is not None and renderer.chat is None:
            cure = "write the text into teacher.context.prompt"
            raise ConfigError(f"teacher.context.system is set, and the teacher's prompts have no chat template; {cure}")
        self.renderer = renderer
        self.templates = context_templates(config, renderer.guard)
        self._prompt, *self._system = self.templates
        self._limit = config.max_prompt_tokens
        self._room = room

    def read(self, exchange: Exchange, row: Record, *, answer_tokens: int) -> tuple[Array, str]:
        """The teacher's prompt, ids and text, beside an answer of at most `answer_tokens`. Raises BadRow.

        exchange: of the row, as the student reads it. The text of the context takes the place of its last message.
        """
        read = self._exchange(exchange, {**row, STUDENT_PROMPT: exchange.last})
        limit = self._room - answer_tokens
        named = f"the {limit} that the teacher's context of {self._room} leaves beside an answer of {answer_tokens}"
        if self._limit is not None and self._limit <= limit:
            limit, named = self._limit, f"teacher.context.max_prompt_tokens = {self._limit}"
        truncate = self.renderer.truncate
        for _ in range(_CUTS):
            tokens = self.renderer.prompt(read.asking, read.tools)
            if len(tokens) <= limit or truncate == "refuse":
                break
            read = read.cut(self.renderer, len(tokens) - limit, truncate)
        if len(tokens) > limit:
            raise BadRow(f"the teacher's prompt has {len(tokens)} tokens, more than {named}")
        return tokens, visible(self.renderer.whole(tokens))

    def _exchange(self, exchange: Exchange, row: Record) -> Exchange:
        """The exchange with the context in place of the last message and, where it is set, of the system message."""
        cell = row.get(self._prompt.column) if self._prompt.column is not None else None
        if is_conversation(cell):
            column = str(self._prompt.column)
            read = replace(exchange, asking=split_last(read_messages(cell, column, self.renderer.guard), column)[0])
        else:
            read = exchange.asked(self._prompt.fill(row))
        if not read.text.strip():
            raise BadRow("the teacher's prompt is empty")
        if not self._system:
            return read
        asking: list[Message] = (
            [{"role": "user", "content": read.asking}] if isinstance(read.asking, str) else list(read.asking)
        )
        system: Message = {"role": "system", "content": self._system[0].fill(row)}
        return replace(read, asking=[system, *(message for message in asking if message["role"] != "system")])
