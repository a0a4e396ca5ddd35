"""Scoring: the teachers say what they think of given text, and it is kept."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from minidist.config import ScoreConfig
from minidist.preflight.plan import Plan
from minidist.protocols import Teacher
from minidist.roles.host import Roles
from minidist.run.canaries import check_teacher
from minidist.run.directory import RunDirectory
from minidist.run.tracking import Recorder, log
from minidist.teachers.cache.store import ScoreCache
from minidist.teachers.cache.writer import ScoreWriter
from minidist.types import Measures, Rollout, TeacherScores


async def score(config: ScoreConfig, plan: Plan, directory: RunDirectory, roles: Roles) -> dict[str, Any]:
    """Score the rows that are not in the cache yet."""
    assert plan.origin is not None
    writer = ScoreWriter(config.cache, plan.origin, shard_rows=config.shard_rows)
    described: dict[str, object] = {}
    started = time.perf_counter()
    try:
        waiting = [text for text in plan.texts if writer.there is None or text not in writer.there]
        log.info("%d of %d rows are in %s already", len(plan.texts) - len(waiting), len(plan.texts), config.cache)
        if waiting:
            teachers = await roles.teachers(config.teacher)
            described = {"teacher": await teachers.describe()}
            await _Scoring(config, plan, directory, teachers, writer).run(waiting)
    finally:
        writer.close()
    cache = ScoreCache(config.cache)  # read back, and checked, before it is called whole
    tokens = sum(len(text.tokens) for text in plan.texts)
    written = {"rows_scored": len(waiting), "rows": len(cache), "tokens": tokens, "bytes": cache.bytes}
    speed = len(waiting) / (time.perf_counter() - started)
    log.info(
        "%d rows scored, %.4g rows/s; %s holds %d rows, %d bytes", len(waiting), speed, config.cache, len(cache), cache.bytes
    )
    return {"cache": str(config.cache), **written, **described}


class _Scoring:
    """Batch after batch, with a bar and a line of figures each; stopped between two of them, it loses nothing."""

    def __init__(self, config: ScoreConfig, plan: Plan, directory: RunDirectory, teacher: Teacher, writer: ScoreWriter) -> None:
        self._config, self._plan, self._directory = config, plan, directory
        self._teacher, self._writer = teacher, writer

    async def run(self, texts: Sequence[Rollout]) -> None:
        """Score and add them all."""
        size = self._config.batch_rows
        batches = [texts[start : start + size] for start in range(0, len(texts), size)]
        shown = [("speed/rows_per_s", "rows/s"), ("cache/bytes", "bytes")]
        recorder = Recorder(self._directory.path, len(batches), tensorboard=self._config.run.tensorboard, shown=shown)
        done = 0
        try:
            for number, batch in enumerate(batches):
                started = time.perf_counter()
                await self._whole(batch, number)
                done += len(batch)
                seconds = time.perf_counter() - started
                figures = {"cache/rows": float(done), "cache/bytes": float(self._writer.bytes), "time/score_s": seconds}
                recorder.step(number, figures | {"speed/rows_per_s": len(batch) / seconds})
        except asyncio.CancelledError:
            log.info("stopped; what is scored is kept, and the same command goes on from there")
            raise
        finally:
            recorder.close()

    async def _whole(self, batch: Sequence[Rollout], number: int) -> None:
        """Finish the batch even when cancelled meanwhile, and only then be cancelled. A second time ends it at once."""
        task = asyncio.ensure_future(self._add(batch, number))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            await task
            raise

    async def _add(self, batch: Sequence[Rollout], number: int) -> None:
        scores = await self._teacher.score(batch)
        if number % self._config.canaries.every == 0:
            self._check(scores)
        await asyncio.to_thread(self._writer.add, batch, scores)

    def _check(self, scores: Sequence[TeacherScores]) -> None:
        """The canary of a teacher that guesses. Hidden states say no probability without its head: training checks those."""
        said = [each.logprobs for each in scores if each.logprobs is not None]
        if said:
            logprobs = np.concatenate(said).astype(np.float64)
            measures = Measures(np.zeros(len(logprobs), dtype=np.int32), logprobs, teacher_logprob=logprobs)
            check_teacher(measures, self._plan.vocabulary or 1, self._config.canaries.uniform_margin)
