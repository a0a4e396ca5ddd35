"""A teacher's scores of given text on disk, found by token ids; they replace the teacher in later runs.

A cache is a directory. `cache.json` identifies the teacher and lists the shards with their checksums. The shards,
scores-00000.safetensors and so on, hold R rows of N tokens, each array concatenated over the rows (`logprobs` [N]; `top_ids`,
`top_logprobs` [N, K]; `hidden` [N, D], bfloat16 as uint16), with `starts` [R + 1] and `keys` [R, 32]. A shard is complete or
absent. Scores are read bit for bit as the teacher gave them: float32 log-probabilities, hidden states in the teacher's
precision. A live teacher differs from its cache as it differs from itself between batches (1e-5 nats in float32).
"""

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from typing_extensions import TypedDict

from minidist.config.teacher import TeacherConfig
from minidist.errors import ConfigError, DataError, MinidistError
from minidist.run.files import damage, open_tensors, read_record, shaped
from minidist.run.tracking import log
from minidist.types import Array, Payload, Prompt, Rollout, Sampling, TeacherScores

FORMAT = 1
INDEX = "cache.json"
_AGAIN = "remove the cache and write it again"
ARRAYS = ("logprobs", "top_ids", "top_logprobs", "hidden")


@dataclass(frozen=True)
class Origin:
    """The teacher of the scores, and their kind.

    model, backend: the teacher's configuration, for people. shape, weights, tokenizer: checksums of the model's configuration,
    of its safetensors files (the revision of a hub model, the model name on a server) and of the vocabulary. top_k: K of
    payload top_k. vocabulary: classes of the softmax; None for hidden states, which precede the softmax.
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


class Shard(TypedDict):
    """A file of the cache as cache.json lists it."""

    file: Annotated[str, Field(pattern=r"^scores-\d{5}\.safetensors$")]
    rows: int
    tokens: int
    sha256: str


class Index(TypedDict):
    """cache.json."""

    format: int
    origin: Origin
    hidden_dtype: str
    shards: list[Shard]


def key_of(rollout: Rollout) -> bytes:
    """The key of a row: a checksum of the token ids that the teacher reads, of the prompt and of the answer."""
    read = rollout.for_teacher
    prompt, answer = (np.asarray(tokens, dtype="<i4") for tokens in (read.prompt.tokens, read.tokens))
    return hashlib.sha256(np.int64(len(prompt)).tobytes() + prompt.tobytes() + answer.tobytes()).digest()


class ScoreCache:
    """A cache on disk, with the checksum of every shard verified. A row is read without the rest of its shard.

    `mend`: leave out damaged shards, whose rows are then scored again. Raises ConfigError if there is no cache at `path`, or if
    a shard is damaged.
    """

    def __init__(self, path: Path, *, mend: bool = False) -> None:
        self.path = path
        index = read_index(path)
        self.origin = index["origin"]
        self.hidden_dtype = index["hidden_dtype"]
        self.shards: list[Shard] = []
        self._places: dict[bytes, tuple[int, slice]] = {}  # of each row: its shard, and its tokens there
        for shard in index["shards"]:
            if fault := damage(path / shard["file"], shard["sha256"]):
                if not mend:
                    raise ConfigError(
                        f"the cache {path} is damaged: {shard['file']} {fault}; give the minidist score command that wrote it "
                        "again, with run.overwrite=true: it scores the rows of that file anew"
                    )
                log.warning("%s of the cache %s; its rows are scored again", f"{shard['file']} {fault}", path)
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
        """The scores of a row in the cache."""
        number, tokens = self._places[key_of(rollout)]
        shard = self._open[number]
        arrays: dict[str, Any] = {name: shard.get_slice(name)[tokens] for name in ARRAYS if name in shard.keys()}  # noqa: SIM118
        return TeacherScores(Payload(self.origin.payload), hidden_dtype=self.hidden_dtype, **arrays)

    @cached_property
    def _open(self) -> list[Any]:
        """The shards, mapped into memory."""
        return [open_tensors(self.path / shard["file"], _AGAIN, ConfigError) for shard in self.shards]

    def _enter(self, number: int, file: Path) -> None:
        keys, borders = read_rows(file, self.origin)
        for key, start, end in zip(keys, borders[:-1], borders[1:], strict=True):
            self._places[key.tobytes()] = number, slice(start, end)


class CachedTeacher:
    """Returns a teacher's earlier scores of given text. Lives in the process that asks for them, and cannot write."""

    def __init__(self, config: TeacherConfig, cache: ScoreCache) -> None:
        self._cache = cache
        self._top_k = config.top_k

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """Scores of the rollouts' tokens, in order. Raises DataError, which names the first missing row."""
        require(self._cache, rollouts, "the text to be scored")
        return await asyncio.to_thread(lambda: [self._cut(self._cache.read(rollout)) for rollout in rollouts])

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """Raises MinidistError: a cache has no model."""
        raise MinidistError(f"the cache {self._cache.path} holds scores and writes no text; set teacher.backend=hf")

    async def describe(self) -> dict[str, object]:
        """Payload, directory and rows: for the run's summary."""
        origin, path, rows = self._cache.origin, str(self._cache.path), len(self._cache)
        return {"class": type(self).__name__, "payload": origin.payload, "cache": path, "rows": rows}

    async def close(self) -> None: ...

    def _cut(self, scores: TeacherScores) -> TeacherScores:
        """The first top_k of the listed tokens: the likeliest ones, so scores are exact for this smaller K too."""
        if scores.top_ids is None or scores.top_logprobs is None:
            return scores
        return replace(scores, top_ids=scores.top_ids[:, : self._top_k], top_logprobs=scores.top_logprobs[:, : self._top_k])


def require(cache: ScoreCache, rollouts: Sequence[Rollout], where: str) -> None:
    """Raise DataError unless every row is in the cache."""
    missing = [number for number, rollout in enumerate(rollouts) if rollout not in cache]
    if missing:
        first = rollouts[missing[0]]
        text = repr(first.prompt.text[:60]) if first.prompt.text else f"token ids {first.prompt.tokens[:8].tolist()}"
        raise DataError(
            f"the cache {cache.path} lacks {len(missing)} of {len(rollouts)} rows of {where}; the first is row {missing[0]} "
            f"({text}, {len(first.tokens)} labels). Name the same data, rendering, teacher.context, max_tokens and, for "
            "data.prompts, max_new_tokens (= rollout.max_new_tokens) in minidist score, and run that first"
        )


def check_origin(path: Path, asked: Origin, *, writing: bool = False) -> None:
    """Raise ConfigError unless the cache at `path` can serve these scores to a run, or take them in if `writing`."""
    found, name = read_index(path)["origin"], f"the cache {path}"
    other = "set another cache" if writing else "write a cache of this teacher with minidist score, and set teacher.cache to it"
    comparable = writing or not found.weights.startswith("server:")  # the weights that a server had are unknown by now
    if found.shape != asked.shape or (comparable and found.weights != asked.weights):
        fix = other if writing else f"set teacher.model to that teacher, or {other}"
        raise ConfigError(
            f"{name} holds scores of another teacher, {found.model}, whose configuration or weights differ from those of "
            f"teacher.model {asked.model}; {fix}"
        )
    if found.tokenizer != asked.tokenizer:
        raise ConfigError(f"{name} was written with another tokenizer, whose token ids mean other text; {other}")
    for field in ("payload", "dtype"):
        want, have = getattr(asked, field), getattr(found, field)
        if want != have:
            fix = f"set teacher.{field}={have}, or {other}"
            raise ConfigError(f"teacher.{field} is {want}, and {name} was written with {have}; {fix}")
    if found.vocabulary != asked.vocabulary:
        raise ConfigError(
            f"{name} holds log-probabilities over {found.vocabulary:,} token ids, and student and teacher share "
            f"{asked.vocabulary:,}; {other}"
        )
    want, have = asked.top_k or 0, found.top_k or 0
    if want > have or (writing and want != have):  # a run may use fewer tokens than the cache lists, but not more
        raise ConfigError(
            f"teacher.top_k is {want}, and {name} lists {have} tokens a position; set teacher.top_k={have}, or {other}"
        )


def read_index(path: Path) -> Index:
    """cache.json. Raises ConfigError where there is none, or one of another shape."""
    remedy = "remove it and give the minidist score command again with run.overwrite=true, which lists the shards anew"
    if not (path / INDEX).is_file():
        lost = f"; with shards there, {INDEX} is lost: {remedy}" if any(path.glob("scores-*.safetensors")) else ""
        raise ConfigError(f"there is no score cache at {path} ({INDEX} is missing); write one with minidist score{lost}")
    index = read_record(path / INDEX, dict[str, Any], remedy, ConfigError)
    if (found := index.get("format")) != FORMAT:
        raise ConfigError(
            f"the cache {path} has format {found!r}, and this minidist reads {FORMAT}; write it again with minidist score"
        )
    return shaped(index, Index, f"{path / INDEX} is of another shape", remedy, ConfigError)


def origin_of_shard(file: Path) -> tuple[Origin, str] | None:
    """The teacher of a shard and its hidden states' dtype, as the shard itself says; None where it does not."""
    try:
        with open_tensors(file, _AGAIN, ConfigError) as shard:
            facts = shard.metadata() or {}
        return TypeAdapter(Origin).validate_json(facts["origin"]), facts["hidden_dtype"]
    except (KeyError, ValueError):  # ConfigError is one
        return None


def read_rows(file: Path, origin: Origin) -> tuple[Array, list[int]]:
    """The keys of a shard's rows, and the borders of their tokens. Raises ConfigError where the arrays do not fit together."""
    needed = {"hidden": ["hidden"], "top_k": ["top_ids", "top_logprobs"], "sampled": ["logprobs"]}.get(origin.payload, [])
    try:
        with open_tensors(file, _AGAIN, ConfigError) as shard:
            keys, starts = shard.get_tensor("keys"), shard.get_tensor("starts")
            tokens = {(shard.get_slice(name).get_shape() or [0])[0] for name in shard.keys() if name in ARRAYS}  # noqa: SIM118
            missing = [name for name in needed if name not in shard.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise ConfigError(f"{file} is not a shard of a score cache: {error}; {_AGAIN}") from None
    whole = keys.ndim == 2 and keys.shape[1:] == (32,) and starts.shape == (len(keys) + 1,) and starts.dtype.kind == "i"
    if missing or not whole or starts[0] != 0 or (np.diff(starts) < 0).any() or tokens != {int(starts[-1])}:
        found = f"it lacks {missing[0]}" if missing else "its rows and arrays have different lengths"
        raise ConfigError(f"{file} is not a shard of a score cache: {found}; remove the cache and write it again")
    return keys, starts.tolist()
