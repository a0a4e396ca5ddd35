"""Given text as a teacher is asked about it, the same for who writes its scores down and for who reads them."""

import shutil
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from minidist.config import DistillConfig, ScoreConfig
from minidist.config.data import ScoreDataConfig, ScoreSourceConfig
from minidist.config.teacher import CacheTeacherConfig
from minidist.data.rendering import Renderer
from minidist.data.sources import Example, gold_rollout, read_examples, read_prompts
from minidist.errors import ConfigError
from minidist.preflight.memory import score_bytes_per_token
from minidist.teachers.cache.origin import origin_of
from minidist.teachers.cache.store import INDEX, Origin, ScoreCache, check_origin, key_of, require
from minidist.types import Prompt, Rollout

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_KEY_BYTES = 40  # of a row: its key, and where it starts


def read_texts(config: ScoreDataConfig, renderer: Renderer) -> tuple[list[Rollout], list[str]]:
    """All rows of all sources, each once, and a line on each source."""
    texts: dict[bytes, Rollout] = {}
    lines = []
    for name, source in config.sources.items():
        rows, skipped = _read(source, renderer, config.max_prompt_tokens)
        before = len(texts)
        texts |= {key_of(row): row for row in rows}
        twice, left = len(rows) - (len(texts) - before), f", {skipped:,} left out" if skipped else ""
        lines.append(f"{name}: {len(rows):,} rows of {source.path}{left}" + (f", {twice:,} there before" if twice else ""))
    return list(texts.values()), lines


def longest(config: ScoreDataConfig) -> int:
    """Most tokens that a row can have, prompt and answer together."""
    return max(
        source.max_tokens if source.max_new_tokens is None else config.max_prompt_tokens + source.max_new_tokens
        for source in config.sources.values()
    )


def place_cache(
    config: ScoreConfig,
    tokenizer: "PreTrainedTokenizerBase",
    vocabulary: int,
    teacher: "PretrainedConfig",
    texts: Sequence[Rollout],
) -> tuple[Origin, str]:
    """The origin of what will be written, and a line on its size. Raises ConfigError where it cannot lie in config.cache."""
    origin = origin_of(config.teacher, tokenizer, vocabulary)
    if (config.cache / INDEX).exists():
        check_origin(config.cache, origin, writing=True)
    elif config.cache.exists() and not config.cache.is_dir():
        raise ConfigError(f"cache {config.cache} is a file; set it to a directory")
    elif config.cache.exists() and any(not entry.name.startswith((".", INDEX)) for entry in config.cache.iterdir()):
        raise ConfigError(f"cache {config.cache} holds files but no cache of scores; set it to another place")
    tokens, width = sum(len(text.tokens) for text in texts), int(teacher.get_text_config().hidden_size)
    scored = config.teacher.model_copy(update={"top_k": min(config.teacher.top_k, vocabulary)})
    size = tokens * score_bytes_per_token(scored, width) + len(texts) * _KEY_BYTES
    there = next(path for path in (config.cache.absolute(), *config.cache.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    rows = f"{len(texts):,} rows with {tokens:,} tokens to score ({config.teacher.payload})"
    room = f"up to {size / 2**20:,.1f} MiB in {config.cache}, where {free / 2**30:,.1f} GiB are free"
    return origin, f"{'' if size < free else 'WARNING it does not fit: '}{rows}: {room}"


def open_cache(
    config: DistillConfig,
    renderer: Renderer,
    *,
    vocabulary: int,
    prompts: Sequence[Prompt],
    streams: Mapping[str, Sequence[Example]],
) -> ScoreCache:
    """teacher.cache, which serves this run: every row that it can draw is there. Raises ConfigError or DataError if not."""
    assert isinstance(config.teacher, CacheTeacherConfig)
    check_origin(config.teacher.cache, origin_of(config.teacher, renderer.tokenizer, vocabulary))
    cache = ScoreCache(config.teacher.cache)
    gold = [stream for stream in config.streams.values() if stream.writer == "dataset" and stream.objective.needs is not None]
    if config.objective.needs is not None or gold:
        require(cache, [gold_rollout(prompt, config.rollout.max_new_tokens) for prompt in prompts], "data.prompts")
    for name, examples in streams.items():  # a stream of writer dataset has none: it is on the prompts' answers
        if config.streams[name].objective.needs is not None:
            require(cache, [example.as_rollout() for example in examples], f"streams.{name}")
    return cache


def _read(source: ScoreSourceConfig, renderer: Renderer, max_prompt_tokens: int) -> tuple[list[Rollout], int]:
    if source.max_new_tokens is not None:
        prompts, skipped = read_prompts(source, renderer, max_prompt_tokens=max_prompt_tokens, gold=True)
        return [gold_rollout(prompt, source.max_new_tokens) for prompt in prompts], skipped
    limits = {"max_prompt_tokens": max_prompt_tokens, "max_tokens": source.max_tokens}
    examples, skipped = read_examples(source, renderer, **limits)
    return [example.as_rollout() for example in examples], skipped
