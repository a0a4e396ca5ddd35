"""`judge`: a model that reads each answer and gives a verdict."""

import re
from pathlib import Path

from pydantic import Field, field_validator, model_validator

from minidist.config.base import Section
from minidist.config.generate import ChatServerConfig
from minidist.config.models import ModelConfig
from minidist.config.rollout import GreedyRolloutConfig


class JudgeConfig(Section):
    """A model that reads each answer and gives a verdict. Which of two answers is better: `generate` with program
    branch_solve_merge."""

    model: ModelConfig | None = None
    """The model that judges, in the engine of `rollout`. None: `server` holds it."""
    server: ChatServerConfig | None = None
    """The server that judges, in text alone. None: `model` does."""
    template: Path | None = None
    """Jinja file of the judge's prompt, over the columns of the row, its `prompt`, and `response`, the answer that is judged.
    None: minidist/system2/templates/judge.jinja, which asks for a score from 1 to 10."""
    verdict: str = r"[Ss]core:\s*(\d+(?:\.\d+)?)"
    """Regular expression of the verdict in the judge's reply: the first group of its last match, or the whole match where it
    has no group. A reply without a match has no verdict."""
    max_prompt_tokens: int = Field(default=2048, ge=1)
    """Most tokens of the judge's prompt, where `model` judges; rows with longer ones fail."""
    rollout: GreedyRolloutConfig = GreedyRolloutConfig()
    """How the judge's replies are drawn, and the engine."""

    @field_validator("verdict")
    @classmethod
    def _compiles(cls, verdict: str) -> str:
        try:
            re.compile(verdict)
        except re.error as error:
            raise ValueError(f"judge.verdict {verdict!r} is no regular expression: {error}; correct it") from None
        return verdict

    @model_validator(mode="after")
    def _one_judge(self) -> "JudgeConfig":
        if (self.model is None) == (self.server is None):
            raise ValueError("set exactly one of judge.model (a model that this program runs) and judge.server")
        if self.rollout.samples_per_prompt > 1 or self.rollout.teacher_mix:
            raise ValueError("a judge gives one verdict; leave judge.rollout.samples_per_prompt and teacher_mix out")
        return self
