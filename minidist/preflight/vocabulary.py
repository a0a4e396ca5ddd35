"""What token ids mean to a model, and which ids two models share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from minidist.data.examples import Example
from minidist.data.questions import Question
from minidist.errors import ModelError
from minidist.types import Array, Prompt, Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Meanings = Mapping[int, bytes]
"""What each id means: the bytes of its text, or the name of a special token."""


def meanings(tokenizer: "PreTrainedTokenizerBase", rows: int) -> Meanings:
    """What each id of the tokenizer means that has one of the model's `rows` of embedding."""
    read = _reader(tokenizer)
    added = {index: token.content.encode() for index, token in tokenizer.added_tokens_decoder.items()}
    found = {index: read(piece) for piece, index in tokenizer.get_vocab().items() if index not in added} | added
    return {index: meaning for index, meaning in found.items() if index < rows}


def shared_ids(student: Meanings, teacher: Meanings) -> Vocabulary:
    """The ids that both have. Raises ModelError, and shows both meanings, where one of them means two things."""
    shared = student.keys() & teacher.keys()
    if differing := [index for index in shared if student[index] != teacher[index]]:
        index = min(differing)
        found = f"id {index} is {shown(student[index])} in the student's and {shown(teacher[index])} in the teacher's"
        elsewhere = next((other for other, meaning in teacher.items() if meaning == student[index]), None)
        moved = "" if elsewhere is None else f", which has {shown(student[index])} at id {elsewhere}"
        more = f" ({len(differing):,} of {len(shared):,} ids differ)"
        need = "distillation token by token needs ids that mean the same; set a teacher with the student's tokenizer"
        raise ModelError(f"student and teacher have different tokenizers: {found}{moved}{more}; {need}")
    width = max(shared, default=-1) + 1
    return Vocabulary(width, (index for index in range(width) if index not in shared))


def common(vocabularies: Iterable[Vocabulary]) -> Vocabulary:
    """The ids that are in all of the vocabularies."""
    found = list(vocabularies)
    width = min(found)
    return Vocabulary(width, sorted({index for each in found for index in each.absent if index < width}))


def used_ids(rows: Sequence[Prompt | Example | Question]) -> Array:
    """The ids of some rows, each once: of prompts, gold answers, and all choices of questions."""
    return np.unique(np.concatenate([np.zeros(0, dtype=np.int32), *(part for row in rows for part in _parts(row))]))


def teacher_ids(rows: Sequence[Prompt | Example | Question]) -> Array:
    """The ids of the prompts that only the teacher reads, each once."""
    own = (getattr(row, "teacher_tokens", None) for row in rows)
    return np.unique(np.concatenate([np.zeros(0, dtype=np.int32), *(tokens for tokens in own if tokens is not None)]))


def shown(meaning: bytes) -> str:
    """A meaning for people: text in quotes, or the bytes of what is no text."""
    try:
        return repr(meaning.decode())
    except UnicodeDecodeError:
        return repr(meaning)


def _parts(row: Prompt | Example | Question) -> list[Array]:
    if isinstance(row, Question):
        return [choice.tokens for choice in row.choices]
    gold = getattr(row, "gold", None)
    return [row.tokens] if gold is None else [row.tokens, gold]


def _reader(tokenizer: Any) -> Callable[[str], bytes]:
    """From a piece of the vocabulary, as its tokenizer spells it, to the bytes of its text."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = b"" if backend is None or backend.decoder is None else bytes(backend.decoder.__getstate__())
    if b'"ByteLevel"' in decoder:
        return _byte_level
    if hasattr(tokenizer, "sp_model") or any(kind in decoder for kind in (b'"Metaspace"', b'"ByteFallback"')):
        return _sentencepiece
    return str.encode


def _byte_level(piece: str) -> bytes:
    known = [_BYTES.get(character) for character in piece]
    return piece.encode() if None in known else bytes(byte for byte in known if byte is not None)


def _sentencepiece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        return bytes.fromhex(piece[3:5])
    return piece.replace("\u2581", " ").encode()


_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = {chr(byte): byte for byte in _PRINTED}
_BYTES |= {chr(0x100 + n): byte for n, byte in enumerate(sorted(set(range(0x100)) - set(_PRINTED)))}
"""The character by which byte-level tokenizers spell each byte: itself where it is printed, else one from U+0100 on."""
