"""A tokenizer's chat template: what it writes before, around and after the messages of a conversation."""

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from minidist.config.data import RenderConfig
from minidist.data.chat_template import ChatTemplate
from minidist.data.conversations import Message
from minidist.data.templates import BadRow
from minidist.errors import ModelError
from minidist.text import shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARK = "\ufdd2{}\ufdd2"  # no characters of any text: stands for the content of a message


class Chat:
    """Conversations to text, by the tokenizer's chat template with `data.template_options` and `data.system`."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", config: RenderConfig) -> None:
        self._tokenizer = tokenizer
        self._options = config.template_options
        self._system = config.system
        self._templates: dict[str, ChatTemplate] = {}
        self._checked: set[str] = {"user", "assistant"}
        if config.system is not None:
            try:
                self._check_role({"role": "system", "content": config.system}, None)
            except BadRow as error:
                raise ModelError(f"data.system: {error}; leave data.system out, or write it into the prompt") from None

    @cached_property
    def after(self) -> str:
        """What the template writes after an assistant's turn: the token that ends the turn, and often a line break."""
        mark = _MARK.format(0)
        text = self.write([{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}])
        return text.rpartition(mark)[2] if mark in text else ""

    def write(self, messages: Sequence[Message], tools: Any = None, *, asking: bool = False) -> str:
        """The text of a conversation; `asking`: with the beginning of the assistant's next turn. Raises BadRow."""
        if self._system is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._system}, *messages]
        try:
            return self._template(tools).write([dict(message) for message in messages], tools, asking=asking)
        except Exception as error:  # noqa: BLE001 - a template may raise anything
            roles = shown(", ".join(str(message["role"]) for message in messages), 100)
            reason = shown(f"{type(error).__name__}: {error}", 200)
            raise BadRow(f"the chat template refuses a conversation of {roles} ({reason})") from None

    def _template(self, tools: Any) -> "ChatTemplate":
        """The template that the tokenizer has for conversations with these tools."""
        source = self._tokenizer.get_chat_template(None, tools)
        if source not in self._templates:
            self._templates[source] = ChatTemplate(source, self._tokenizer.special_tokens_map | self._options)
        return self._templates[source]

    def prompt(self, messages: Sequence[Message], tools: Any = None) -> str:
        """The text of a conversation up to the first token of the assistant's next turn."""
        for message in messages:
            self._check_role(message, tools)
        return self.write(messages, tools, asking=True)

    def answer(self, asking: Sequence[Message], message: Message, prompt: str, tools: Any = None) -> str:
        """What stands after `prompt`, the text of `asking`, once the assistant has written `message`: with its end."""
        whole = self.write([*asking, message], tools)
        return whole.removeprefix(prompt) if whole.startswith(prompt) else message["content"] + self.after

    def turns(self, messages: Sequence[Message], tools: Any = None) -> tuple[str, list[tuple[int, int]]]:
        """The text of a conversation, and where in it each of the assistant's turns begins and ends.

        Raises BadRow where the template changes earlier turns in ways that cannot be followed.
        """
        for message in messages:
            self._check_role(message, tools)
        text, spans = self.write(messages, tools), []
        marked = self._marked(messages, text, tools)
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, until = self.write(messages[:index], tools, asking=True), self.write(messages[: index + 1], tools)
            if text.startswith(before) and text.startswith(until):
                spans.append((len(before), len(until)))
            elif marked is not None:
                spans.append(marked[index])
            else:
                raise BadRow("the chat template writes earlier turns of the assistant in another way; set labels: last")
        return text, spans

    def _marked(self, messages: Sequence[Message], text: str, tools: Any) -> dict[int, tuple[int, int]] | None:
        """Begin and end of the content of each of the assistant's turns with what follows it, found by marks in its place.

        None where the template does more with a content than to strip it.
        """
        marks = {index: _MARK.format(index) for index, each in enumerate(messages) if each["role"] == "assistant"}
        rest = self.write([each | {"content": marks.get(i, each["content"])} for i, each in enumerate(messages)], tools)
        opening = self.write([{"role": "user", "content": "a"}], asking=True).removeprefix(
            self.write([{"role": "user", "content": "a"}])
        )
        found, spans = "", {}
        for index, mark in marks.items():
            if mark not in rest:
                return None
            before, _, rest = rest.partition(mark)
            content = next(
                (each for each in _forms(messages[index]["content"]) if text.startswith(found + before + each)), None
            )
            if content is None:
                return None
            start = len(found) + (before.rfind(opening) + len(opening) if opening and opening in before else len(before))
            found += before + content
            spans[index] = (start, len(found) + (len(self.after) if rest.startswith(self.after) else 0))
        return spans if found + rest == text else None

    def _check_role(self, message: Message, tools: Any) -> None:
        """Raise BadRow where the template leaves the messages of a role out."""
        role = str(message["role"])
        if role in self._checked or not message["content"].strip():
            return
        mark = _MARK.format(role)
        before: list[Message] = [] if role == "system" else [{"role": "user", "content": "a"}]
        text = self.write([*before, message | {"content": mark}, {"role": "user", "content": "a"}], tools)
        if mark not in text:
            raise BadRow(f"the chat template leaves out the messages of role {role}")
        self._checked.add(role)


def _forms(content: str) -> list[str]:
    """A content as templates write it: as it is, or stripped."""
    return [content, content.strip(), content.lstrip(), content.rstrip()]
