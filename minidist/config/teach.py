"""`teach`: distillation of classifiers, regressors and decoders from a teacher that may learn beside the student."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from minidist.config import conflicts
from minidist.config.base import FREE, Section, StageSection
from minidist.config.cluster import ClusterConfig, Role
from minidist.config.data import SourceConfig
from minidist.config.learner import OptimizerConfig
from minidist.config.lessons import AloneConfig, LessonConfig
from minidist.config.methods import TEACH, with_method
from minidist.config.models import LoraConfig, ModelConfig, StudentConfig
from minidist.config.run import RunConfig
from minidist.config.task import TaskConfig
from minidist.config.terms import CrossEntropyConfig, LossTerms


class TaskTeacherConfig(ModelConfig):
    """The teacher: a model with a head for the task, or one that gets an untrained head."""

    lora: LoraConfig | None = None
    """Low-rank adapters, where the lesson trains the teacher: its own weights then stay as they are (PESF-KD: Rao et al.,
    arXiv:2205.15308). None: all weights are trained, if any."""


class FeedbackConfig(Section):
    """Rows held out of data.train, never out of what is reported on, on which teaching is judged."""

    share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the rows of data.train that is held out, of each class alike."""
    seed: int = Field(default=0, ge=0)
    """Seed of the choice."""


class TeachDataConfig(Section):
    """Rows of the task. The columns are those of `task`."""

    train: SourceConfig
    """Rows to train on."""
    validation: SourceConfig | None = None
    """Rows on which a run is watched and its best weights chosen. None: no evaluations."""
    test: SourceConfig | None = None
    """Rows on which the final models are measured once, at the end. None: no such measurement."""
    feedback: FeedbackConfig | None = None
    """Rows held out of data.train for lessons that judge teaching. None: all rows are trained on."""
    max_tokens: int = Field(default=128, ge=2)
    """Longest row, tokens; the longer text of a pair is cut first."""


class TeachLearnerConfig(Section):
    """How student and teacher learn."""

    batch_rows: int = Field(default=32, ge=1)
    """Rows of one step, over all ranks."""
    feedback_rows: int = Field(default=32, ge=1)
    """Held-out rows of one step, over all ranks."""
    micro_rows: Annotated[int, FREE] = Field(default=32, ge=1)
    """Most rows of one forward pass; bounds activation memory."""
    dropout: bool = False
    """Train with the models' dropout. False: predictions in training are those of evaluation."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=5e-5)
    """The student's optimizer."""


class TeachEvaluationConfig(Section):
    """Measurements on data.validation during training."""

    every: int | None = Field(default=None, ge=1)
    """Steps between evaluations; there is one before the first step and one after the last, too. None: at the end alone."""
    rows: int | None = Field(default=None, ge=1)
    """Number of validation rows, from the first. None: all."""
    layers: int | None = Field(default=None, ge=8)
    """Validation rows, from the first, on which student and teacher are compared layer by layer at the end: similarity of
    hidden states (CKA, and cosine where widths agree) and of attention, and the score of a linear probe, in layers.json and
    layers.png. None: none."""
    keep: Literal["last", "best"] = "last"
    """Which weights are final: those after the last step, or those with the best first metric of the task on data.validation.
    With best, figures on data.validation are optimistic; report those on data.test."""


class TraceConfig(Section):
    """Influence of single rows, followed through training, on the loss on the same learner.feedback_rows held-out rows."""

    every: int = Field(default=50, ge=1)
    """Steps between two measurements."""
    sample: int = Field(default=64, ge=0)
    """Rows of data.train, drawn once from run.seed, whose mean and single influences are recorded."""
    rows: list[int] = Field(default=[])
    """Further rows of data.train, by their number in the file from 0, each drawn as a line of its own."""


class TeachConfig(StageSection):
    """A student learns a task from labels and a teacher, which may learn beside it."""

    conflicts: ClassVar = conflicts.teach
    stage: Literal["teach"]
    run: RunConfig
    method: str | None = None
    """A published method (kd, pkd, lgtm, meta, sinkd, ...; files under minidist/teaching/methods): defaults of loss and lesson.
    Settings of this file override them. None: no method; each section has its own defaults."""
    task: TaskConfig
    """What is predicted, from which columns."""
    student: StudentConfig
    teacher: TaskTeacherConfig | None = None
    """The model that is imitated. None: the lesson needs none."""
    data: TeachDataConfig
    loss: LossTerms = Field(default={"cross_entropy": CrossEntropyConfig()}, min_length=1)
    """The student's loss: terms by name."""
    lesson: LessonConfig = AloneConfig()
    """Who learns from whom."""
    learner: TeachLearnerConfig = TeachLearnerConfig()
    evaluation: TeachEvaluationConfig = TeachEvaluationConfig()
    trace: TraceConfig | None = None
    """Lessons that measure influence: follow it. None: only the mean over each batch is recorded."""
    cluster: Annotated[ClusterConfig, FREE] = ClusterConfig()

    @model_validator(mode="before")
    @classmethod
    def _method(cls, tree: Any) -> Any:
        return with_method(tree, TEACH) if isinstance(tree, dict) else tree

    @property
    def hosted(self) -> tuple[Role, ...]:
        """The learner alone, which holds both models."""
        return ("learner",)
