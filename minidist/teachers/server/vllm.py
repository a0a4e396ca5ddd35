"""The wire format of an OpenAI-style vLLM server."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from minidist.errors import RoleError
from minidist.teachers.payload import Malformed
from minidist.teachers.server.wire import (
    Answer,
    Entry,
    Id,
    Key,
    Logprob,
    Question,
    Table,
    Writing,
    expect,
    numbers,
    parsed,
    scored,
    table,
    written,
)

MODELS, COMPLETIONS = "/v1/models", "/v1/completions"
# The least bias that vLLM takes, and the number of biases that a request may have.
_NEVER, _MOST_BIASES = -100.0, 1024


class _Card(TypedDict, total=False):
    max_model_len: Annotated[int, Field(ge=0)] | None


class _NamedCard(_Card):
    id: str


class _Cards(TypedDict):
    data: list[_NamedCard]


class _Scored(TypedDict):
    prompt_logprobs: list[dict[Key, Entry] | None]


class _ScoredChoices(TypedDict):
    choices: Annotated[list[_Scored], Field(min_length=1, max_length=1)]


class _Logprobs(TypedDict):
    token_logprobs: list[Logprob]


class _Written(TypedDict):
    token_ids: list[Id]
    logprobs: _Logprobs
    finish_reason: Literal["stop", "length"]


class _WrittenChoices(TypedDict):
    choices: Annotated[list[_Written], Field(min_length=1, max_length=1)]


_CARDS, _SCORED, _WRITTEN = TypeAdapter(_Cards), TypeAdapter(_ScoredChoices), TypeAdapter(_WrittenChoices)


@dataclass(frozen=True)
class VLLMApi:
    """vLLM's completions, with prompt_logprobs for scores and return_token_ids for answers.

    width: classes of the teacher's softmax.
    """

    width: int
    name: ClassVar[str] = "vLLM"
    context_flag: ClassVar[str] = "--max-model-len"

    def checks(self) -> Sequence[Question[None]]:
        return ()

    def models(self) -> Question[dict[str, int | None]]:
        def read(raw: bytes) -> dict[str, int | None]:
            return {card["id"]: card.get("max_model_len") for card in parsed(_CARDS, raw)["data"]}

        return Question("GET", MODELS, None, read)

    def score(self, model: str, sequence: Sequence[int], start: int, classes: int) -> Question[Table]:
        # A server answers only if it writes at least one token, which is ignored.
        body = {"model": model, "prompt": list(sequence), "max_tokens": 1, "temperature": 0, "prompt_logprobs": classes}

        def read(raw: bytes) -> Table:
            positions = parsed(_SCORED, raw)["choices"][0]["prompt_logprobs"]
            expect(len(positions) == len(sequence), f"it scored {len(positions)} of {len(sequence)} tokens")
            return _table(positions[start:], sequence[start:], classes, self.width)

        return Question("POST", COMPLETIONS, body, read)

    def write(self, model: str, writing: Writing) -> Question[Answer]:
        body = {"model": model, "prompt": list(writing.prompt), "seed": writing.seed, "logit_bias": _bans(writing.banned)}
        # Only the student's ids end an answer.
        body |= {"ignore_eos": True, "stop_token_ids": list(writing.stops), "logprobs": 0, "return_token_ids": True}

        def read(raw: bytes) -> Answer:
            choice = parsed(_WRITTEN, raw)["choices"][0]
            tokens, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
            expect(len(tokens) == len(logprobs), f"it wrote {len(tokens)} tokens with {len(logprobs)} log-probabilities")
            stopped = choice["finish_reason"] == "stop"
            return written(Answer(np.array(tokens, dtype=np.int32), numbers(logprobs), stopped), writing)

        return Question("POST", COMPLETIONS, body | _drawing(writing), read)


def _bans(ids: Sequence[int]) -> dict[str, float]:
    """The bias by which a server does not sample these ids."""
    if len(ids) > _MOST_BIASES:
        raise RoleError(
            f"{len(ids):,} ids of the teacher are not shared with the student, and a vLLM server bars {_MOST_BIASES:,} of them "
            "at most; set teacher.backend=vllm"
        )
    return dict.fromkeys(map(str, ids), _NEVER)


def _drawing(writing: Writing) -> dict[str, Any]:
    """The sampling fields of a request; every option for which a server may have another default is set."""
    sampling = writing.sampling
    drawn = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
    return drawn | {"top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}


def _table(positions: Sequence[dict[int, Entry] | None], tokens: Sequence[int], classes: int, width: int) -> Table:
    """The scores of the tokens; a position also lists its token, which need not be among the likeliest."""
    logprobs, tops = [], []
    for token, position in zip(tokens, positions, strict=True):
        if position is None or token not in position:
            raise Malformed(f"a position lacks the log-probability of its token {token}")
        logprobs.append(position[token]["logprob"])
        tops.append(_likeliest(position, classes))
    return scored(table(logprobs, tops, classes), tokens, width)


def _likeliest(position: dict[int, Entry], classes: int) -> list[tuple[Logprob, int]]:
    """The (log-probability, id) pairs of the likeliest tokens of a position, in falling order, which is that of their ranks."""
    ranked = [(entry["logprob"], entry.get("rank") or 0, token) for token, entry in position.items()]
    ranked.sort(key=lambda entry: (-np.inf if entry[0] is None else -entry[0], entry[1]))
    if [rank for _, rank, _ in ranked[:classes]] != list(range(1, classes + 1)):
        for index, (logprob, rank, token) in enumerate(ranked[:classes]):
            tied = any(logprob == other for other, _, _ in (*ranked[max(0, index - 1) : index], *ranked[index + 1 : index + 2]))
            expect(
                rank in (0, index + 1) or tied, f"token {token} has rank {rank} at a position, where rank {index + 1} is due"
            )
    return [(logprob, token) for logprob, _, token in ranked[:classes]]
