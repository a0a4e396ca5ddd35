"""`distill`: what it takes, and which of its sections contradict."""

from typing import Literal

from pydantic import Field, model_validator

from minidist.config.base import Section
from minidist.config.data import DistillDataConfig
from minidist.config.learning import LearnerConfig, PrefixConfig, RolloutConfig, StreamConfig
from minidist.config.models import StudentConfig, TeacherConfig
from minidist.config.objectives import MiniLLMConfig, ObjectiveConfig
from minidist.config.run import RunConfig
from minidist.config.runtime import CanaryConfig, ClusterConfig, EvaluationConfig, check_learner, check_teacher_role

_RICHNESS = {"sampled": 1, "top_k": 2, "hidden": 3}


class DistillConfig(Section):
    """On-policy distillation: the student writes, the teacher scores, the learner updates, the weights go back."""

    stage: Literal["distill"]
    run: RunConfig
    student: StudentConfig
    teacher: TeacherConfig
    data: DistillDataConfig
    objective: ObjectiveConfig
    prefix: PrefixConfig = PrefixConfig()
    streams: dict[str, StreamConfig] = Field(default={})
    """Given text beside the main stream, by name."""
    rollout: RolloutConfig = RolloutConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    cluster: ClusterConfig = ClusterConfig()
    canaries: CanaryConfig = CanaryConfig()

    @model_validator(mode="after")
    def _machine_fits(self) -> "DistillConfig":
        if self.rollout.engine == "hf" and self.cluster.rollout.tensor_parallel > 1:
            raise ValueError("cluster.rollout.tensor_parallel splits vLLM engines; set rollout.engine=vllm")
        check_teacher_role(self.teacher, self.cluster.teacher)
        check_learner(self.learner, self.cluster, self.student.dtype)
        return self

    @model_validator(mode="after")
    def _cache_serves(self) -> "DistillConfig":
        """A cache knows given text alone."""
        if self.teacher.backend != "cache":
            return self
        if self.prefix.dataset < 1:
            raise ValueError(
                "teacher.backend cache holds scores of given text, and prefix has text written while training; set "
                "prefix.student=0 and prefix.dataset=1, or teacher.backend=hf"
            )
        if self.evaluation.every:
            raise ValueError(
                "evaluation.every asks a live teacher, and teacher.backend is cache; leave it out, and measure final/ with "
                "minidist evaluate"
            )
        return self

    @model_validator(mode="after")
    def _sections_agree(self) -> "DistillConfig":
        if self.student.model is None:
            raise ValueError("student.architecture cannot be distilled untrained; run minidist sft first, set student.model")
        self._check_objectives()
        if self.prefix.student < 1 and self.objective.type == "k2":
            raise ValueError("objective.type k2 estimates on the student's own samples; set prefix.student=1")
        if self.objective.type == "k2" and (self.rollout.temperature != 1 or self.rollout.top_p != 1):
            raise ValueError("objective.type k2 estimates on samples at rollout.temperature=1 and rollout.top_p=1; set both")
        if self.objective.type in ("supervised", "kd") and self.prefix.student > 0:
            raise ValueError(
                f"objective.type {self.objective.type} would teach the student its own samples; set prefix.student=0"
            )
        if isinstance(self.objective, MiniLLMConfig):
            self._check_policy(self.objective)
        self._check_mixture()
        if self.prefix.dataset > 0 and self.data.prompts.answer is None and self.data.prompts.task is None:
            raise ValueError("prefix.dataset needs data.prompts.answer: the template of the gold answer")
        if self.evaluation.patience is not None:
            raise ValueError("evaluation.patience belongs to sft; distillation runs for run.steps")
        if self.evaluation.every and self.data.validation is None:
            raise ValueError("evaluation.every needs data.validation: held-out prompts")
        if self.rollout.temperature == 0 and self.rollout.samples_per_prompt > 1:
            raise ValueError("rollout.temperature 0 writes the same answer each time; set rollout.samples_per_prompt=1")
        if self.rollout.no_repeat_ngram_size is not None:
            raise ValueError(
                "rollout.no_repeat_ngram_size belongs to evaluate: with it, samples and their log-probabilities are not the "
                "student's own, on which the objective rests; leave it out"
            )
        return self

    @property
    def teacher_mix(self) -> float:
        """Share of the teacher in the distribution that the student's text is sampled from."""
        if self.rollout.teacher_mix is not None:
            return self.rollout.teacher_mix
        return 0.2 if self.objective.type == "minillm" else 0.0

    @property
    def updates(self) -> int:
        """Optimizer steps on one collection."""
        return self.objective.updates if isinstance(self.objective, MiniLLMConfig) else 1

    def _check_policy(self, objective: MiniLLMConfig) -> None:
        """A policy gradient knows the probability of every token it learns from."""
        if self.prefix.student < 1:
            raise ValueError("objective.type minillm learns from the student's or mixed samples; set prefix.student=1")
        if self.rollout.top_p != 1:
            raise ValueError(
                "objective.type minillm weighs tokens by their whole probability, which sampling with rollout.top_p below 1 "
                "does not follow; set rollout.top_p=1"
            )
        if self.rollout.temperature != objective.temperature:
            raise ValueError(
                f"rollout.temperature {self.rollout.temperature:g} and objective.temperature {objective.temperature:g} differ: "
                "minillm's ratios are those of the distribution that was sampled; set them equal"
            )
        rows = self.rollout.prompts_per_step * self.rollout.samples_per_prompt
        if objective.minibatches > rows:
            raise ValueError(
                f"objective.minibatches {objective.minibatches} is more than the {rows} rollouts of a step; lower it, or raise "
                "rollout.prompts_per_step"
            )

    def _check_mixture(self) -> None:
        """What is drawn is exactly the mixture, or the run is refused."""
        if not self.teacher_mix:
            return
        if self.rollout.temperature == 0:
            raise ValueError(
                "rollout.teacher_mix mixes distributions, and at rollout.temperature 0 there are none; set rollout.temperature "
                "above 0, or rollout.teacher_mix=0"
            )
        if self.objective.type == "k2":
            raise ValueError("objective.type k2 estimates on the student's own samples; set rollout.teacher_mix=0")
        if self.prefix.student == 0:
            raise ValueError("rollout.teacher_mix mixes into the student's share of the text, which prefix.student says is 0")
        if self.teacher.backend == "server":
            raise ValueError(
                "rollout.teacher_mix needs the teacher token by token; set teacher.backend=hf or vllm, or rollout.teacher_mix=0"
            )
        if self.rollout.engine == "vllm" and self.cluster.teacher.shards > 1:
            raise ValueError(
                "rollout.teacher_mix takes turns with a teacher in vLLM; cluster.teacher.shards splits one in transformers: "
                "set teacher.backend=vllm with cluster.teacher.tensor_parallel, or rollout.teacher_mix=0"
            )

    def _check_objectives(self) -> None:
        """Every objective has a name of its own and is served by the teacher's payload."""
        if "main" in self.streams:
            raise ValueError("streams.main: main is the name of the text the student is distilled on; give it another name")
        named = {"objective": self.objective} | {f"streams.{name}.objective": s.objective for name, s in self.streams.items()}
        for where, objective in named.items():
            if objective.needs is None:
                continue
            if _RICHNESS[self.teacher.payload] < _RICHNESS[objective.needs]:
                raise ValueError(
                    f"teacher.payload {self.teacher.payload} is poorer than {where}.type {objective.type} needs; "
                    f"set teacher.payload={objective.needs}"
                )
            temperature = getattr(objective, "temperature", 1.0)
            if self.teacher.payload != "hidden" and temperature != 1:
                raise ValueError(
                    f"{where}.temperature {temperature:g} needs the teacher's whole distribution; set teacher.payload=hidden"
                )
            if where != "objective" and objective.type in ("k2", "minillm"):
                raise ValueError(f"{where}.type {objective.type} learns on the student's own samples, not on given text")
