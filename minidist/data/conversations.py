"""Conversations: columns of messages in the usual Hugging Face chat formats."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from minidist.data.templates import BadRow
from minidist.data.values import as_text, read_json

Message = dict[str, Any]
"""A role, its content, and what else the chat template reads: tool_calls, name, tool_call_id, ..."""

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "function": "tool"}
"""Names of roles in ShareGPT's format, whose messages have the keys `from` and `value`."""


def is_conversation(cell: Any) -> bool:
    """Whether a cell holds a list of messages."""
    return isinstance(cell, Sequence) and not isinstance(cell, str) and bool(cell) and all(map(_is_message, cell))


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and ("role" in value or ("from" in value and "value" in value))


def read_messages(cell: Any, column: str, guard: Callable[[str], str] = str) -> list[Message]:
    """The messages of a cell: a list, or the JSON text of one. `guard` changes every text. Raises BadRow."""
    if isinstance(cell, str):
        try:
            cell = read_json(cell)
        except (ValueError, RecursionError):
            raise BadRow(f"its {column} is a text, not a list of messages") from None
    if not is_conversation(cell):
        raise BadRow(f"its {column} is no list of messages, each with role and content; found {str(cell)[:80]!r}")
    return [_message(value, column, guard) for value in cell]


def _message(value: Mapping[str, Any], column: str, guard: Callable[[str], str]) -> Message:
    """A message with role and content. Parquet has every key in every message: those that are null are left out."""
    message = {key: each for key, each in value.items() if each is not None}
    if "role" not in message:
        role = str(message.pop("from"))
        message = {"role": _ROLES.get(role, role), "content": message.pop("value", None), **message}
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise BadRow(f"a message of its {column} (role {message['role']}) has no content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = _joined(content, column)
    text = as_text(content)
    if text is None:
        raise BadRow(f"the content of a message of its {column} is no text: {str(content)[:80]!r}")
    return message | {"content": guard(text)}


def _joined(parts: Sequence[Any], column: str) -> str:
    """The text of a content in parts, `{"type": "text", "text": ...}`. Images and sounds are refused."""
    for part in parts:
        if not (isinstance(part, Mapping) and isinstance(part.get("text"), str)):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise BadRow(f"a message of its {column} has a part of type {kind!r}; minidist reads text alone")
    return "".join(part["text"] for part in parts)


def split_last(messages: Sequence[Message], column: str) -> tuple[list[Message], Message | None]:
    """What stands before the last answer, and that answer; None where the conversation ends with another role.

    Raises BadRow where no message asks for an answer.
    """
    last = len(messages) - 1 if messages[-1]["role"] == "assistant" else len(messages)
    asking = list(messages[:last])
    if not any(message["role"] != "system" for message in asking):
        raise BadRow(f"its {column} has no message before the assistant's")
    return asking, messages[last] if last < len(messages) else None


def up_to_answer(messages: list[Message]) -> list[Message]:
    """The conversation up to the assistant's last turn; all of it where the assistant has none."""
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    return messages[: answers[-1] + 1] if answers else messages
