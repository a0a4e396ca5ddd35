"""Jobs on a Ray cluster: commands that the cluster's job service runs on its head node, and what becomes of them."""

import asyncio
import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from minidist.cluster.access import check_token, token
from minidist.errors import JobError
from minidist.text import without_secrets

PORT = 8265
"""Port of the job service, which is that of Ray's dashboard."""
STOP_S = 1800
"""Seconds from the end of which on Ray kills a job that is being stopped: a run ends with its step, and a checkpoint."""
_OURS = "run.directory"
"""Key of a job's metadata that other jobs of the cluster lack."""
_OVER = {"SUCCEEDED", "FAILED", "STOPPED"}


@dataclass(frozen=True)
class Job:
    """A job as its cluster knows it. Times are in seconds since 1970.

    Args:
        id: by which the cluster finds it.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        directory: run.directory, whole.
        command: the line that it runs.
        message: what Ray says of its state.
        exit_code: of the command; None before it has ended, and of a stopped job.
    """

    id: str
    status: str
    directory: str
    command: str
    message: str
    started: float | None
    ended: float | None
    exit_code: int | None

    @property
    def over(self) -> bool:
        return self.status in _OVER

    @property
    def ends_with(self) -> int:
        """The exit code for whoever has waited for the job: its own, that of SIGTERM for a stopped job, or 1."""
        if self.exit_code is not None:
            return self.exit_code
        return {"STOPPED": 128 + 15, "SUCCEEDED": 0}.get(self.status, 1)


class JobService:
    """The job service of the cluster at `address`, such as http://10.0.0.5:8265; None: RAY_API_SERVER_ADDRESS or this
    machine's.

    Raises JobError where none answers, or it refuses the token, and ConfigError for another machine's without a token.
    """

    def __init__(self, address: str | None = None) -> None:
        chosen = address or os.environ.get("RAY_API_SERVER_ADDRESS") or f"127.0.0.1:{PORT}"
        self.address = (chosen if "://" in chosen else f"http://{chosen}").rstrip("/")
        self._shown = without_secrets(self.address)
        if not self.address.startswith(("http://", "https://")):
            raise JobError(f"--address {self._shown} is not that of a job service; expected http://HOST:{PORT}")
        check_token(self.address, "--address")
        os.environ["RAY_API_SERVER_ADDRESS"] = self.address  # Ray takes RAY_ADDRESS in place of the argument otherwise
        from ray.job_submission import JobSubmissionClient

        logging.getLogger("ray.dashboard").setLevel(logging.ERROR)
        found = token()
        headers = {} if found is None else {"Authorization": f"Bearer {found}"}
        with self._answering():
            self._client: Any = JobSubmissionClient(self.address, headers=headers)

    def submit(self, command: str, directory: str, environment: Mapping[str, str], facts: Mapping[str, str]) -> str:
        """Have the cluster run a shell command; returns the id of the job, which begins with the name of run.directory.

        `environment`: variables of the command and of all that it starts. `facts`: more to keep with the job.
        """
        name = re.sub(r"[^\w.-]+", "-", directory.rstrip("/").rpartition("/")[2]).strip("-.") or "run"
        variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), **environment}
        with self._answering():
            return self._client.submit_job(
                entrypoint=command,
                submission_id=f"{name}-{secrets.token_hex(3)}",
                runtime_env={"env_vars": variables},
                metadata={**facts, _OURS: directory},
            )

    def jobs(self) -> list[Job]:
        """The runs of minidist among the cluster's jobs, oldest first."""
        with self._answering():
            found = self._client.list_jobs()
        ours = [_job(each) for each in found if each.submission_id and _OURS in (each.metadata or {})]
        return sorted(ours, key=lambda job: job.started or 0)

    def job(self, id: str) -> Job:
        """The job with this id. Raises JobError where there is none."""
        with self._answering(id):
            return _job(self._client.get_job_info(id))

    def logs(self, id: str) -> str:
        """What the job has printed. Raises JobError where there is none."""
        with self._answering(id):
            return self._client.get_job_logs(id)

    def follow(self, id: str, write: Callable[[str], Any]) -> Job:
        """Write what the job has printed and prints, until it is over; returns the job."""

        async def copy() -> None:
            async for text in self._client.tail_job_logs(id):
                write(text)

        self.job(id)
        with self._answering(id):
            asyncio.run(copy())
        return self.wait(id)

    def wait(self, id: str, every_s: float = 0.5) -> Job:
        """The job once it is over."""

        async def ended() -> Job:
            while not (job := self.job(id)).over:
                await asyncio.sleep(every_s)
            return job

        return asyncio.run(ended())

    def stop(self, id: str) -> bool:
        """Ask a job to stop, as Ctrl-C does; whether it was running. It goes on to the end of its step."""
        with self._answering(id):
            return self._client.stop_job(id)

    @contextmanager
    def _answering(self, id: str = "") -> Iterator[None]:
        """Raise what Ray says as a JobError with one sentence."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise JobError(
                f"the job service at {self._shown} refuses the token, or asks for one: set RAY_AUTH_TOKEN_PATH to a file with "
                "the token that the cluster was started with"
            ) from None
        except (OSError, requests.exceptions.RequestException) as error:
            raise JobError(
                f"no job service answers at {self._shown} ({type(error).__name__}): start a cluster with launch/ray_head.sh, "
                f"or set --address to http://HOST:{PORT} of its head node"
            ) from None
        except RuntimeError as error:
            if id and "404" in str(error):
                raise JobError(f"no job {id} at {self._shown}; `minidist jobs list` shows all") from None
            raise JobError(f"the job service at {self._shown} answers: {_one_line(str(error))}") from None


def running_in(directory: str, jobs: Sequence[Job]) -> Job | None:
    """The job that is running in a run directory, or waits to do so."""
    return next((job for job in jobs if not job.over and job.directory == directory), None)


def _job(found: Any) -> Job:
    started, ended = (None if each is None else each / 1000 for each in (found.start_time, found.end_time))
    directory = (found.metadata or {}).get(_OURS, "")
    words = (found.submission_id, found.status.value, directory, found.entrypoint, found.message or "")
    return Job(*words, started, ended, found.driver_exit_code)


def _one_line(text: str, most: int = 300) -> str:
    """A text in one line; of a longer one, the end, where Python has the error."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"… {line[-most:]}"
