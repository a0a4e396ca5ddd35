"""Runs as jobs of a Ray cluster: sent after they are checked, listed, followed, stopped."""

import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from minidist import __version__
from minidist.cluster.jobs import Job, JobService, running_in
from minidist.config import Command, CompareConfig, CompareLessonsConfig, load
from minidist.config.load import variables
from minidist.errors import ConfigError, JobError
from minidist.run.directory import RunDirectory
from minidist.run.files import lock
from minidist.run.garbage import no_collection
from minidist.stages import STAGES, code, verbs
from minidist.text import secret_name

_TAIL = 65536
"""Bytes at the end of metrics.jsonl among which its last line is."""


def submit(path: Path, overrides: Sequence[str], address: str | None = None, *, python: str = sys.executable) -> Job | None:
    """Check a configuration as `minidist check` does, and have the cluster run `minidist VERB` with it; None for a run that is
    finished. The job works in the directory of this process, with the variables that the configuration names, but
    for secrets: whoever holds the cluster's token can read a job's variables.

    Raises ConfigError, and JobError where a job is running in run.directory.
    """
    if not path.is_file() and str(path) in verbs():
        raise ConfigError(f"`minidist submit` reads the verb from the stage of the configuration: leave {path} out")
    overrides = [*overrides, *joining(load(path, overrides))]
    config = load(path, overrides)
    stage, directory = STAGES[config.stage], RunDirectory(config)
    with no_collection():
        code(stage.plan)(config)
    if not stage.reruns and directory.finished():
        return None
    service = JobService(address)
    place = str(directory.path.resolve())
    if (job := running_in(place, service.jobs())) is not None:
        raise JobError(
            f"job {job.id} is {job.status.lower()} in {place}; wait for it to end, stop it with `minidist jobs stop {job.id}`, "
            "or set another run.directory"
        )
    lock(directory.path, use="running in", setting="run.directory").close()
    line = [python, "-m", "minidist.cli", stage.verb, str(path), *overrides]
    named = sorted(name for name in variables(path, overrides) if name in os.environ and not secret_name(name))
    environment = {name: os.environ[name] for name in named}
    return service.job(service.submit(command(line), place, environment, {"minidist": __version__}))


def joining(config: Command) -> list[str]:
    """The override with which a run joins the cluster that its job is in; none for a run in the driver's process."""
    if config.cluster.roles == "local":
        return []
    shared = "base." if isinstance(config, CompareConfig | CompareLessonsConfig) else ""
    return [f"{shared}cluster.address=auto"]


def command(line: Sequence[str]) -> str:
    """The shell command of a line that is run in the working directory of this process."""
    here = shlex.quote(str(Path.cwd()))
    unseen = f"minidist: the head node of the cluster does not see {Path.cwd()}: submit from a directory that all nodes share"
    return f"cd {here} || {{ echo {shlex.quote(unseen)}; exit 2; }}; exec {shlex.join(line)}"


def listed(jobs: Sequence[Job]) -> Iterator[str]:
    """One line for each job, in columns."""
    rows = [("JOB", "STATUS", "STARTED", "TOOK", "DIRECTORY")]
    rows += [(job.id, job.status, _clock(job.started), _took(job), job.directory) for job in jobs]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])


def described(job: Job) -> Iterator[str]:
    """What is known of a job: one `name: value` a line. Steps are read from run.directory, where this machine sees it."""
    yield f"job: {job.id}"
    yield f"status: {job.status}"
    if job.exit_code is not None:
        yield f"exit code: {job.exit_code}"
    yield f"started: {_clock(job.started)}, took {_took(job)}"
    yield f"directory: {job.directory}"
    if (step := last_step(Path(job.directory))) is not None:
        yield f"steps: {step}"
    if job.status == "FAILED":
        lines = [line for line in job.message.splitlines() if line.strip()]
        yield f"last line: {lines[-1].strip()}" if lines else "no message"
    yield f"command: {job.command.rpartition('; exec ')[2]}"


def last_step(directory: Path) -> int | None:
    """Steps that a run has taken, by the end of its metrics.jsonl; None where there is none to read."""
    try:
        with (directory / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            whole, _, _ = file.read().rpartition(b"\n")
        step: Any = json.loads(whole.rpartition(b"\n")[2])["step"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return step + 1 if isinstance(step, int) else None


def _clock(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _took(job: Job) -> str:
    if job.started is None:
        return "-"
    seconds = round((job.ended or time.time()) - job.started)
    return f"{seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02}"
