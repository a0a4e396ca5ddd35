"""`lesson`: who learns from whom in a step of `minidist teach`; one class a lesson, which declares what it needs."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from minidist.config.base import Section
from minidist.config.learner import OptimizerConfig
from minidist.config.models import StudentConfig
from minidist.config.terms import CrossEntropyConfig, LossTerms


class LessonSection(Section):
    """A lesson, and the declarations that each kind overrides."""

    needs_teacher: ClassVar[bool] = True
    """Whether the lesson has a teacher."""
    teacher_learns: ClassVar[bool] = False
    """Whether the teacher is trained beside the student."""
    needs_feedback: ClassVar[bool] = False
    """Whether each step also needs rows that nobody is trained on, from data.feedback."""
    measures_influence: ClassVar[bool] = False
    """Whether the influence of single rows can be traced."""

    @property
    def teacher_terms(self) -> LossTerms:
        """The terms of the teacher's loss; empty where it does not learn."""
        return {}


class AloneConfig(LessonSection):
    """The student learns from labels alone: the baseline, the fine-tuning of a teacher, and pre-training."""

    needs_teacher: ClassVar[bool] = False
    type: Literal["alone"] = "alone"
    """The lesson."""


class FrozenConfig(LessonSection):
    """The student learns from a teacher that does not change."""

    type: Literal["frozen"] = "frozen"
    """The lesson."""


class SequenceConfig(LessonSection):
    """The student learns from checkpoints of one teacher, one after another, each for an equal part of the run; the last is
    teacher.model (route-constrained optimization: Jin et al., arXiv:1904.09149)."""

    type: Literal["sequence"] = "sequence"
    """The lesson."""
    before: list[str] = Field(min_length=1)
    """Directories or hub names of the checkpoints that come before teacher.model, the least trained first."""


class AssistantConfig(StudentConfig):
    """A model between teacher and student in size, from scratch or from a checkpoint."""

    steps: int = Field(ge=1)
    """Steps of run.steps in which it learns."""


class AssistantsConfig(LessonSection):
    """Each assistant learns from the model before it, the first from the teacher; the student learns from the last, in the
    steps that are left (TAKD: Mirzadeh et al., arXiv:1902.03393)."""

    type: Literal["assistants"] = "assistants"
    """The lesson."""
    assistants: list[AssistantConfig] = Field(min_length=1)
    """The assistants, the largest first."""


class MutualConfig(LessonSection):
    """Fields of a lesson in which the teacher is trained beside the student."""

    teacher_learns: ClassVar[bool] = True
    loss: LossTerms = Field(default={"cross_entropy": CrossEntropyConfig()})
    """The teacher's loss: terms by name, in which the student is the model that is imitated."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=3e-5)
    """The teacher's optimizer."""

    @property
    def teacher_terms(self) -> LossTerms:
        return self.loss


class OnlineConfig(MutualConfig):
    """Teacher and student learn in turns from the same rows, each from labels and from the other (Anil et al.,
    arXiv:1804.03235; Zhang et al., arXiv:1706.00384; Shi et al., arXiv:2009.12683)."""

    type: Literal["online"] = "online"
    """The lesson."""
    order: Literal["teacher_first", "student_first", "together"] = "teacher_first"
    """Who takes the first optimizer step. The second one learns from the first one's new weights; together: both learn from the
    other's old weights."""


class MetaConfig(MutualConfig):
    """The teacher learns to teach: it follows the gradient of the student's loss on held-out rows after a trial update, through
    that update, in second order (MetaDistil: Zhou et al., arXiv:2106.04570)."""

    needs_feedback: ClassVar[bool] = True
    type: Literal["meta"] = "meta"
    """The lesson."""
    inner_rate: float = Field(default=5e-5, gt=0)
    """Learning rate of the student's trial update, one step of plain SGD."""
    loss: LossTerms = Field(default={})
    """Terms of the teacher's loss beside the held-out loss; the published method has none."""
    optimizer: OptimizerConfig = OptimizerConfig(lr=1e-5)
    """The teacher's optimizer."""


class LGTMConfig(MutualConfig):
    """The teacher learns to teach by the influence of each row on the student's held-out loss (LGTM: Ren et al.,
    arXiv:2305.09651)."""

    needs_feedback: ClassVar[bool] = True
    measures_influence: ClassVar[bool] = True
    type: Literal["lgtm"] = "lgtm"
    """The lesson."""
    influence: Literal["hvp", "explicit", "reweight"] = "hvp"
    """hvp: the teacher's gradient minus coefficient times the mixed Hessian-vector product h, which is what the published code
    does, and lowers the student's held-out loss after its next step. explicit: the teacher also minimises the mean of each
    row's influence times its imitation loss, the article's formula. reweight: online distillation in which the student's rows
    weigh as much as their influence, at least 0, 1 on average."""
    coefficient: float = Field(default=1.0, ge=0)
    """Weight of the influence term beside the teacher's loss. 0: online distillation. hvp: where `relative` is set, a share of
    the gradient's norm; else a factor of h."""
    relative: bool = True
    """hvp: scale h to coefficient times the norm of the gradient of the teacher's loss. False: coefficient times h itself; the
    published code takes the teacher's learning rate, by which h all but vanishes."""
    radius: float = Field(default=0.01, ge=1e-5, le=1)
    """Length by which the student's weights move for a finite difference: less is lost in rounding, more is no difference."""
    through: Literal["teacher_loss", "loss"] = "teacher_loss"
    """hvp: the loss whose mixed derivative h is. teacher_loss: the teacher's, as in the published code. loss: the student's."""


LessonConfig = Annotated[
    AloneConfig | FrozenConfig | SequenceConfig | AssistantsConfig | OnlineConfig | MetaConfig | LGTMConfig,
    Field(discriminator="type"),
]
"""A lesson, by its type."""
