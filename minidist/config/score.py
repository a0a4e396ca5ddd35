"""`score`: compute a teacher's scores of given text once, to train without the teacher later."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from minidist.config import conflicts
from minidist.config.base import FREE, StageSection
from minidist.config.canaries import CanaryConfig
from minidist.config.cluster import ClusterConfig, Role
from minidist.config.data import ScoreDataConfig
from minidist.config.models import StudentConfig
from minidist.config.run import RunConfig
from minidist.config.teacher import AnyTeacherConfig


class ScoreConfig(StageSection):
    """Writes the teacher's scores of each token of given text to a cache, which distill reads with teacher.backend=cache."""

    conflicts: ClassVar = conflicts.score
    stage: Literal["score"]
    run: RunConfig
    student: StudentConfig
    """The student of the runs that will read the scores: its tokenizer makes the token ids, and its vocabulary size cuts padded
    ids off."""
    teacher: AnyTeacherConfig
    """The teacher; its payload is written."""
    data: ScoreDataConfig
    output: Literal["cache"] = "cache"
    """Form of the output. cache: each row once, by its token ids, in the directory `cache`."""
    cache: Path
    """Directory of the cache, outside run.directory. An existing cache of the same teacher is continued."""
    batch_rows: int = Field(default=64, ge=1)
    """Rows of one call to the teachers."""
    shard_rows: int = Field(default=1024, ge=1)
    """Rows of a file: the most that wait in memory, and that are scored again after the process was killed."""
    cluster: Annotated[ClusterConfig, FREE] = ClusterConfig()
    canaries: CanaryConfig = CanaryConfig()

    @property
    def shapes_only(self) -> tuple[str, ...]:
        return ("student.model",) if self.teacher.hosted else ("student.model", "teacher.model")

    @property
    def hosted(self) -> tuple[Role, ...]:
        """The teachers alone."""
        return ("teacher",)
