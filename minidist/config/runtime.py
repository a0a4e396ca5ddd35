"""`cluster`, `evaluation`, `canaries`: on what a run works, and how it is watched."""

from typing import Literal

from pydantic import Field

from minidist.config.base import Section


class ClusterConfig(Section):
    """Where the roles live."""

    roles: Literal["ray", "local"] = "ray"
    """Ray actors, or plain objects in this process (for debugging, and for small supervised runs)."""
    address: str | None = None
    """A running Ray cluster to join (`auto` finds it); None starts one on this machine and ends it with the run."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of this run; 0 runs everything on the CPU."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads of a role while it works; None: all cores, since at staleness 0 the roles take turns."""
    object_store_gib: float = Field(default=0.5, gt=0)
    """Shared memory through which rollouts, scores and weights travel, GiB."""


class EvaluationConfig(Section):
    """What is measured on held-out prompts while training."""

    every: int | None = Field(default=None, ge=1)
    """Steps between evaluations; distillation makes one more before the first step and after the last. None: none."""
    prompts: int = Field(default=128, ge=1)
    """How many of the validation rows."""
    patience: int | None = Field(default=None, ge=1)
    """sft: stop when the validation loss has not fallen for so many evaluations, and keep the best weights."""


class CanaryConfig(Section):
    """Checks that stop a run whose numbers look right but are not."""

    every: int = Field(default=20, ge=1)
    """Steps between checks of a batch; the first batch is always checked, and every weight sync is proved."""
    logprob_tolerance_nats: float | None = Field(default=None, gt=0)
    """Largest mean difference between the engine's and the learner's log-probabilities of the same tokens. None: 1e-3 in
    float32, 0.05 in 16 bits."""
    sync_tolerance_nats: float | None = Field(default=None, gt=0)
    """The same for the probe after a weight sync, largest difference. None: 5e-3 in float32, 0.5 in 16 bits."""
    uniform_margin: float = Field(default=0.02, ge=0, lt=1)
    """A teacher whose mean log-probability is within this share of -ln V is taken for an untrained one."""
    alarm_truncated: float = Field(default=0.5, gt=0, le=1)
    """Share of truncated answers that raises an alarm."""
    alarm_repetition: float = Field(default=0.5, gt=0, le=1)
    """Share of repeated 4-grams that raises an alarm."""
    alarm_length: float = Field(default=0.5, gt=0, le=1)
    """Mean length below this share of the first step's raises an alarm."""
