"""The wire format of the native server of SGLang, as documented for 0.5 (docs.sglang.io, basic_usage/native_api).

Log-probabilities are lists [log-probability, token id, text or null]. Those of a prompt start at logprob_start_len with one
that has no log-probability; null also stands for numbers that JSON lacks. Samples repeat only on a server that was started with
--enable-deterministic-inference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, NotRequired

import numpy as np
from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from minidist.teachers.server.wire import (
    Answer,
    Id,
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

HEALTH, MODEL_INFO, SERVER_INFO, GENERATE = "/health", "/get_model_info", "/get_server_info", "/generate"

_Entry = tuple[Logprob, Id, str | None]
_Length = Annotated[int, Field(strict=True, ge=0)]


class _ModelInfo(TypedDict):
    model_path: str
    is_generation: Literal[True]


class _ServerInfo(TypedDict):
    model_path: str
    served_model_name: NotRequired[str | None]
    context_length: NotRequired[_Length | None]
    max_req_input_len: NotRequired[_Length | None]


class _Finish(TypedDict):
    type: Literal["stop", "length"]
    matched: NotRequired[Id]  # text where a server stopped for a fault
    length: NotRequired[int]


class _ScoredMeta(TypedDict):
    input_token_logprobs: list[_Entry]
    input_top_logprobs: NotRequired[list[list[_Entry] | None]]


class _Scored(TypedDict):
    meta_info: _ScoredMeta


class _WrittenMeta(TypedDict):
    output_token_logprobs: list[_Entry]
    finish_reason: _Finish


class _Written(TypedDict):
    meta_info: _WrittenMeta


_MODEL, _SERVER, _SCORED, _WRITTEN = (
    TypeAdapter(_ModelInfo),
    TypeAdapter(_ServerInfo),
    TypeAdapter(_Scored),
    TypeAdapter(_Written),
)
_NEVER = -1e9
"""Logit bias of an id that is never sampled."""


@dataclass(frozen=True)
class SGLangApi:
    """SGLang's /generate, with return_logprob. width: classes of the teacher's softmax."""

    width: int
    name: ClassVar[str] = "SGLang"
    context_flag: ClassVar[str] = "--context-length"

    def checks(self) -> Sequence[Question[None]]:
        def generates(raw: bytes) -> None:
            parsed(_MODEL, raw)

        return Question("GET", HEALTH, None, lambda raw: None), Question("GET", MODEL_INFO, None, generates)

    def models(self) -> Question[dict[str, int | None]]:
        def read(raw: bytes) -> dict[str, int | None]:
            info = parsed(_SERVER, raw)
            limits = [limit for limit in (info.get("context_length"), info.get("max_req_input_len")) if limit is not None]
            return {info.get("served_model_name") or info["model_path"]: min(limits, default=None)}

        return Question("GET", SERVER_INFO, None, read)

    def score(self, model: str, sequence: Sequence[int], start: int, classes: int) -> Question[Table]:
        body = {"input_ids": list(sequence), "sampling_params": {"max_new_tokens": 0, "temperature": 1}, "stream": False}
        body |= {"return_logprob": True, "logprob_start_len": start - 1, "top_logprobs_num": classes}
        tokens = sequence[start:]

        def read(raw: bytes) -> Table:
            meta = parsed(_SCORED, raw)["meta_info"]
            entries, tops = meta["input_token_logprobs"], meta.get("input_top_logprobs", []) if classes else []
            expect(len(entries) == len(tokens) + 1, f"it scored {len(entries) - 1} of {len(tokens)} tokens")
            expect(len(tops) == (len(entries) if classes else 0), f"it lists the likeliest tokens of {len(tops)} positions")
            for token, (_, found, _) in zip(tokens, entries[1:], strict=True):
                expect(found == token or _hidden(found, token, self.width), f"it scored token {found}, and {token} was sent")
            logprobs = [logprob for logprob, _, _ in entries[1:]]
            lists = [[(logprob, each) for logprob, each, _ in top or ()] for top in tops[1:]] or [[]] * len(tokens)
            return scored(table(logprobs, lists, classes), tokens, self.width)

        return Question("POST", GENERATE, body, read)

    def write(self, model: str, writing: Writing) -> Question[Answer]:
        body = {"input_ids": list(writing.prompt), "sampling_params": _drawing(writing), "stream": False}
        body |= {"return_logprob": True, "logprob_start_len": -1, "top_logprobs_num": 0}

        def read(raw: bytes) -> Answer:
            meta = parsed(_WRITTEN, raw)["meta_info"]
            tokens = np.array([token for _, token, _ in meta["output_token_logprobs"]], dtype=np.int32)
            logprobs = numbers([logprob for logprob, _, _ in meta["output_token_logprobs"]])
            return written(Answer(tokens, logprobs, meta["finish_reason"]["type"] == "stop"), writing)

        return Question("POST", GENERATE, body, read)


def _drawing(writing: Writing) -> dict[str, Any]:
    """The sampling fields of a request. With ignore_eos a server ignores stop_token_ids too: its own ids end as well."""
    sampling = writing.sampling
    drawn = {"max_new_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
    drawn |= {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
    drawn |= {"stop_token_ids": list(writing.stops), "ignore_eos": False, "sampling_seed": writing.seed}
    return drawn | ({"logit_bias": {str(token): _NEVER for token in writing.banned}} if writing.banned else {})


def _hidden(found: int, token: int, width: int) -> bool:
    """Whether the server shows 0 in place of a token at the vocabulary's end, as of padding for pictures."""
    return found == 0 and token >= width - 1
