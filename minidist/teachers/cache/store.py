"""A teacher's scores of given text on disk, found by token ids: written once, read in its place.

A cache is a directory: `cache.json` says whose scores it holds and lists its shards with their sums; scores-00000.safetensors
and so on hold the rows, each array end to end (`logprobs` [N]; `top_ids`, `top_logprobs` [N, K]; `hidden` [N, D], bfloat16 as
uint16), with `starts` [R + 1] and `keys` [R, 32]. A shard is there whole or not at all. What is read is what the teacher said,
to the last bit: float32 log-probabilities, hidden states in the teacher's precision. A live teacher differs from it by what
it differs from itself when the same rows meet in other batches (1e-5 nats in float32).
"""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from minidist.config.teacher import TeacherConfig
from minidist.errors import ConfigError, DataError, MinidistError
from minidist.run.tracking import log
from minidist.types import Payload, Prompt, Rollout, Sampling, TeacherScores

FORMAT = 1
INDEX = "cache.json"
ARRAYS = ("logprobs", "top_ids", "top_logprobs", "hidden")


@dataclass(frozen=True)
class Origin:
    """Whose scores they are, and of what kind.

    model, backend: as the teacher was named, for people. shape, weights, tokenizer: sums of its configuration, of its
    safetensors files (of a hub model its revision, of a server the model's name) and of the vocabulary. top_k: listed tokens
    of payload top_k. vocabulary: classes of the softmax; None of hidden states, which are before it.
    """

    model: str
    backend: str
    shape: str
    weights: str
    tokenizer: str
    dtype: str
    payload: str
    top_k: int | None
    vocabulary: int | None


@dataclass(frozen=True)
class _Place:
    shard: int
    start: int
    end: int


def key_of(rollout: Rollout) -> bytes:
    """What a row is found by: the sum of its prompt's token ids and of its answer's."""
    prompt, answer = (np.asarray(tokens, dtype="<i4") for tokens in (rollout.prompt.tokens, rollout.tokens))
    return hashlib.sha256(np.int64(len(prompt)).tobytes() + prompt.tobytes() + answer.tobytes()).digest()


class ScoreCache:
    """A cache as it lies on disk, every shard checked by its sum. A row is read without the rest of its shard.

    `mend`: damaged shards are passed over, for their rows to be scored again. Raises ConfigError where there is no cache, and
    where a shard is damaged.
    """

    def __init__(self, path: Path, *, mend: bool = False) -> None:
        self.path = path
        index = _read_index(path)
        self.origin = Origin(**index["origin"])
        self.hidden_dtype: str = index["hidden_dtype"]
        self.shards: list[dict[str, Any]] = []
        self._places: dict[bytes, _Place] = {}
        for shard in index["shards"]:
            if damage := _damage(path / shard["file"], shard["sha256"]):
                if not mend:
                    raise ConfigError(
                        f"the cache {path} is damaged: {shard['file']} {damage}; give the minidist score command that wrote it "
                        "again, with run.overwrite=true: it scores the rows of that file anew"
                    )
                log.warning("%s of the cache %s; its rows are scored again", f"{shard['file']} {damage}", path)
                continue
            self._enter(len(self.shards), path / shard["file"])
            self.shards.append(shard)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, rollout: Rollout) -> bool:
        return key_of(rollout) in self._places

    @property
    def bytes(self) -> int:
        return sum((self.path / shard["file"]).stat().st_size for shard in self.shards)

    def read(self, rollout: Rollout) -> TeacherScores:
        """The scores of a row that is there."""
        place = self._places[key_of(rollout)]
        shard = self._open[place.shard]
        held: dict[str, Any] = {name: shard.get_slice(name)[place.start : place.end] for name in ARRAYS if name in shard.keys()}  # noqa: SIM118
        return TeacherScores(Payload(self.origin.payload), hidden_dtype=self.hidden_dtype, **held)

    @cached_property
    def _open(self) -> list[Any]:
        """The shards, mapped into memory."""
        return [safe_open(self.path / shard["file"], framework="np") for shard in self.shards]

    def _enter(self, number: int, file: Path) -> None:
        with safe_open(file, framework="np") as shard:
            keys, starts = shard.get_tensor("keys"), shard.get_tensor("starts")
        for key, start, end in zip(keys, starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            self._places[key.tobytes()] = _Place(number, start, end)


class CachedTeacher:
    """Says of given text what a teacher said of it before. It lives in the process that asks, and cannot write."""

    def __init__(self, config: TeacherConfig, cache: ScoreCache) -> None:
        self._cache, self._top_k = cache, config.top_k

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """Scores of the rollouts' tokens, in their order. Raises DataError, naming the first, where some are not there."""
        require(self._cache, rollouts, "the text to be scored")
        return await asyncio.to_thread(lambda: [self._cut(self._cache.read(rollout)) for rollout in rollouts])

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """Refused."""
        raise MinidistError(f"the cache {self._cache.path} holds scores and writes no text; set teacher.backend=hf")

    async def describe(self) -> dict[str, object]:
        """What is read, and what it says."""
        kept = {"payload": self._cache.origin.payload, "cache": str(self._cache.path), "rows": len(self._cache)}
        return {"class": type(self).__name__, **kept}

    async def close(self) -> None: ...

    def _cut(self, scores: TeacherScores) -> TeacherScores:
        """The first K of more listed tokens are the K likeliest, and the tail is what they leave: as exact as all of them."""
        if scores.top_ids is None or scores.top_logprobs is None:
            return scores
        ids, logprobs = scores.top_ids[:, : self._top_k], scores.top_logprobs[:, : self._top_k]
        return TeacherScores(scores.payload, logprobs=scores.logprobs, top_ids=ids, top_logprobs=logprobs)


def require(cache: ScoreCache, rollouts: Sequence[Rollout], where: str) -> None:
    """Raise DataError unless every row is in the cache."""
    absent = [number for number, rollout in enumerate(rollouts) if rollout not in cache]
    if absent:
        first = rollouts[absent[0]]
        text = repr(first.prompt.text[:60]) if first.prompt.text else f"token ids {first.prompt.tokens[:8].tolist()}"
        raise DataError(
            f"the cache {cache.path} lacks {len(absent)} of {len(rollouts)} rows of {where}; the first is row {absent[0]} "
            f"({text}, {len(first.tokens)} labels). Name the same data, rendering, max_tokens and, for data.prompts, "
            "max_new_tokens (= rollout.max_new_tokens) under data.sources of minidist score, and run that first"
        )


def check_origin(path: Path, asked: Origin, *, writing: bool = False) -> None:
    """Raise ConfigError unless the cache at `path` serves a run that asks for these scores, or takes them in."""
    there, name = Origin(**_read_index(path)["origin"]), f"the cache {path}"
    other = "set another cache" if writing else "write a cache of this one with minidist score, and set teacher.cache to it"
    live = writing or not there.weights.startswith("server:")  # what a server held is not to be seen any more
    if there.shape != asked.shape or (live and there.weights != asked.weights):
        fix = other if writing else f"set teacher.model to that one, or {other}"
        raise ConfigError(
            f"{name} holds scores of another teacher: of {there.model}, whose configuration or weights are not those of "
            f"teacher.model {asked.model}; {fix}"
        )
    if there.tokenizer != asked.tokenizer:
        raise ConfigError(f"{name} was written with another tokenizer, whose token ids mean other text; {other}")
    for field in ("payload", "dtype"):
        ours, theirs = getattr(asked, field), getattr(there, field)
        if ours != theirs:
            fix = f"set teacher.{field}={theirs}, or {other}"
            raise ConfigError(f"teacher.{field} is {ours}, and {name} was written with {theirs}; {fix}")
    if there.vocabulary != asked.vocabulary:
        raise ConfigError(
            f"{name} holds log-probabilities over {there.vocabulary:,} token ids, and student and teacher share "
            f"{asked.vocabulary:,}; {other}"
        )
    _check_listed(there.top_k or 0, asked.top_k or 0, name, other, writing)


def _check_listed(there: int, asked: int, name: str, other: str, writing: bool) -> None:
    """Fewer listed tokens are had by cutting, more are not."""
    if asked > there or (writing and asked != there):
        raise ConfigError(
            f"teacher.top_k is {asked}, and {name} lists {there} tokens a place; set teacher.top_k={there}, or {other}"
        )


def _read_index(path: Path) -> dict[str, Any]:
    try:
        index = json.loads((path / INDEX).read_text())
    except (OSError, ValueError):
        raise ConfigError(
            f"there is no cache of scores at {path} ({INDEX} cannot be read); write one with minidist score"
        ) from None
    found = index.get("format") if isinstance(index, dict) else None
    if found != FORMAT:
        raise ConfigError(
            f"the cache {path} has format {found!r}, and this minidist reads {FORMAT}; write it again with minidist score"
        )
    return index


def _damage(file: Path, expected: str) -> str | None:
    if not file.is_file():
        return "is missing"
    return None if sum_of(file) == expected else "has changed"


def sum_of(file: Path) -> str:
    """sha256 of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
