"""The judge of a table of scores: a model beside the teacher, or a server."""

from collections.abc import Callable
from functools import partial

from minidist.cluster.cluster import Cluster
from minidist.config import ScoreTableConfig
from minidist.config.judge import JudgeConfig
from minidist.pipelines.judging import Judge, judge_prompts
from minidist.pipelines.writers import EngineWriter, ServerWriter, TextWriter
from minidist.preflight.score_table import ScoreTablePlan
from minidist.roles.host import Roles
from minidist.stages.generate import model_of
from minidist.types import Sampling


async def judge_maker(
    config: ScoreTableConfig, plan: ScoreTablePlan, judge: JudgeConfig, cluster: Cluster
) -> Callable[[], Judge]:
    """Makes the judge of a worker; its engines start here, or its server is asked for its model."""
    fields = judge.rollout.model_dump(include={"max_new_tokens", "temperature", "top_p"})
    sampling = Sampling(**fields, seed=config.run.seed)
    if judge.server is not None:
        server = judge.server.model_copy(update={"model": await model_of(judge.server, sampling)})
        return partial(_made, judge, partial(ServerWriter, server, sampling))
    assert judge.model is not None and plan.judge is not None
    engines = (await Roles(cluster, config, plan.judge).engines(judge.model, judge.rollout)).members  # type: ignore[arg-type]
    longest = judge.max_prompt_tokens
    return partial(_made, judge, partial(EngineWriter, engines, plan.judge.renderer, sampling, max_prompt_tokens=longest))


def _made(judge: JudgeConfig, writer: Callable[[], TextWriter]) -> Judge:
    return Judge(writer(), judge_prompts(judge.template), judge.verdict)
