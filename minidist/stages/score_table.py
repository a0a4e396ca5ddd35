"""Scoring into a table: the answers of a data set under a teacher, shard after shard."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Any

from minidist.cluster.cluster import Cluster
from minidist.config import ScoreTableConfig
from minidist.data.exchanges import ExchangeReader
from minidist.pipelines.card import write_card
from minidist.pipelines.gathering import Gathering
from minidist.pipelines.judging import Judge, verdict_summary
from minidist.pipelines.scoring import Scored
from minidist.pipelines.shards import Shards
from minidist.pipelines.steps import Step
from minidist.pipelines.tally import Tally
from minidist.preflight.score_table import ScoreTablePlan, plan_score_table
from minidist.protocols import Teacher
from minidist.roles.host import Roles
from minidist.run.directory import RunDirectory
from minidist.run.tracking import log
from minidist.stages import roles_of
from minidist.stages.judging import judge_maker
from minidist.stages.pipeline import counted, left_over, opened, through
from minidist.types import Rollout, TeacherScores


async def score_table(config: ScoreTableConfig) -> dict[str, Any]:
    """Score the rows that no shard holds yet; the summary is printed and written."""
    plan = plan_score_table(config)
    directory = RunDirectory(config)
    shards = opened(directory, config, plan.lines)
    started = time.perf_counter()
    left = left_over(shards, plan.rows)
    summary = (await _scored(config, plan, shards) if left else counted(shards)).summary()
    if left:
        summary["seconds_scoring"] = round(time.perf_counter() - started, 1)
    if config.judge is not None:
        results = chain.from_iterable(map(shards.read, shards.numbers()))
        summary |= await asyncio.to_thread(verdict_summary, results)
        log.info("verdicts: %s, %d unread", summary["verdicts"], summary["verdicts_unread"])
    await asyncio.to_thread(write_card, shards)
    failed = f", {summary['rows_failed']:,} failed" if summary["rows_failed"] else ""
    log.info("%s", f"{summary['rows']:,} rows{failed}, {summary['tokens']:,} tokens: {shards.folder}")
    return directory.finish(summary)


async def _scored(config: ScoreTableConfig, plan: ScoreTablePlan, shards: Shards) -> Tally:
    async with Cluster(config.cluster, config.run.directory / "logs", roles_of(config)) as cluster:
        teachers = (await Roles(cluster, config, plan).teachers(config.teacher)).members  # type: ignore[arg-type]
        judge = None if config.judge is None else await judge_maker(config, plan, config.judge, cluster)
        return await through(config, partial(_step, config, plan, teachers, judge), shards, plan.rows, len(teachers))


def _step(
    config: ScoreTableConfig, plan: ScoreTablePlan, teachers: Sequence[Teacher], judge: Callable[[], Judge] | None
) -> Step:
    reader = ExchangeReader(config.data.rows, plan.renderer.guard)
    return Scored(config, reader, plan.renderer, Gathering(teachers, _send), None if judge is None else judge())


async def _send(teacher: Teacher, rollouts: list[Rollout]) -> list[TeacherScores]:
    return await teacher.score(rollouts)
