"""`sft`: supervised fine-tuning."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from minidist.config import conflicts
from minidist.config.base import FREE, StageSection
from minidist.config.canaries import CanaryConfig
from minidist.config.cluster import ClusterConfig, Role
from minidist.config.data import SftDataConfig
from minidist.config.evaluation import EvaluationConfig
from minidist.config.learner import LearnerConfig
from minidist.config.models import StudentConfig
from minidist.config.run import RunConfig


class SftConfig(StageSection):
    """Supervised fine-tuning from a checkpoint or from scratch, on answers or on plain text."""

    conflicts: ClassVar = conflicts.sft
    stage: Literal["sft"]
    run: RunConfig
    student: StudentConfig
    data: SftDataConfig
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: Annotated[ClusterConfig, FREE] = ClusterConfig()
    canaries: CanaryConfig = CanaryConfig()
    batch_rows: int = Field(default=32, ge=1)
    """Rows of one optimizer step."""

    @property
    def hosted(self) -> tuple[Role, ...]:
        """The learner alone."""
        return ("learner",)
