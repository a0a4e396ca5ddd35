"""`score`: a teacher's scores of given text, kept for training without the teacher."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from minidist.config.base import Section
from minidist.config.canaries import CanaryConfig
from minidist.config.cluster import ClusterConfig
from minidist.config.conflicts import check_teacher_role
from minidist.config.data import ScoreDataConfig
from minidist.config.models import StudentConfig
from minidist.config.run import RunConfig
from minidist.config.teacher import TeacherConfig


class ScoreConfig(Section):
    """What the teacher says of each token of given text, written down; distill reads it with teacher.backend=cache."""

    stage: Literal["score"]
    run: RunConfig
    student: StudentConfig
    """Of the runs that will read the scores: its tokenizer makes the token ids, its width cuts padded ones off."""
    teacher: TeacherConfig
    """Its payload is what is written."""
    data: ScoreDataConfig
    output: Literal["cache"] = "cache"
    """What becomes of the scores: `cache` writes each row once, by its token ids, to the directory `cache`."""
    cache: Path
    """Directory of the cache, outside run.directory. One that is there already, of the same teacher, is gone on with."""
    batch_rows: int = Field(default=64, ge=1)
    """Rows the teachers are given at one time."""
    shard_rows: int = Field(default=1024, ge=1)
    """Rows of a file: so many wait in memory, and so many at most are scored again after the process was killed."""
    cluster: ClusterConfig = ClusterConfig()
    canaries: CanaryConfig = CanaryConfig()

    @model_validator(mode="after")
    def _sections_agree(self) -> "ScoreConfig":
        if self.teacher.backend == "cache":
            raise ValueError("score asks a live teacher; set teacher.backend=hf, vllm or server, and leave teacher.cache out")
        if self.teacher.placement != "actor":
            raise ValueError("score trains nobody: set teacher.placement=actor, and leave teacher.prompt out")
        check_teacher_role(self.teacher, self.cluster.teacher)
        if self.cache.absolute().is_relative_to(self.run.directory.absolute()):
            raise ValueError(
                f"cache {self.cache} lies in run.directory, whose files a new start deletes; set it to a directory beside "
                f"{self.run.directory}"
            )
        return self
