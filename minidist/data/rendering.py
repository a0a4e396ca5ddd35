"""Text to tokens and back, as the model's own tokenizer and chat template do it. No other module tokenizes text."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minidist.config.data import RenderConfig
from minidist.data.chat import Chat
from minidist.data.conversations import Message
from minidist.data.encoding import CUT, Encoder
from minidist.data.examples import Example
from minidist.data.templates import BadRow
from minidist.errors import ModelError
from minidist.types import Array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Asking = str | Sequence[Message]
"""A prompt: the text of a user, or a conversation up to the assistant's turn."""


class Renderer:
    """Prompts, answers and plain text to token ids, with one tokenizer and one chat template.

    Args:
        tokenizer: of the student.
        config: how text becomes tokens.
        stops: ids at which the model's generation_config or config ends an answer, beside the tokenizer's and the template's.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", config: RenderConfig, stops: Iterable[int] = ()) -> None:
        if tokenizer.eos_token_id is None:
            raise ModelError("the tokenizer has no end-of-sequence token, so answers would never end; set eos_token")
        if config.chat_template == "on" and tokenizer.chat_template is None:
            raise ModelError("data.chat_template is on, but the tokenizer has no chat template; set data.chat_template=off")
        self.tokenizer = tokenizer
        self.eos = int(str(tokenizer.eos_token_id))
        self._encoder = Encoder(tokenizer)
        self.counts = self._encoder.counts
        """Texts that needed more than tokenizing: rejoined, special, truncated."""
        self.chat = Chat(tokenizer, config) if config.chat_template != "off" and tokenizer.chat_template is not None else None
        self._mode = config.special_tokens
        self.truncate = config.truncate
        self._specials = _special_tokens(tokenizer)
        self._written_out = re.compile("|".join(map(re.escape, sorted(self._specials, key=len, reverse=True))) or r"(?!)")
        tail = self._encoder.bare(self.chat.after) if self.chat else []
        ends = [index for index, token in enumerate(tail) if token in self._specials.values()]
        self._tail, self._ends_turn = tail, ends[0] if ends else None
        self.end = tail[ends[0]] if ends else self.eos
        """The id that ends an answer: what the chat template writes after it, or the end-of-sequence token."""
        self.stops = tuple(sorted({self.eos, self.end, *stops}))
        """Ids that end an answer, in every engine alike."""

    def prompt(self, asking: Asking, tools: Any = None) -> Array:
        """Token ids of a prompt, up to the first token of the answer."""
        return _array(self._prompt(asking, tools)[0])

    def example(self, asking: Asking, answer: str | Message, tools: Any = None) -> Example:
        """A prompt with its answer; the labels are the answer and its end.

        The answer's ids are the rest of the joined encoding where that begins with the prompt's ids. Elsewhere they are ids
        with which the decoded whole is the same text; `counts["rejoined"]` counts such answers. Raises BadRow where there are
        none.
        """
        prompt, text = self._prompt(asking, tools)
        if self.chat is None:
            assert isinstance(answer, str)
            ids = self._encoder.continued(prompt, text, answer, begun=True)
            return Example(_array([*prompt, *ids, *([] if ids[-1:] == [self.eos] else [self.eos])]), len(prompt))
        message = {"role": "assistant", "content": answer} if isinstance(answer, str) else answer
        written = self.chat.answer(_messages(asking), message, text, tools)
        ids, labels = self._ended(self._continued(prompt, text, written))
        return _example([*prompt, *ids], [(len(prompt), len(prompt) + labels)])

    def conversation(self, messages: Sequence[Message], tools: Any = None) -> Example:
        """A conversation; the labels are all of the assistant's turns with their ends. Raises BadRow where there are none."""
        assert self.chat is not None
        text, turns = self.chat.turns(messages, tools)
        ids: list[int] = []
        labels, done = [], 0
        for start, end in turns:
            ids += self._continued(ids, text[:done], text[done:start])
            turn, labelled = self._ended(self._continued(ids, text[:start], text[start:end]))
            labels.append((len(ids), len(ids) + labelled))
            ids, done = ids + turn, end
        if not labels:
            raise BadRow("the conversation has no turn of the assistant")
        return _example(ids + self._continued(ids, text[:done], text[done:]), labels)

    def text(self, text: str) -> Array:
        """Token ids of plain text between the tokens that the tokenizer adds at the beginning and the end-of-sequence token."""
        ids = self._encoder.begun(self._encoder.bare(text))
        return _array([*ids, *([] if ids[-1:] == [self.eos] else [self.eos])])

    def cut(self, text: str, tokens: int, side: str) -> str:
        """The text without `tokens` tokens at its left or right side."""
        self.counts["truncated"] += 1
        return self._encoder.cut(text, tokens, side)

    def guard(self, text: str) -> str:
        """Text of a user as `data.special_tokens` has it: special tokens in it stay, become plain text, or are refused."""
        found = self._written_out.search(text)
        if found is None:
            return text
        if self._mode == "refuse":
            raise BadRow(f"it holds the special token {found[0]!r} written out; set data.special_tokens to text or to control")
        self.counts["special"] += 1
        return self._written_out.sub(lambda match: match[0][0] + CUT + match[0][1:], text) if self._mode == "text" else text

    def ended(self, tokens: Sequence[int] | Array) -> bool:
        """Whether an answer ended with one of `stops`, and not at the token limit."""
        return len(tokens) > 0 and int(tokens[-1]) in self.stops

    def decode(self, tokens: Array) -> str:
        """Text of an answer, without the id that ended it."""
        ids = tokens.tolist()
        return self._encoder.decode(ids[:-1] if self.ended(ids) else ids)

    def whole(self, tokens: Array) -> str:
        """Text of ids with all special tokens, for people."""
        return self._encoder.decode(tokens.tolist())

    def pieces(self, tokens: Array) -> list[str]:
        """The part of the decoded text that belongs to each token; see `Encoder.pieces`."""
        return self._encoder.pieces(tokens)

    def _prompt(self, asking: Asking, tools: Any) -> tuple[list[int], str]:
        """Token ids and text of a prompt."""
        if self.chat is not None:
            text = self.chat.prompt(_messages(asking), tools)
            return self._encoder.bare(text), text
        if not isinstance(asking, str):
            raise ModelError(
                "the rows are conversations, and the tokenizer has no chat template, or data.chat_template is off; use a "
                "tokenizer with a template, or write the prompt as a template over the columns"
            )
        return self._encoder.begun(self._encoder.bare(asking)), asking

    def _ended(self, ids: list[int]) -> tuple[list[int], int]:
        """The ids of an assistant's turn, and how many of them are labels: those up to the token that ends the turn."""
        size = len(self._tail)
        if self._ends_turn is None:  # the template writes no token at which generation could stop
            whole = [*(ids[: len(ids) - size] if size and ids[-size:] == self._tail else ids), self.eos]
            return whole, len(whole)
        if ids[-size:] == self._tail:
            return ids, len(ids) - size + self._ends_turn + 1
        last = next((index for index in range(len(ids), 0, -1) if ids[index - 1] == self.end), None)
        return (ids, last) if last is not None else ([*ids, self.end], len(ids) + 1)

    def _continued(self, prompt: list[int], text: str, more: str) -> list[int]:
        return self._encoder.continued(prompt, text, more, begun=False)


def visible(text: str) -> str:
    """A text for people, without the marks of `Renderer.guard`."""
    return text.replace(CUT, "")


def _messages(asking: Asking) -> Sequence[Message]:
    return [{"role": "user", "content": asking}] if isinstance(asking, str) else asking


def _array(ids: Sequence[int]) -> Array:
    return np.asarray(ids, dtype=np.int32)


def _example(ids: list[int], labels: Sequence[tuple[int, int]]) -> Example:
    """The ids with the labels of some ranges; None in place of a mask where all tokens from the first label on are labels."""
    labelled = np.zeros(len(ids), dtype=bool)
    for start, end in labels:
        labelled[start:end] = True
    first = labels[0][0]
    return Example(_array(ids), first, None if labelled[first:].all() else labelled[first:])


def _special_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    """The special tokens of a tokenizer, and their ids."""
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=False)
    return added | {str(token): int(str(index)) for token, index in named if index is not None}


def character_tokenizer(alphabet: str) -> "PreTrainedTokenizerBase":
    """A tokenizer for generated tasks: one token a character, <eos> and <unk>.

    The pad token is <eos> too: explicit lengths, never pad ids, mark the end of a sequence.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<eos>": 0, "<unk>": 1} | {character: index for index, character in enumerate(alphabet, start=2)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_any_of(alphabet)), "isolated")  # type: ignore[assignment]
    tokenizer.decoder = decoders.Fuse()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>")


def _any_of(characters: str) -> str:
    """A regular expression for one of the characters, those with successive codes as a range: there may be 150,000 of them.

    >>> _any_of("badx-")
    '[\\\\-a-bdx]'
    """
    ranges: list[list[int]] = []
    for code in sorted(map(ord, set(characters))):
        if ranges and code == ranges[-1][1] + 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "[" + "".join("-".join(re.escape(chr(end)) for end in sorted(set(ends))) for ends in ranges) + "]"
