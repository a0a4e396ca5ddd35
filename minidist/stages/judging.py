"""Scoring into a table with a judge: teacher and judge at work side by side."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from minidist.cluster.cluster import Cluster
from minidist.config import ScoreTableConfig
from minidist.config.judge import JudgeConfig
from minidist.data.exchanges import ExchangeReader
from minidist.pipelines.gathering import Gathering
from minidist.pipelines.job import Tally
from minidist.pipelines.judging import Judge, judge_prompts
from minidist.pipelines.scoring import Scored
from minidist.pipelines.shards import Shards
from minidist.pipelines.writers import EngineWriter, ServerWriter, TextWriter
from minidist.preflight.score_table import ScoreTablePlan
from minidist.protocols import Teacher
from minidist.roles.host import Roles
from minidist.run.tracking import log
from minidist.stages import roles_of
from minidist.stages.pipeline import through
from minidist.types import Rollout, Sampling, TeacherScores


async def scored_and_judged(config: ScoreTableConfig, plan: ScoreTablePlan, shards: Shards, judge: JudgeConfig) -> Tally:
    """Every missing row with its scores and verdicts."""
    async with Cluster(config.cluster, config.run.directory / "logs", roles_of(config)) as cluster:
        teachers = await Roles(cluster, config, plan).teachers(config.teacher)  # type: ignore[arg-type]
        async with _writer(config, plan, judge, cluster) as writer:
            reader = ExchangeReader(config.data.rows, plan.renderer.guard)
            asked = Judge(writer, judge_prompts(judge.template), judge.verdict)
            return await through(
                config, Scored(config, reader, plan.renderer, Gathering(teachers.members, _send), asked), shards, plan.rows
            )


async def _send(teacher: Teacher, rollouts: list[Rollout]) -> list[TeacherScores]:
    return await teacher.score(rollouts)


@asynccontextmanager
async def _writer(
    config: ScoreTableConfig, plan: ScoreTablePlan, judge: JudgeConfig, cluster: Cluster
) -> AsyncIterator[TextWriter]:
    """The judge's model, in engines or behind a server."""
    fields = judge.rollout.model_dump(include={"max_new_tokens", "temperature", "top_p"})
    sampling = Sampling(**fields, seed=config.run.seed)
    if judge.server is not None:
        server = ServerWriter(judge.server, sampling)
        try:
            log.info("judge: model %s at %s", await server.start(), server.connection.address)
            yield server
        finally:
            await server.connection.close()
        return
    assert judge.model is not None and plan.judge is not None
    engines = await Roles(cluster, config, plan.judge).engines(judge.model, judge.rollout)  # type: ignore[arg-type]
    yield EngineWriter(engines.members, plan.judge.renderer, sampling, max_prompt_tokens=judge.max_prompt_tokens)
