"""`canaries`: checks that stop a run, and alarms of its health."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, model_validator

from minidist.config.base import FREE, Section


@dataclass(frozen=True)
class Alarm:
    """Mark of the field that holds the limit of an alarm; the alarm is raised when a metric of a step exceeds the limit.

    Args:
        metric: name of the metric.
        text: the alarm in the log.
        below: the alarm is raised when the metric is below the limit, not above.
        relative: the limit is a share of the metric in the first step of the run.
    """

    metric: str
    text: str
    below: bool = False
    relative: bool = False


_LENGTH = Alarm("rollout/length_mean_tokens", "length collapse", below=True, relative=True)
_TRUNCATED = Alarm("rollout/truncated_frac", "truncated answers")
_REPETITION = Alarm("rollout/repetition_frac", "repetition")
_DISTINCT = Alarm("rollout/distinct_4", "loss of diversity", below=True, relative=True)
_CLIP = Alarm("policy/clip_frac", "clipped tokens")
_WEIGHT_MAX = Alarm("policy/weight_max", "large importance weight")
_WEIGHT_MIN = Alarm("policy/weight_min", "small importance weight", below=True)
_DISLIKED = Alarm("policy/disliked_frac", "tokens the teacher dislikes")
_FLOORED = Alarm("teacher/floored_frac", "tokens to which the teacher gives no probability")
_AGE = Alarm("age/updates_max", "old samples")


class CanaryConfig(Section):
    """Checks that stop a run with plausible but wrong numbers, and alarms of its health."""

    every: int = Field(default=20, ge=1)
    """Steps between checks of a batch. The first batch is always checked, and every weight transfer is verified."""
    logprob_tolerance_nats: float | None = Field(default=None, gt=0)
    """Largest mean difference between the log-probabilities of the same tokens from engine and learner. None: 1e-3 in float32,
    0.05 in 16 bits."""
    sync_tolerance_nats: float | None = Field(default=None, gt=0)
    """Largest difference of the probe's log-probabilities after a weight transfer. In 16 bits 5 tokens in 100 may differ by
    more, and all by a tenth of it on average. None: 5e-3 in float32, 0.5 in 16 bits."""
    uniform_margin: float = Field(default=0.02, ge=0, lt=1)
    """A teacher whose mean log-probability is within this share of -ln V is taken for an untrained model."""
    floored_frac: float = Field(default=0.05, ge=0, le=1)
    """Largest share of a step's scored tokens whose teacher log-probability lies below ln 2^-149 (-inf, -9999), and counts as
    that number; a larger share stops the run: such a teacher is truncated, or has another vocabulary."""
    alarm_length: Annotated[float | None, _LENGTH, FREE] = Field(default=0.5, gt=0)
    """Least mean length, as a share of the first step's. None switches the alarm off, here and in all fields below."""
    alarm_truncated: Annotated[float | None, _TRUNCATED, FREE] = Field(default=0.5, gt=0, le=1)
    """Largest share of truncated answers."""
    alarm_repetition: Annotated[float | None, _REPETITION, FREE] = Field(default=0.5, gt=0, le=1)
    """Largest share of 4-grams that repeat an earlier 4-gram of the same answer."""
    alarm_distinct: Annotated[float | None, _DISTINCT, FREE] = Field(default=0.5, gt=0)
    """Least share of distinct 4-grams among all 4-grams of a step, as a share of the first step's: below it, answers become
    alike."""
    alarm_clip: Annotated[float | None, _CLIP, FREE] = Field(default=0.5, ge=0, le=1)
    """Largest share of tokens whose ratio is clipped in a policy gradient, and which get no gradient."""
    alarm_weight_max: Annotated[float | None, _WEIGHT_MAX, FREE] = Field(default=10.0, gt=0)
    """Largest importance weight of a token; with teacher-mixed sampling weights are at most 1 / (1 - teacher_mix)."""
    alarm_weight_min: Annotated[float | None, _WEIGHT_MIN, FREE] = Field(default=1e-4, gt=0)
    """Least importance weight of a token: smaller weights belong to tokens that the student would hardly ever write."""
    alarm_disliked: Annotated[float | None, _DISLIKED, FREE] = Field(default=0.5, ge=0, le=1)
    """Largest share of sampled tokens with less than a sixth of the student's probability under the teacher."""
    alarm_floored: Annotated[float | None, _FLOORED, FREE] = Field(default=0.0, ge=0, le=1)
    """Largest share of tokens as in floored_frac. 0: the first such token raises the alarm."""
    alarm_age: Annotated[float | None, _AGE, FREE] = Field(default=16.0, ge=0)
    """Most optimizer steps between the weights that wrote a token and the weights that are trained on it."""
    stop_on: Annotated[list[str], FREE] = Field(default=[])
    """Alarms that stop the run, by the end of their field's name (length, truncated, ...): after the step the run writes a
    checkpoint, as with Ctrl-C, and exits with code 1."""

    def logprob_tolerance(self, *dtypes: str) -> float:
        """logprob_tolerance_nats, or its default for the coarsest of the precisions in use."""
        return self.logprob_tolerance_nats or (0.05 if _any_of_16_bits(dtypes) else 1e-3)

    def coarse(self, *dtypes: str) -> bool:
        """Whether any of the precisions in use rounds by what a single token's log-probability may differ."""
        return _any_of_16_bits(dtypes)

    def sync_tolerance(self, *dtypes: str) -> float:
        """sync_tolerance_nats, or its default for the coarsest of the precisions in use."""
        return self.sync_tolerance_nats or (0.5 if _any_of_16_bits(dtypes) else 5e-3)

    @model_validator(mode="after")
    def _stops_on_alarms_with_a_limit(self) -> "CanaryConfig":
        for name in self.stop_on:
            if name not in ALARMS:
                raise ValueError(f"canaries.stop_on names {name!r}; the alarms are {', '.join(ALARMS)}")
            if self.limit(name) is None:
                off = f"canaries.stop_on names {name}, and canaries.alarm_{name} is null"
                raise ValueError(f"{off}: set canaries.alarm_{name}, or take the name out")
        return self

    def limit(self, name: str) -> float | None:
        """The limit of an alarm."""
        return getattr(self, f"alarm_{name}")


ALARMS: dict[str, Alarm] = {
    name.removeprefix("alarm_"): mark
    for name, field in CanaryConfig.model_fields.items()
    for mark in field.metadata
    if isinstance(mark, Alarm)
}
"""All alarms, by the end of their field's name."""


def _any_of_16_bits(dtypes: tuple[str, ...]) -> bool:
    return not {"bfloat16", "float16"}.isdisjoint(dtypes)
