"""A tokenizer's own encoding of a text, and of a text that continues another."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from minidist.data.templates import BadRow
from minidist.types import Array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUT = "\ufdd0"  # no character of any text: cuts a special token that stands in user text in two, so that it stays text
_INCOMPLETE = "\ufffd"  # what tokenizers decode the first bytes of an incomplete character to
_ANCHORS = ("\n", "a")  # begin a text whose continuation is tokenized, so that no blank is added before the continuation


class Encoder:
    """Text to ids and back. `counts["rejoined"]`: continuations whose ids are not the rest of the joined encoding."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._begin = _begin(tokenizer)
        self.counts: Counter[str] = Counter()

    def cut(self, text: str, tokens: int, side: str) -> str:
        """The text without `tokens` tokens at its left or right side."""
        ids = self.bare(text)
        kept = self.decode(ids[tokens:] if side == "left" else ids[: max(0, len(ids) - tokens)])
        return kept.lstrip(_INCOMPLETE) if side == "left" else kept.rstrip(_INCOMPLETE)

    def continued(self, prompt: list[int], text: str, more: str, *, begun: bool) -> list[int]:
        """Ids of `more` after the ids `prompt` of `text`: the rest of the joined encoding where that begins with the prompt's
        ids, else ids with which the decoded whole is the same text. Raises BadRow where there are none.

        `begun`: whether the whole text begins with the tokens that the tokenizer adds.
        """
        if not more:
            return []
        joined = self.bare(text + more)
        joined = self.begun(joined) if begun else joined
        if joined[: len(prompt)] == prompt:
            return joined[len(prompt) :]
        self.counts["rejoined"] += 1
        whole = self.decode(joined)
        for ids in self._continuations(more):
            if self.decode(prompt + ids) == whole:
                return ids
        raise BadRow("the tokenizer cannot write the answer after the prompt: no tokens of the answer give the joined text")

    def _continuations(self, more: str) -> Iterator[list[int]]:
        """Ways to write a text that continues another: alone, and after a beginning that is then cut off."""
        alone = self.bare(more)
        yield alone
        for anchor in _ANCHORS:
            begun, beginning = self.bare(anchor + more), self.bare(anchor)
            if begun[: len(beginning)] == beginning:
                yield begun[len(beginning) :]
        yield alone[1:]
        if (subwords := self._subwords(more)) is not None:
            yield subwords

    def _subwords(self, more: str) -> list[int] | None:
        """WordPiece alone: the longest pieces that continue a word, then the other words."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        prefix = getattr(backend and backend.model, "continuing_subword_prefix", None)
        if backend is None or not prefix:
            return None
        written = backend.normalizer.normalize_str(more) if backend.normalizer else more
        word, ids = re.split(r"\W", written, maxsplit=1)[0], []
        rest = self.bare(written[len(word) :])
        while word:
            ends = (end for end in range(len(word), 0, -1) if backend.token_to_id(prefix + word[:end]) is not None)
            if (end := next(ends, None)) is None:
                return None
            ids, word = [*ids, backend.token_to_id(prefix + word[:end])], word[end:]
        return ids + rest

    def begun(self, ids: list[int]) -> list[int]:
        """The ids after those that the tokenizer adds at the beginning of a text, once."""
        return ids if ids[: len(self._begin)] == self._begin else self._begin + ids

    def bare(self, text: str) -> list[int]:
        """Ids of a text, without those that the tokenizer adds."""
        first, *parts = text.split(CUT)
        ids = list(self._tokenizer(first, add_special_tokens=False)["input_ids"])
        for part in parts:
            before = self.decode(ids)
            written = (each for each in self._continuations(part) if self.decode(ids + each) == before + part)
            ids += next(written, None) or next(self._continuations(part))
        return ids

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

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
            text = self.decode(ids[context:end])[len(self.decode(ids[context:border])) :]
            cut = text.endswith(_INCOMPLETE)
            piece = text.removeprefix(shown if text.startswith(shown) else shown.rstrip(_INCOMPLETE))
            pieces.append(piece or (_INCOMPLETE if cut else ""))
            context, border, shown = (context, border, text) if cut else (border, end, "")
        return pieces


def _begin(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The ids that the tokenizer adds before a text."""
    bare, whole = (list(tokenizer("a", add_special_tokens=added)["input_ids"]) for added in (False, True))
    starts = (start for start in range(len(whole) - len(bare) + 1) if whole[start : start + len(bare)] == bare)
    return whole[: next(starts, 0)]
