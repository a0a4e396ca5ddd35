"""`distill`: on-policy distillation."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from minidist.config import conflicts
from minidist.config.base import FREE, StageSection
from minidist.config.canaries import CanaryConfig
from minidist.config.cluster import ClusterConfig, Role, WeightTransfer
from minidist.config.data import DistillDataConfig
from minidist.config.evaluation import EvaluationConfig
from minidist.config.learner import LearnerConfig
from minidist.config.loop import LoopConfig
from minidist.config.methods import with_method
from minidist.config.models import StudentConfig
from minidist.config.objective import ObjectiveSection
from minidist.config.objectives import ObjectiveConfig
from minidist.config.rollout import RolloutConfig
from minidist.config.routing import RoutingConfig
from minidist.config.run import RunConfig
from minidist.config.teacher import AnyTeacherConfig, TeacherConfig, with_teacher
from minidist.config.text import PrefixConfig, StreamConfig


class DistillConfig(StageSection):
    """On-policy distillation: the student writes, the teacher scores, the learner updates, the weights go back."""

    conflicts: ClassVar = conflicts.distill
    stage: Literal["distill"]
    run: RunConfig
    method: str | None = None
    """A published method (gkd, distillm, minillm, ...; files under minidist/methods): defaults of objective, prefix, streams
    and rollout. Settings of this file override them. None: no method; each section has its own defaults."""
    student: StudentConfig
    teacher: AnyTeacherConfig
    """The model that scores tokens, by its backend. Of several `teachers` it is the first, and is left out."""
    teachers: dict[str, AnyTeacherConfig] = Field(default={})
    """Several teachers by name, each a section like `teacher`, in place of `teacher`; `routing` divides the rows among them."""
    routing: RoutingConfig | None = None
    """Which of the teachers scores a row. None: there is one teacher."""
    data: DistillDataConfig
    objective: ObjectiveConfig
    """The loss of the main stream, by its type."""
    prefix: PrefixConfig = PrefixConfig()
    streams: dict[str, StreamConfig] = Field(default={})
    """Further text of each optimizer step beside the main stream, by name."""
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    loop: LoopConfig = LoopConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: Annotated[ClusterConfig, FREE] = ClusterConfig()
    canaries: CanaryConfig = CanaryConfig()

    @model_validator(mode="before")
    @classmethod
    def _method(cls, tree: Any) -> Any:
        return with_teacher(with_method(tree)) if isinstance(tree, dict) else tree

    @property
    def named_teachers(self) -> dict[str, TeacherConfig]:
        """All teachers, by the keys of their sections."""
        return {f"teachers.{name}": each for name, each in self.teachers.items()} or {"teacher": self.teacher}

    def with_teacher_alone(self, key: str) -> "DistillConfig":
        """The same distillation with one of the teachers alone, by its key: what is to hold of each teacher is asked of it."""
        if not self.teachers:
            return self
        return self.model_copy(update={"teacher": self.named_teachers[key], "teachers": {}, "routing": None})

    @property
    def mixes_teachers(self) -> bool:
        """Whether the teacher of every row is a mixture of several."""
        return self.routing is not None and self.routing.weights is not None

    @property
    def shapes_only(self) -> tuple[str, ...]:
        """Those of teachers whose weights are elsewhere, and whose heads the learner does not apply."""
        found = self.named_teachers.items()
        return tuple(f"{key}.model" for key, each in found if not (each.hosted or each.payload == "hidden"))

    @property
    def teacher_mix(self) -> float:
        """Share of the teacher in the distribution from which the student's text is sampled."""
        return self.objective.teacher_mix if self.rollout.teacher_mix is None else self.rollout.teacher_mix

    @property
    def dtypes(self) -> dict[str, str]:
        """The precisions in which roles compute, by their keys."""
        found = {"student.dtype": self.student.dtype}
        found |= {f"{key}.dtype": teacher.dtype for key, teacher in self.named_teachers.items()}
        set_apart = {"learner.compute_dtype": self.learner.compute_dtype, "rollout.dtype": self.rollout.dtype}
        return found | {key: dtype for key, dtype in set_apart.items() if dtype is not None}

    @property
    def takes_turns(self) -> bool:
        """Whether student and teacher, each in its own vLLM engine, write in turns."""
        return self.teacher_mix > 0 and self.rollout.engine == "vllm"

    @property
    def main_scored(self) -> bool:
        """Whether teacher actors score the main stream."""
        return self.objective.needs is not None and not self.teacher.learns

    @property
    def asks_engines(self) -> bool:
        """Whether the run needs rollout engines: for text, or for evaluations."""
        return self.prefix.student_writes or self.evaluation.every is not None

    @property
    def asks_actors(self) -> bool:
        """Whether the run needs the teacher's actors: for scores, for text, or for evaluations."""
        asked = self.main_scored or any(stream.objective.needs for stream in self.streams.values())
        return asked or self.takes_turns or self.teacher_writes

    @property
    def teacher_writes(self) -> bool:
        """Whether the teacher writes texts of its own, to learn from or in evaluations."""
        writes = self.prefix.teacher > 0 or any(stream.writer == "teacher" for stream in self.streams.values())
        return writes or self.evaluation.every is not None

    @property
    def gold(self) -> bool:
        """Whether any of the text may be gold answers to the prompts."""
        return self.prefix.gold or any(stream.writer == "dataset" for stream in self.streams.values())

    @property
    def hosted(self) -> tuple[Role, ...]:
        """Teacher scores read from a cache need no actor."""
        teacher = self.asks_actors and self.teacher.live
        asked: dict[Role, bool] = {"rollout": self.asks_engines, "teacher": teacher, "learner": True}
        return tuple(role for role, wanted in asked.items() if wanted)

    @property
    def teacher_count(self) -> int:
        return max(1, len(self.teachers))

    @property
    def roles_at_once(self) -> dict[str, int]:
        """Ahead of the learner, engines write while one of the others works, or, with both kinds of overlap, while both do; in
        step with it they work beside teachers alone."""
        if self.loop.max_staleness:
            return dict.fromkeys(get_args(Role), 2 + bool(self.loop.stream))
        return dict.fromkeys(("rollout", "teacher"), 2) if self.loop.stream else {}

    @property
    def channel(self) -> WeightTransfer | None:
        """The channel for weights that engines are started with; None where all go through the object store."""
        cluster = self.cluster
        asked = cluster.weight_transfer or (cluster.direct if cluster.roles == "ray" and not cluster.residency else None)
        return None if self.rollout.engine != "vllm" or asked == "object_store" else asked

    @property
    def weight_transfer(self) -> WeightTransfer:
        """How new weights reach the engines."""
        if self.cluster.weight_transfer is not None:
            return self.cluster.weight_transfer
        unfit = self.student.lora is not None or (self.channel == "ipc" and self.learner.partitions_weights)
        return "object_store" if unfit else self.channel or "object_store"

    @property
    def ratio_max(self) -> float | None:
        """Bound on the importance ratios of the main stream; None where the current student writes it."""
        return self.loop.ratio_max if self.loop.max_staleness else None

    @property
    def answers_per_step(self) -> int:
        """Texts of the main stream in one step."""
        return self.rollout.prompts_per_step * self.rollout.samples_per_prompt

    @property
    def objectives(self) -> Mapping[str, ObjectiveSection]:
        """All objectives, by their dotted keys."""
        return {"objective": self.objective} | {f"streams.{name}.objective": s.objective for name, s in self.streams.items()}
