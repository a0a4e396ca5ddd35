"""`generate`: a model answers the rows of a data set."""

from typing import ClassVar, Literal

from minidist.config import conflicts
from minidist.config.cluster import Role
from minidist.config.models import ModelConfig
from minidist.config.pipelines import PipelineSection
from minidist.config.rollout import RolloutConfig
from minidist.config.system2 import ProgramConfig
from minidist.config.teacher import ServerConfig


class ChatServerConfig(ServerConfig):
    """A server with the OpenAI protocol's /v1/chat/completions, of which nothing but text is needed."""

    api: Literal["chat"] = "chat"  # type: ignore[assignment]
    """What the server speaks."""


class GenerateConfig(PipelineSection):
    """Answers each row of a data set, in shards: a job that was stopped goes on after the last whole shard."""

    conflicts: ClassVar = conflicts.generate
    stage: Literal["generate"]
    model: ModelConfig | None = None
    """The model that answers, in the engine of `rollout`. None: `server` holds it."""
    server: ChatServerConfig | None = None
    """The server that answers, in text alone. None: `model` does."""
    program: ProgramConfig | None = None
    """The program of several calls that finds each answer, and the filter over its samples. None: plain samples."""
    rollout: RolloutConfig = RolloutConfig()
    """How answers are drawn: samples_per_prompt, max_new_tokens, temperature, top_p; and the engine."""

    @property
    def hosted(self) -> tuple[Role, ...]:
        """Engines, unless a server answers."""
        return ("rollout",) if self.model is not None else ()
