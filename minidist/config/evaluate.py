"""`evaluate`: measure a list of models."""

from typing import Literal

from pydantic import Field, NonNegativeInt, model_validator

from minidist.config.base import Section
from minidist.config.canaries import CanaryConfig
from minidist.config.cluster import ClusterConfig
from minidist.config.data import EvaluateDataConfig
from minidist.config.learner import MeasureConfig
from minidist.config.models import DType
from minidist.config.rollout import RolloutConfig
from minidist.config.run import RunConfig
from minidist.config.teacher import TeacherConfig


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
