"""What a run asks of a server, whatever its API: questions, and answers that are checked as they are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Generic, NotRequired, Protocol, TypeVar

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from minidist.teachers.payload import ROUNDING, Malformed
from minidist.text import shown
from minidist.types import Array, Sampling, Vocabulary

T = TypeVar("T")

Id = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
Key = Annotated[int, Field(ge=0, lt=2**31)]
"""A token id that is a key of a JSON object, and so text."""
Logprob = Annotated[float, Field(strict=True)] | None
"""null stands for a number that JSON lacks: NaN or an infinity."""


@dataclass(frozen=True)
class Question(Generic[T]):
    """A request, and what reads the bytes of its answer; `read` raises Malformed for an answer of another shape."""

    method: str
    path: str
    body: dict[str, Any] | None
    read: Callable[[bytes], T]


@dataclass(frozen=True)
class Writing:
    """What a server is to write: the prompt's ids, how the answer is drawn, its seed, and the ids that end it.

    vocabulary: the ids that may be sampled; None: all `width` classes of the softmax.
    """

    prompt: Sequence[int]
    sampling: Sampling
    seed: int
    stops: Sequence[int]
    vocabulary: int | None
    width: int

    @property
    def banned(self) -> list[int]:
        """The ids that are never sampled, in rising order."""
        vocabulary = Vocabulary.of(self.width if self.vocabulary is None else self.vocabulary)
        return [*vocabulary.absent, *range(vocabulary, self.width)]


@dataclass(frozen=True)
class Table:
    """Scores of T tokens: logprobs [T], and the C likeliest classes in falling order, ids and values [T, C]."""

    logprobs: Array
    ids: Array
    values: Array


@dataclass(frozen=True)
class Answer:
    """A written answer: tokens [T] int32, logprobs [T], and whether one of the ids that end it ended it."""

    tokens: Array
    logprobs: Array
    stopped: bool


class ServerApi(Protocol):
    """The wire format of one kind of server."""

    name: str
    context_flag: str
    """The server's option that sets its context."""

    def checks(self) -> Sequence[Question[None]]:
        """What a server of this kind answers before it is asked for anything else."""
        ...

    def models(self) -> Question[dict[str, int | None]]:
        """The names under which the server offers models, and their contexts in tokens, None where unknown."""
        ...

    def score(self, model: str, sequence: Sequence[int], start: int, classes: int) -> Question[Table]:
        """The scores of the tokens from index `start` (at least 1) on, with the `classes` likeliest tokens of each position."""
        ...

    def write(self, model: str, writing: Writing) -> Question[Answer]:
        """One sampled answer."""
        ...


class _Tokens(TypedDict):
    tokens: list[Id]


def tokenize(model: str, text: str) -> Question[list[int]]:
    """The token ids of a text, without special tokens; both kinds of server answer alike."""
    body = {"model": model, "prompt": text, "add_special_tokens": False}
    return Question("POST", "/tokenize", body, lambda raw: parsed(_TOKENS, raw)["tokens"])


def parsed(shape: TypeAdapter[T], raw: bytes) -> T:
    """The JSON of an answer, in the shape that it must have; Malformed for anything else."""
    try:
        return shape.validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        found = f"{where[:80]}: {first['msg']}" if where else f"{first['msg']}, in {raw[:60].decode('utf-8', 'replace')!r}"
        raise Malformed(f"its answer has another shape ({shown(found)})") from None


def expect(holds: bool, found: str) -> None:
    """Raise Malformed, which says what was found, unless `holds`."""
    if not holds:
        raise Malformed(found)


def numbers(logprobs: Sequence[Any]) -> Array:
    """Log-probabilities as float64, NaN for null."""
    return np.array([np.nan if value is None else value for value in logprobs], dtype=np.float64)


def table(logprobs: Sequence[Logprob], tops: Sequence[Sequence[tuple[Logprob, int]]], classes: int) -> Table:
    """Scores from the log-probabilities of the tokens and the (log-probability, id) pairs of each position."""
    for position, top in enumerate(tops):
        expect(len(top) == classes, f"position {position} lists {len(top)} tokens, and {classes} were requested")
    ids = np.array([[token for _, token in top] for top in tops], dtype=np.int64).reshape(len(logprobs), classes)
    values = numbers([value for top in tops for value, _ in top]).reshape(len(logprobs), classes)
    return Table(numbers(logprobs), ids, values)


def scored(found: Table, tokens: Sequence[int], width: int) -> Table:
    """The table, if its ids exist and its lists agree with the tokens' own log-probabilities; else Malformed."""
    expect(bool((found.ids < width).all()), f"it lists a token out of the vocabulary of {width}")
    if found.ids.shape[1] == 0 or np.isnan(found.values).any() or np.isnan(found.logprobs).any():
        return found  # to_scores refuses what is no number
    listed = found.ids == np.asarray(tokens)[:, None]
    own = np.where(
        listed.any(1), np.where(listed, found.values, -np.inf).max(1), np.minimum(found.logprobs, found.values[:, -1])
    )
    with np.errstate(invalid="ignore"):
        apart = ~(np.abs(own - found.logprobs) <= ROUNDING) & (own != found.logprobs)
    expect(not apart.any(), "a token's log-probability contradicts the list of the likeliest tokens")
    return found


def written(answer: Answer, writing: Writing) -> Answer:
    """The answer, if the run could have asked for it; else Malformed."""
    tokens, longest = answer.tokens, writing.sampling.max_new_tokens
    expect(0 < len(tokens) <= longest, f"it wrote {len(tokens)} tokens, and 1 to {longest} were requested")
    refused = tokens[(tokens >= writing.width) | np.isin(tokens, writing.banned)]
    expect(not len(refused), f"it wrote token {refused[:1]}, out of the {writing.width - len(writing.banned)} allowed")
    stops = ", ".join(map(str, writing.stops))
    ended = int(tokens[-1]) in writing.stops
    expect(ended or not answer.stopped, f"it ended an answer with token {tokens[-1]}, and the student's end at {stops}")
    expect(not np.isin(tokens[:-1], writing.stops).any(), f"it wrote on after a token that ends an answer ({stops})")
    return Answer(tokens, answer.logprobs, ended)


class Entry(TypedDict):
    """A token's log-probability at a position of vLLM's answer, and its rank, 1 for the likeliest."""

    logprob: Logprob
    rank: NotRequired[int | None]


_TOKENS = TypeAdapter(_Tokens)
