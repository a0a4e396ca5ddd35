"""Text to tokens and back. No other module tokenizes text."""

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined, TemplateSyntaxError, UndefinedError, meta

from minidist.config.data import RenderConfig
from minidist.errors import ConfigError, DataError, ModelError
from minidist.types import Array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\ufffd"  # what tokenizers decode the first bytes of an incomplete character to
_JINJA = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)


class Template:
    """A Jinja template over the columns of a row. `where` is the setting that holds the template, for error messages."""

    def __init__(self, source: str, where: str) -> None:
        try:
            self.columns = meta.find_undeclared_variables(_JINJA.parse(source))
            self._template = _JINJA.from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigError(f"{where} is not a valid Jinja template: {error.message} in {source!r}") from None
        self.where = where

    def check(self, columns: list[str], path: str) -> None:
        """Raise DataError unless the data at `path` has every column that the template uses."""
        missing = sorted(self.columns - set(columns))
        if missing:
            known = ", ".join(columns)
            raise DataError(f"{path} has no column {missing[0]!r}, which {self.where} uses; its columns are {known}")

    def fill(self, row: dict[str, Any]) -> str:
        """The template filled with a row's values; null is filled in as empty text."""
        try:
            return self._template.render({key: "" if value is None else value for key, value in row.items()})
        except UndefinedError as error:
            raise DataError(f"{self.where} cannot be filled from a row: {error.message}") from None


class Renderer:
    """Prompts, answers and plain text to token ids, with one tokenizer and one chat template."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", config: RenderConfig) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-sequence token, so answers would never end; set eos_token")
        if config.chat_template == "on" and tokenizer.chat_template is None:
            raise ModelError("data.chat_template is on, but the tokenizer has no chat template; set data.chat_template=off")
        self.tokenizer, self.eos = tokenizer, int(str(tokenizer.eos_token_id))
        self._chat = config.chat_template != "off" and tokenizer.chat_template is not None
        self._system = config.system

    def prompt(self, text: str) -> Array:
        """Token ids of a prompt, up to the first token of the answer."""
        if not self._chat:
            return self._ids(text)
        messages = [{"role": "system", "content": self._system}] if self._system else []
        messages.append({"role": "user", "content": text})
        rendered = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return self._ids(str(rendered))

    def answer(self, text: str) -> Array:
        """Token ids of an answer with its end-of-sequence token."""
        return np.append(self._ids(text), np.int32(self.eos))

    def text(self, text: str) -> Array:
        """Token ids of plain text with an end-of-sequence token."""
        return self.answer(text)

    def decode(self, tokens: Array) -> str:
        """Text of an answer, without its end-of-sequence token."""
        ids = tokens.tolist()
        return self._text(ids[:-1] if ids and ids[-1] == self.eos else ids)

    def pieces(self, tokens: Array) -> list[str]:
        """The part of the decoded text that belongs to each token; joined, the pieces are the whole text.

        The exception is a character of several tokens: the last token has the character, the tokens before have the
        replacement character U+FFFD. Special tokens are shown by their names.
        """
        ids, pieces = tokens.tolist(), []
        # Each token is decoded together with the tokens back to the last but one border between characters: some tokenizers
        # strip a blank at the start of a text, so a token decoded alone would lose its leading blank.
        context, border, shown = 0, 0, ""
        for end in range(1, len(ids) + 1):
            text = self._text(ids[context:end])[len(self._text(ids[context:border])) :]
            cut = text.endswith(_INCOMPLETE)
            piece = text.removeprefix(shown if text.startswith(shown) else shown.rstrip(_INCOMPLETE))
            pieces.append(piece or (_INCOMPLETE if cut else ""))
            context, border, shown = (context, border, text) if cut else (border, end, "")
        return pieces

    def _text(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def _ids(self, text: str) -> Array:
        return np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)


def character_tokenizer(alphabet: str) -> "PreTrainedTokenizerBase":
    """A tokenizer for generated tasks: one token a character, <eos> and <unk>.

    The pad token is <eos> too: explicit lengths, never pad ids, mark the end of a sequence.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<eos>": 0, "<unk>": 1} | {character: index for index, character in enumerate(alphabet, start=2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[" + re.escape(alphabet) + "]"), "isolated")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>")
