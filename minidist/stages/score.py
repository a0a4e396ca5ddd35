"""Scoring: teachers score a fixed text, and the scores are written to a cache."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import closing
from typing import Any

import numpy as np

from minidist.cluster.kept import at_hand
from minidist.concurrency import whole
from minidist.config import ScoreConfig
from minidist.preflight.plan import ScorePlan
from minidist.protocols import Teacher
from minidist.roles.host import Roles
from minidist.run.canaries import check_floored, check_teacher
from minidist.run.tracking import Recorder, log
from minidist.stages import StageRun
from minidist.teachers.cache.store import ScoreCache
from minidist.teachers.cache.writer import ScoreWriter
from minidist.teachers.payload import floored_frac
from minidist.types import Measures, Rollout, TeacherScores


async def score(run: StageRun[ScoreConfig, ScorePlan], roles: Roles) -> dict[str, Any]:
    """Score the rows that the cache does not hold yet."""
    config, plan = run.config, run.plan
    described: dict[str, object] = {}
    started = time.perf_counter()
    with closing(ScoreWriter(config.cache, plan.origin, shard_rows=config.shard_rows)) as writer:
        waiting = [text for text in plan.texts if text not in writer.existing]
        log.info("%d of %d rows are already in %s", len(plan.texts) - len(waiting), len(plan.texts), config.cache)
        if waiting:
            teachers = await roles.teachers(config.teacher)
            described = {"teacher": await teachers.describe()}
            await _Scoring(run, teachers, writer).run(waiting)
    cache = ScoreCache(config.cache)  # read back and verified before the run counts as finished
    tokens = sum(len(text.tokens) for text in plan.texts)
    written = {"rows_scored": len(waiting), "rows": len(cache), "tokens": tokens, "bytes": cache.bytes}
    speed, text = len(waiting) / (time.perf_counter() - started), "%d rows scored, %.4g rows/s; %s holds %d rows, %d bytes"
    log.info(text, len(waiting), speed, config.cache, len(cache), cache.bytes)
    return {"cache": str(config.cache), **written, **described}


class _Scoring:
    """Batch after batch, with a progress bar and a line of figures each; stopped between two batches, it loses nothing."""

    def __init__(self, run: StageRun[ScoreConfig, ScorePlan], teacher: Teacher, writer: ScoreWriter) -> None:
        self._config = run.config
        self._vocabulary = run.plan.vocabulary
        self._path = run.directory.path
        self._teacher = teacher
        self._writer = writer

    async def run(self, texts: Sequence[Rollout]) -> None:
        """Score all texts and add them to the cache."""
        size = self._config.batch_rows
        batches = [texts[start : start + size] for start in range(0, len(texts), size)]
        shown, tensorboard = {"speed/rows_per_s": "rows/s", "cache/bytes": "bytes"}, self._config.run.tensorboard
        with closing(Recorder(self._path, range(len(batches)), tensorboard=tensorboard, shown=shown)) as recorder:
            try:
                for number, batch in enumerate(batches):
                    started = time.perf_counter()
                    await whole(self._add(batch, number))
                    seconds = time.perf_counter() - started
                    rows = float(min((number + 1) * size, len(texts)))
                    figures = {"cache/rows": rows, "cache/bytes": float(self._writer.bytes), "time/score_s": seconds}
                    recorder.step(number, figures | {"speed/rows_per_s": len(batch) / seconds})
            except asyncio.CancelledError:
                log.info("stopped; the rows scored so far are kept, and the same command scores the rest")
                raise

    async def _add(self, batch: Sequence[Rollout], number: int) -> None:
        scores = await self._teacher.score(batch)
        if share := floored_frac(scores):
            log.warning(
                "batch %d: %.2g of the tokens have no probability under the teacher (canaries.floored_frac)", number, share
            )
            check_floored(share, self._config.canaries.floored_frac)
        if number % self._config.canaries.every == 0:
            self._check(scores)
        await asyncio.to_thread(lambda: self._writer.add(batch, at_hand(scores)))

    def _check(self, scores: Sequence[TeacherScores]) -> None:
        """Refuse an untrained teacher. Hidden states give no log-probabilities without the head: training checks those."""
        found = [each.logprobs for each in scores if each.logprobs is not None]
        if found:
            logprobs = np.concatenate(found).astype(np.float64)
            measures = Measures(np.zeros(len(logprobs), dtype=np.int32), logprobs, teacher_logprob=logprobs)
            check_teacher(measures, self._vocabulary, self._config.canaries.uniform_margin)
