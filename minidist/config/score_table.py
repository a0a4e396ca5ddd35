"""`score` with output: table: a teacher's log-probabilities of the answers of a data set, as columns."""

from typing import ClassVar, Literal

from pydantic import Field

from minidist.config import conflicts
from minidist.config.cluster import Role
from minidist.config.grade import GradeConfig
from minidist.config.judge import JudgeConfig
from minidist.config.pipelines import PipelineSection
from minidist.config.teacher import AnyTeacherConfig


class ScoreTableConfig(PipelineSection):
    """Writes each row with its answers' log-probabilities under a teacher, perplexity, and estimates of the divergence."""

    conflicts: ClassVar = conflicts.score_table
    stage: Literal["score_table"]
    output: Literal["table"] = "table"
    """Form of the output: rows with columns of scores. cache: see score."""
    teacher: AnyTeacherConfig
    """The teacher, with payload sampled. Its tokenizer makes the ids, unless the rows hold them."""
    answers: str | None = None
    """Column with a list of answers of each row, as `minidist generate` writes it. None: one answer, by data.rows.answer."""
    ids: str | None = None
    """Column with the token ids of each of the answers, which are then scored as they are. None: the texts become tokens."""
    logprobs: str | None = None
    """Column with the log-probabilities under which the ids were sampled, for estimates of KL(sampler || teacher). None: no
    estimate."""
    grade: GradeConfig | None = None
    """Whether each answer is right. None: it is not asked."""
    judge: JudgeConfig | None = None
    """Verdict of a model on each answer, in the columns verdict and verdict_reply. None: nobody judges."""
    max_tokens: int = Field(default=2048, ge=2)
    """Longest prompt with its answer, tokens; longer rows fail."""

    @property
    def hosted(self) -> tuple[Role, ...]:
        """A model that judges is a rollout engine."""
        judges = self.judge is not None and self.judge.model is not None
        return ("teacher", "rollout") if judges else ("teacher",)
