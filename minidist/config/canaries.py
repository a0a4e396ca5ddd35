"""`canaries`: checks that stop a run, and alarms of its health."""

from typing import Literal

from pydantic import Field, model_validator

from minidist.config.base import Section

AlarmName = Literal["length", "truncated", "repetition", "distinct", "clip", "weight_max", "weight_min", "disliked", "age"]


class CanaryConfig(Section):
    """Checks that stop a run whose numbers look right but are not, and alarms of its health."""

    every: int = Field(default=20, ge=1)
    """Steps between checks of a batch; the first batch is always checked, and every weight sync is proved."""
    logprob_tolerance_nats: float | None = Field(default=None, gt=0)
    """Largest mean difference between the engine's and the learner's log-probabilities of the same tokens. None: 1e-3 in
    float32, 0.05 in 16 bits."""
    sync_tolerance_nats: float | None = Field(default=None, gt=0)
    """The same for the probe after a weight sync, largest difference. None: 5e-3 in float32, 0.5 in 16 bits."""
    uniform_margin: float = Field(default=0.02, ge=0, lt=1)
    """A teacher whose mean log-probability is within this share of -ln V is taken for an untrained one."""
    alarm_length: float | None = Field(default=0.5, gt=0)
    """Mean length below this share of the first step's raises an alarm. None switches an alarm off, this one and each below."""
    alarm_truncated: float | None = Field(default=0.5, gt=0, le=1)
    """Share of truncated answers above which one is raised."""
    alarm_repetition: float | None = Field(default=0.5, gt=0, le=1)
    """Share of 4-grams that an answer wrote before, above which one is raised."""
    alarm_distinct: float | None = Field(default=0.5, gt=0)
    """Distinct 4-grams among all of a step's, below this share of the first step's: the answers become one another."""
    alarm_clip: float | None = Field(default=0.5, ge=0, le=1)
    """Share of a policy gradient's tokens whose ratio is clipped, and which teach nothing."""
    alarm_weight_max: float | None = Field(default=10.0, gt=0)
    """Largest importance weight of a token; those of teacher-mixed sampling are at most 1 / (1 - teacher_mix)."""
    alarm_weight_min: float | None = Field(default=1e-4, gt=0)
    """Smallest importance weight of a token: one that the student would hardly ever have written."""
    alarm_disliked: float | None = Field(default=0.5, ge=0, le=1)
    """Share of sampled tokens that the teacher finds less than a sixth as likely as the student does."""
    alarm_age: float | None = Field(default=16.0, ge=0)
    """Optimizer steps between the weights that wrote a token and those it is used on."""
    stop_on: list[AlarmName] = Field(default=[])
    """Alarms that end the run: after the step it leaves a checkpoint, as with Ctrl-C, and exits with code 1. Which limits there
    are and which of them stop a run may differ when it goes on."""

    def logprob_tolerance(self, *dtypes: str) -> float:
        """logprob_tolerance_nats, or its default for the coarsest of the precisions in use."""
        return _tolerance(self.logprob_tolerance_nats, dtypes, float32=1e-3, sixteen_bits=0.05)

    def sync_tolerance(self, *dtypes: str) -> float:
        """sync_tolerance_nats, or its default for the coarsest of the precisions in use."""
        return _tolerance(self.sync_tolerance_nats, dtypes, float32=5e-3, sixteen_bits=0.5)

    @model_validator(mode="after")
    def _can_ring(self) -> "CanaryConfig":
        for name in self.stop_on:
            if getattr(self, f"alarm_{name}") is None:
                raise ValueError(
                    f"canaries.stop_on names {name}, and canaries.alarm_{name} is null: set its limit, or take the name out"
                )
        return self


def _tolerance(configured: float | None, dtypes: tuple[str, ...], *, float32: float, sixteen_bits: float) -> float:
    if configured is not None:
        return configured
    return sixteen_bits if any(dtype in ("bfloat16", "float16") for dtype in dtypes) else float32
