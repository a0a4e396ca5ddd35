"""`distill`: what it takes, and which of its sections contradict."""

from typing import Any, Literal

from pydantic import Field, model_validator

from minidist.config.base import Section
from minidist.config.canaries import CanaryConfig
from minidist.config.cluster import ClusterConfig
from minidist.config.conflicts import check_learner, check_teacher_role
from minidist.config.data import DistillDataConfig
from minidist.config.divergences import Matching
from minidist.config.evaluation import EvaluationConfig
from minidist.config.learner import LearnerConfig
from minidist.config.methods import with_method
from minidist.config.models import StudentConfig
from minidist.config.objectives import K2Config, ObjectiveConfig, PolicyConfig, RankingConfig
from minidist.config.rollout import RolloutConfig
from minidist.config.run import RunConfig
from minidist.config.teacher import TeacherConfig
from minidist.config.text import PrefixConfig, StreamConfig
from minidist.types import MAIN

_RICHNESS = {"sampled": 1, "top_k": 2, "hidden": 3}


class DistillConfig(Section):
    """On-policy distillation: the student writes, the teacher scores, the learner updates, the weights go back."""

    stage: Literal["distill"]
    run: RunConfig
    method: str | None = None
    """A published method (gkd, distillm, minillm, ...; files under minidist/methods): defaults of objective, prefix, streams
    and rollout. What the configuration itself says goes before. None: nothing is preset."""
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

    @model_validator(mode="before")
    @classmethod
    def _method(cls, given: Any) -> Any:
        return with_method(given) if isinstance(given, dict) else given

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
        writes = [name for name, stream in self.streams.items() if stream.writer == "teacher"]
        if self.prefix.dataset < 1 or self.prefix.replay is not None or writes:
            raise ValueError(
                "teacher.backend cache holds scores of given text, and prefix or a stream has text written while "
                "training; set prefix.student=0 and prefix.dataset=1 without replay, and no stream of writer teacher; or "
                "teacher.backend=hf"
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
        if self.objective.type in ("supervised", "kd") and self.prefix.student_writes:
            raise ValueError(
                f"objective.type {self.objective.type} would teach the student its own samples; set prefix.student=0"
            )
        if isinstance(self.objective, PolicyConfig | K2Config | RankingConfig):
            self._check_samples(self.objective)
        self._check_mixture()
        self._check_kernel()
        if self.gold and self.data.prompts.answer is None and self.data.prompts.task is None:
            raise ValueError(
                "prefix.dataset needs data.prompts.answer: the template of the gold answer; so do prefix.replay and a stream "
                "of writer dataset"
            )
        self._check_replay()
        if self.teacher.placement == "learner" and not isinstance(self.objective, Matching):
            raise ValueError(
                f"objective.type {self.objective.type} is no divergence from the teacher's distribution, which a teacher that "
                "learns is there for; set objective.type=reverse_kl, or teacher.placement=actor"
            )
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
    def takes_turns(self) -> bool:
        """Whether student and teacher write in turns, each in its own engine."""
        return self.teacher_mix > 0 and self.rollout.engine == "vllm"

    @property
    def main_scored(self) -> bool:
        """Whether teacher actors score the main stream."""
        return self.objective.needs is not None and self.teacher.placement == "actor"

    @property
    def asks_engines(self) -> bool:
        """Whether the run asks engines of the student anything: for text, or to measure it."""
        return self.prefix.student_writes or self.evaluation.every is not None

    @property
    def asks_actors(self) -> bool:
        """Whether the run asks teacher actors anything: for scores, for text, or to measure the distance to them."""
        asked = self.main_scored or any(stream.objective.needs for stream in self.streams.values())
        writes = self.prefix.teacher > 0 or any(stream.writer == "teacher" for stream in self.streams.values())
        return asked or self.takes_turns or writes or self.evaluation.every is not None

    @property
    def gold(self) -> bool:
        """Whether any of the text may be gold answers to the prompts."""
        return self.prefix.gold or any(stream.writer == "dataset" for stream in self.streams.values())

    @property
    def updates(self) -> int:
        """Optimizer steps on one collection."""
        return self.objective.updates if isinstance(self.objective, PolicyConfig) else 1

    def _check_kernel(self) -> None:
        """A kernel that is asked for has something to do."""
        objectives = [self.objective, *(stream.objective for stream in self.streams.values())]
        served = ("forward_kl", "reverse_kl", "jsd", "kd")
        if self.learner.kernel == "liger" and not any(
            each.type in served or getattr(each, "single_step", False) for each in objectives
        ):
            raise ValueError(
                f"learner.kernel liger forms forward_kl, reverse_kl and jsd (also in kd and minillm), and objective.type is "
                f"{self.objective.type}; set learner.kernel=torch"
            )

    def _check_replay(self) -> None:
        replay, texts = self.prefix.replay, self.rollout.prompts_per_step * self.rollout.samples_per_prompt
        if replay is None:
            return
        if replay.capacity < texts:
            raise ValueError(
                f"prefix.replay.capacity {replay.capacity} is less than the {texts} texts of a step; raise it, or lower "
                "rollout.prompts_per_step"
            )
        graded = self.data.validation is not None and (self.data.validation.answer or self.data.validation.task)
        if replay.growth > 0 and not (self.evaluation.every and graded):
            raise ValueError(
                "prefix.replay follows the loss on validation answers: set evaluation.every, and data.validation with answer; "
                "or prefix.replay.growth=0 with a fixed prefix.student"
            )

    def _check_samples(self, objective: PolicyConfig | K2Config | RankingConfig) -> None:
        """What learns from sampled tokens alone knows the probability of every one of them."""
        name, temperature = f"objective.type {objective.type}", getattr(objective, "temperature", 1.0)
        if self.prefix.student < 1 or self.prefix.replay is not None:
            raise ValueError(f"{name} learns from the student's own samples of now; set prefix.student=1, without replay")
        if self.rollout.top_p != 1:
            raise ValueError(
                f"{name} weighs tokens by their whole probability, which sampling with rollout.top_p below 1 does not follow; "
                "set rollout.top_p=1"
            )
        if self.rollout.temperature != temperature:
            raise ValueError(
                f"rollout.temperature {self.rollout.temperature:g} and objective.temperature {temperature:g} differ: {name} "
                "weighs tokens by the distribution that was sampled; set them equal"
            )
        if isinstance(objective, RankingConfig) and self.rollout.samples_per_prompt < 2:
            raise ValueError("objective.type ranking compares answers to one prompt; set rollout.samples_per_prompt=4")
        rows, parts = self.rollout.prompts_per_step * self.rollout.samples_per_prompt, getattr(objective, "minibatches", 1)
        if parts > rows:
            raise ValueError(
                f"objective.minibatches {parts} is more than the {rows} rollouts of a step; lower it, or raise "
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
        if not self.prefix.student_writes:
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
        if MAIN in self.streams:
            raise ValueError("streams.main: main is the name of the text the student is distilled on; give it another name")
        named = {"objective": self.objective} | {f"streams.{name}.objective": s.objective for name, s in self.streams.items()}
        for where, objective in named.items():
            if objective.needs is None:
                continue
            if _RICHNESS[self.teacher.payload] < _RICHNESS[objective.needs]:
                support = getattr(objective, "support", None)
                what = f"{where}.support {support} of" if support is not None else f"{where}.type"
                raise ValueError(
                    f"teacher.payload {self.teacher.payload} is poorer than {what} {objective.type} needs; "
                    f"set teacher.payload={objective.needs}"
                )
            if self.teacher.payload != "hidden":
                self._check_listed(where, objective)
            if where != "objective" and isinstance(objective, K2Config | PolicyConfig | RankingConfig):
                raise ValueError(f"{where}.type {objective.type} learns on the student's own samples, not on given text")

    def _check_listed(self, where: str, objective: Any) -> None:
        """What a table of the teacher's likeliest tokens can serve."""
        if (temperature := getattr(objective, "temperature", 1.0)) != 1:
            raise ValueError(
                f"{where}.temperature {temperature:g} needs the teacher's whole distribution; set teacher.payload=hidden"
            )
        if getattr(objective, "support", None) == "teacher" and objective.top_k > self.teacher.top_k:
            raise ValueError(
                f"{where}.top_k is {objective.top_k}, and the teacher lists {self.teacher.top_k} classes; lower it, or set "
                f"teacher.top_k={objective.top_k}"
            )
