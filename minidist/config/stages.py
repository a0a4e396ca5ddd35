"""One configuration class per stage: what `sft` and `evaluate` take, and the stages by name."""

from typing import Literal

from pydantic import Field, NonNegativeInt, model_validator

from minidist.config.base import Section
from minidist.config.compare import CompareConfig
from minidist.config.data import EvaluateDataConfig, SftDataConfig
from minidist.config.distill import DistillConfig
from minidist.config.learning import LearnerConfig, MeasureConfig, RolloutConfig
from minidist.config.models import DType, StudentConfig, TeacherConfig
from minidist.config.run import RunConfig
from minidist.config.runtime import CanaryConfig, ClusterConfig, EvaluationConfig, check_learner
from minidist.config.score import ScoreConfig
from minidist.config.toy import ToyConfig


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


class EvaluateConfig(Section):
    """Accuracy, ROUGE-L, divergences to the teacher, exposure bias, calibration, length, truncation, repetition and diversity
    of a list of models."""

    stage: Literal["evaluate"]
    run: RunConfig
    models: dict[str, str] = Field(min_length=1)
    """Name in the table to model directory, in the order of the table."""
    teacher: TeacherConfig
    dtype: DType = "float32"
    """Precision the models are evaluated in."""
    data: EvaluateDataConfig
    seeds: list[NonNegativeInt] | None = Field(default=None, min_length=1)
    """Every prompt is answered once with each of these sampling seeds, and figures are means over them, their standard
    deviation beside; [10, 20, 30, 40, 50] in the MiniLLM paper. None: run.seed alone."""
    rollout: RolloutConfig = RolloutConfig()
    learner: MeasureConfig = MeasureConfig()
    cluster: ClusterConfig = ClusterConfig()
    canaries: CanaryConfig = CanaryConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> "EvaluateConfig":
        if self.teacher.payload != "hidden":
            raise ValueError("evaluate measures the exact divergence: set teacher.payload=hidden")
        if self.teacher.placement != "actor":
            raise ValueError("evaluate trains nobody: set teacher.placement=actor, and leave teacher.prompt out")
        if self.teacher.backend == "cache":
            raise ValueError("evaluate has a live teacher score what the models write; set teacher.backend=hf")
        if self.rollout.temperature != 1 or self.rollout.top_p != 1:
            raise ValueError("evaluate measures divergences on samples at rollout.temperature=1 and rollout.top_p=1")
        if len(set(self.seeds or [])) < len(self.seeds or []):
            raise ValueError(f"seeds are {self.seeds}: the same seed twice writes the same answers; give different ones")
        return self


Config = SftConfig | DistillConfig | EvaluateConfig | ScoreConfig
"""What one run takes."""
Command = Config | CompareConfig | ToyConfig
"""What a configuration file holds."""
VERBS = {"toy": "compare"}
"""The verb of a stage that has none of its own name."""
CONFIGS: dict[str, type[Command]] = {
    "sft": SftConfig,
    "distill": DistillConfig,
    "evaluate": EvaluateConfig,
    "score": ScoreConfig,
    "compare": CompareConfig,
    "toy": ToyConfig,
}
