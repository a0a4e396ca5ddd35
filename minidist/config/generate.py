"""`generate`: a model answers the rows of a data set."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from minidist.config import conflicts
from minidist.config.base import FREE, Section, StageSection
from minidist.config.canaries import CanaryConfig
from minidist.config.cluster import ClusterConfig
from minidist.config.data import RenderConfig, SourceConfig
from minidist.config.models import ModelConfig
from minidist.config.rollout import RolloutConfig
from minidist.config.run import RunConfig
from minidist.config.system2 import ProgramConfig
from minidist.config.teacher import ServerConfig


class ChatServerConfig(ServerConfig):
    """A server with the OpenAI protocol's /v1/chat/completions, of which nothing but text is needed."""

    api: Literal["chat"] = "chat"  # type: ignore[assignment]
    """What the server speaks."""


class GenerateDataConfig(RenderConfig):
    """The rows to answer."""

    rows: SourceConfig
    """Rows with prompts. Other columns are kept beside the answers, and are there for the prompts of a program."""


class OutputConfig(Section):
    """What is written, and how much of it at a time."""

    format: Annotated[Literal["jsonl", "parquet"], FREE] = "jsonl"
    """Form of the files rows/part-000000.jsonl or .parquet, which load with the `datasets` package as they are."""
    shard_rows: int = Field(default=500, ge=1)
    """Rows of a file: the most that wait in memory, and that are answered again after the process was killed."""
    rows_in_flight: Annotated[int, FREE] = Field(default=256, ge=1)
    """Rows that are answered at one time."""
    tokens: bool = False
    """Write the token ids and log-probabilities of each answer too; not where a server or a program writes."""
    failed_frac: Annotated[float, FREE] = Field(default=0.05, ge=0, le=1)
    """Share of failed rows at which the job stops, once 100 rows are done. Failed rows are written with the reason."""


class GenerateConfig(StageSection):
    """Answers each row of a data set, in shards: a job that was stopped goes on after the last whole shard."""

    conflicts: ClassVar = conflicts.generate
    stage: Literal["generate"]
    run: RunConfig
    model: ModelConfig | None = None
    """The model that answers, in the engine of `rollout`. None: `server` holds it."""
    server: ChatServerConfig | None = None
    """The server that answers, in text alone. None: `model` does."""
    data: GenerateDataConfig
    key: str | None = None
    """Column with a different value for each row, which names it in the output. None: the number of the row."""
    program: ProgramConfig | None = None
    """The program of several calls that finds each answer, and the filter over its samples. None: plain samples."""
    rollout: RolloutConfig = RolloutConfig()
    """How answers are drawn: samples_per_prompt, max_new_tokens, temperature, top_p; and the engine."""
    output: OutputConfig = OutputConfig()
    cluster: Annotated[ClusterConfig, FREE] = ClusterConfig()
    canaries: CanaryConfig = CanaryConfig()
