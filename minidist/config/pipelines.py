"""What all pipelines over a data set have in common: rows, keys and output."""

from typing import Annotated, Literal

from pydantic import Field

from minidist.config.base import FREE, Section, StageSection
from minidist.config.canaries import CanaryConfig
from minidist.config.cluster import ClusterConfig
from minidist.config.data import RenderConfig, SourceConfig
from minidist.config.run import RunConfig


class RowsDataConfig(RenderConfig):
    """The rows of a pipeline."""

    rows: SourceConfig
    """Rows with prompts. Other columns are kept beside the results, and are there for the prompts of a program."""


class FilesConfig(Section):
    """What is written, and how much of it at a time."""

    format: Literal["jsonl", "parquet"] = "jsonl"
    """Form of the files rows/part-000000.jsonl or .parquet. datasets.load_dataset("RUN_DIRECTORY/rows") loads them as one set,
    with the types of rows/README.md; as data.NAME.path the folder is a source of any other stage."""
    shard_rows: int = Field(default=500, ge=1)
    """Rows of a file: the most that wait in memory, and that are answered again after the process was killed."""
    rows_in_flight: Annotated[int, FREE] = Field(default=256, ge=1)
    """Rows that each worker answers at one time."""
    workers: Annotated[int | None, FREE] = Field(default=None, ge=1)
    """Processes that read prompts, ask engines or the server, and write files; rows_in_flight and server.requests hold for each
    of them. None: one for each engine or teacher. cluster.roles=local has this process alone."""
    tokens: bool = False
    """Write the ids or the log-probabilities of all tokens too; not where a server or a program writes."""
    failed_frac: Annotated[float, FREE] = Field(default=0.05, ge=0, le=1)
    """Share of failed rows at which the job stops, once 100 rows are done. Failed rows are written with the reason."""


class PipelineSection(StageSection):
    """Sections of every pipeline: each row of a data set, in shards."""

    run: RunConfig
    data: RowsDataConfig
    key: str | None = None
    """Column with a different value for each row, which names it in the output. None: the number of the row."""
    files: FilesConfig = FilesConfig()
    cluster: Annotated[ClusterConfig, FREE] = ClusterConfig()
    canaries: CanaryConfig = CanaryConfig()
