"""`evaluate`: measure a list of models against one teacher."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt

from minidist.config import conflicts
from minidist.config.base import FREE, StageSection
from minidist.config.canaries import CanaryConfig
from minidist.config.cluster import ClusterConfig
from minidist.config.data import EvaluateDataConfig
from minidist.config.learner import MeasureConfig
from minidist.config.models import DType
from minidist.config.rollout import RolloutConfig
from minidist.config.run import RunConfig
from minidist.config.teacher import AnyTeacherConfig


class EvaluateConfig(StageSection):
    """Measures accuracy, ROUGE-L, divergences from the teacher, exposure bias, calibration, length, truncation, repetition and
    diversity of a list of models. Divergences and exposure bias need rollout.temperature=1 and rollout.top_p=1, and are left
    out elsewhere."""

    conflicts: ClassVar = conflicts.evaluate
    stage: Literal["evaluate"]
    run: RunConfig
    models: dict[str, str] = Field(min_length=1)
    """Name in the table to model directory or hub name, in the order of the table."""
    teacher: AnyTeacherConfig
    """The model to which the divergences are measured, by its backend."""
    dtype: DType = "float32"
    """Precision in which the models are evaluated."""
    data: EvaluateDataConfig
    seeds: list[NonNegativeInt] | None = Field(default=None, min_length=1)
    """Sampling seeds; every prompt is answered once with each, and figures are means and standard deviations over the seeds.
    [10, 20, 30, 40, 50] in the MiniLLM paper. None: run.seed only."""
    rollout: RolloutConfig = RolloutConfig()
    learner: MeasureConfig = MeasureConfig()
    cluster: Annotated[ClusterConfig, FREE] = ClusterConfig()
    canaries: CanaryConfig = CanaryConfig()
