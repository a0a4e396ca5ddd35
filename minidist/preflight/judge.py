"""The plan of a judge: its prompt is read and its model's shape checked before anything starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from minidist.config.cluster import ClusterConfig
from minidist.config.judge import JudgeConfig
from minidist.config.score_table import ScoreTableConfig
from minidist.data.rendering import Renderer
from minidist.errors import DataError
from minidist.pipelines.judging import judge_prompts
from minidist.preflight import checks, lines
from minidist.preflight.facts import ModelFacts, read_model
from minidist.types import Vocabulary


@dataclass(frozen=True)
class JudgePlan:
    """What the engines of a judge are made from; see `GeneratePlan`."""

    renderer: Renderer
    vocabulary: Vocabulary
    max_tokens: int
    cache: None = None

    @property
    def longest(self) -> int:
        return self.max_tokens


def check_judge(judge: JudgeConfig, columns: Sequence[str], path: str) -> None:
    """Raise ConfigError or DataError unless the prompt asks for the response and the rows have all other columns of it."""
    [used] = judge_prompts(judge.template).columns.values()
    if missing := sorted(used - {*columns, "prompt", "response"}):
        named = f"{path} has no column {missing[0]!r}, which judge.template uses"
        raise DataError(f"{named}; beside prompt and response there are {', '.join(columns)}")


def plan_judge(config: ScoreTableConfig) -> tuple[JudgePlan | None, list[str]]:
    """The plan of the judge's model, or None where a server or nobody judges, and lines for people."""
    judge = config.judge
    if judge is None:
        return None, []
    asked = f"{judge.template or 'the packaged prompt'}, verdict {judge.verdict}"
    if judge.model is None:
        return None, [f"judge: a server, by {asked}"]
    model, tokens = read_model(judge.model, "judge.model"), judge.max_prompt_tokens + judge.rollout.max_new_tokens
    _check_model(judge, model, tokens, config.cluster)
    absent = [index for index in range(model.rows) if index not in model.meanings]
    plan = JudgePlan(Renderer(model.tokenizer, config.data, model.stops), Vocabulary(model.rows, absent), tokens)
    return plan, [f"{lines.model_line('judge', model.shape)}, by {asked}"]


def _check_model(judge: JudgeConfig, model: ModelFacts, tokens: int, cluster: ClusterConfig) -> None:
    checks.check_context(model.context, tokens, "judge.max_prompt_tokens + judge.rollout.max_new_tokens")
    if judge.rollout.engine == "vllm":
        checks.check_engine(model, cluster.gpus_of(cluster.rollout), "judge.rollout.engine=hf")
