"""Given text and a teacher's cache of scores, read alike by `score`, which writes the cache, and `distill`, which reads it."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from minidist.config import DistillConfig, ScoreConfig
from minidist.config.data import ScoreDataConfig
from minidist.config.teacher import CacheTeacherConfig
from minidist.data.sources import Example, gold_rollout
from minidist.errors import ConfigError
from minidist.preflight.facts import PairFacts, RowReader
from minidist.preflight.memory import score_bytes_per_token
from minidist.teachers.cache.origin import origin_of
from minidist.teachers.cache.store import INDEX, Origin, ScoreCache, check_origin, key_of, require
from minidist.types import Prompt, Rollout

_KEY_BYTES = 40  # of a row: its key, and the index of its first token


def longest_row(config: ScoreDataConfig) -> int:
    """Most tokens that a row can have, prompt and answer together."""
    limit, sources = config.max_prompt_tokens, config.sources.values()
    return max(each.max_tokens if each.max_new_tokens is None else limit + each.max_new_tokens for each in sources)


def read_texts(config: ScoreDataConfig, reader: RowReader) -> tuple[list[Rollout], list[str]]:
    """All rows of all sources, each once, and a line on each source."""
    texts: dict[bytes, Rollout] = {}
    lines = []
    for name, source in config.sources.items():
        if source.max_new_tokens is None:
            rows = reader.examples(name, source, max_tokens=source.max_tokens, scored=True)
            rollouts = [example.as_rollout() for example in rows.found]
        else:
            rows = reader.prompts(name, source, gold=True)
            rollouts = [gold_rollout(prompt, source.max_new_tokens) for prompt in rows.found]
        before = len(texts)
        texts |= {key_of(rollout): rollout for rollout in rollouts}
        repeated = len(rollouts) - (len(texts) - before)
        lines.append(rows.line + (f", {repeated:,} of them repeated" if repeated else ""))
    return list(texts.values()), lines


def check_cache_directory(path: Path) -> None:
    """Raise ConfigError unless `path` is a cache of scores, empty, or does not exist."""
    if (path / INDEX).exists() or not path.exists():
        return
    if not path.is_dir():
        raise ConfigError(f"cache {path} is a file; set it to a directory")
    if any(not entry.name.startswith((".", INDEX, "scores-")) for entry in path.iterdir()):
        raise ConfigError(f"cache {path} holds files but no cache of scores; set it to another directory")


def cache_origin(config: ScoreConfig, models: PairFacts) -> Origin:
    """The teacher as the cache will name it. Raises ConfigError where config.cache holds the scores of another teacher."""
    origin = origin_of(config.teacher, models.teacher.tokenizer, models.vocabulary)
    if (config.cache / INDEX).exists():
        check_origin(config.cache, origin, writing=True)
    return origin


def size_line(config: ScoreConfig, texts: Sequence[Rollout], models: PairFacts) -> str:
    """Rows, tokens and bytes to score, and the room on the disk of config.cache."""
    tokens = sum(len(text.tokens) for text in texts)
    scored = config.teacher.model_copy(update={"top_k": min(config.teacher.top_k, models.vocabulary)})
    size = tokens * score_bytes_per_token(scored, models.teacher.shape.hidden) + len(texts) * _KEY_BYTES
    disk = next(path for path in (config.cache.absolute(), *config.cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(disk).free
    rows = f"{len(texts):,} rows with {tokens:,} tokens to score ({config.teacher.payload})"
    room = f"up to {size / 2**20:,.1f} MiB in {config.cache}, where {free / 2**30:,.1f} GiB are free"
    return f"{'' if size < free else 'WARNING it does not fit: '}{rows}: {room}"


def open_cache(
    config: DistillConfig,
    models: PairFacts,
    *,
    prompts: Sequence[Prompt],
    streams: Mapping[str, Sequence[Example]],
) -> ScoreCache:
    """teacher.cache. Raises ConfigError or DataError unless it holds the scores of every row that the run can draw."""
    assert isinstance(config.teacher, CacheTeacherConfig)
    check_origin(config.teacher.cache, origin_of(config.teacher, models.teacher.tokenizer, models.vocabulary))
    cache = ScoreCache(config.teacher.cache)
    gold = [stream for stream in config.streams.values() if stream.writer == "dataset" and stream.objective.needs is not None]
    if config.objective.needs is not None or gold:
        require(cache, [gold_rollout(prompt, config.rollout.max_new_tokens) for prompt in prompts], "data.prompts")
    for name, examples in streams.items():  # a stream of writer dataset has none: its text is the prompts' answers
        if config.streams[name].objective.needs is not None:
            require(cache, [example.as_rollout() for example in examples], f"streams.{name}")
    return cache
