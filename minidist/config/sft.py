"""`sft`: supervised fine-tuning."""

from typing import Literal

from pydantic import Field, model_validator

from minidist.config.base import Section
from minidist.config.canaries import CanaryConfig
from minidist.config.cluster import ClusterConfig
from minidist.config.conflicts import check_learner
from minidist.config.data import SftDataConfig
from minidist.config.evaluation import EvaluationConfig
from minidist.config.learner import LearnerConfig
from minidist.config.models import StudentConfig
from minidist.config.run import RunConfig


class SftConfig(Section):
    """Supervised fine-tuning: from a checkpoint or from scratch, on answers or on plain text."""

    stage: Literal["sft"]
    run: RunConfig
    student: StudentConfig
    data: SftDataConfig
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    canaries: CanaryConfig = CanaryConfig()
    batch_rows: int = Field(default=32, ge=1)
    """Rows of one optimizer step."""

    @model_validator(mode="after")
    def _sections_agree(self) -> "SftConfig":
        for name, source in (("train", self.data.train), ("validation", self.data.validation)):
            if source is not None and source.task is None and source.answer is None and source.text is None:
                raise ValueError(f"data.{name} needs answer (train on answers) or text (train on plain text)")
        if (self.evaluation.every or self.evaluation.patience) and self.data.validation is None:
            raise ValueError("evaluation.every and evaluation.patience need data.validation: rows for the validation loss")
        if self.evaluation.patience and self.evaluation.every is None:
            raise ValueError("evaluation.patience needs evaluation.every: how many steps apart the evaluations are")
        if self.learner.kernel != "torch":
            raise ValueError(
                f"learner.kernel {self.learner.kernel} forms divergences, and sft has none; set learner.kernel=torch"
            )
        check_learner(self.learner, self.cluster, self.student.dtype)
        return self
