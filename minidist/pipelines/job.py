"""A job: the missing shards of a source go through workers, in memory that does not grow with the source."""

import time
from collections.abc import Awaitable, Callable

from minidist.config.pipelines import FilesConfig
from minidist.errors import DataError, RoleError
from minidist.pipelines.shards import Shards
from minidist.pipelines.tally import Tally
from minidist.run.tracking import log

_FEW = 100
"""Rows after which a share of failed rows stops a job."""
_TRIES = 3
"""Times that a job is tried while its workers die."""

Progress = Callable[[Tally, float, float], None]
"""Gets the counts of all shards, and of this run the rows and the tokens a second."""
Take = Callable[[Tally], None]
"""Gets the counts of a shard that is written. Raises DataError to stop the job."""
Runner = Callable[[Take], Awaitable[None]]
"""Writes all shards that are missing: in this process (`local.run_in_process`), or on a cluster (`ray_data.run_on_ray`)."""


class WorkerDiedError(RoleError):
    """The process of a worker ended, or its node did. What it had written is whole."""


class Job:
    """Counts what is written, and stops where too many rows fail.

    Args:
        shards: where results go.
        files: how many rows may fail.
        progress: called after each shard.
    """

    def __init__(self, shards: Shards, files: FilesConfig, progress: Progress) -> None:
        self._shards = shards
        self._files = files
        self._progress = progress
        self._new = Tally()

    async def run(self, runner: Runner) -> Tally:
        """The counts of all shards, once the missing ones are written. A failure ends what is under way; whole shards stay."""
        self._started = time.perf_counter()
        for left in reversed(range(_TRIES)):
            self._tally = Tally()
            for number in self._shards.numbers():
                self._tally += Tally.of(self._shards.read(number))
            try:
                await runner(self._take)
                break
            except WorkerDiedError as error:
                if not left:
                    raise
                log.warning("%s; the rows that are not written yet are answered again", error)
        return self._tally

    def _take(self, tally: Tally) -> None:
        self._tally += tally
        self._new += tally
        seconds = time.perf_counter() - self._started
        self._progress(self._tally, self._new.rows / seconds, self._new.tokens / seconds)
        failed = sum(self._tally.failed.values())
        if self._tally.rows >= _FEW and failed > self._files.failed_frac * self._tally.rows:
            reason, count = self._tally.failed.most_common(1)[0]
            found = f"{failed} of {self._tally.rows} rows failed, more than files.failed_frac={self._files.failed_frac}"
            raise DataError(f"{found}; {count} times: {reason}; correct the rows, or raise files.failed_frac")
