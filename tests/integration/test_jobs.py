"""Runs as jobs of a Ray cluster, which `launch/ray_head.sh` starts."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from minidist.cluster.jobs import JobService
from minidist.errors import JobError
from minidist.stages.jobs import last_step
from tests.integration.conftest import SHAPE
from tests.integration.test_runs import sft, write
from tests.support.commands import run
from tests.support.ray_head import ray_head


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with ray_head(tmp_path_factory.mktemp("head"), "--num-cpus", "2") as address:
        yield address


@pytest.fixture
def long_run(tmp_path: Path) -> Path:
    """A configuration whose run does not end by itself."""
    config = sft(tmp_path, "long", SHAPE, 100, 10**6, 1)
    config["cluster"] = {"threads": 1, "prometheus": 0}
    config["run"]["checkpoint_every"] = None
    return write(tmp_path / "long.yaml", config)


def check_gauges(head: str, job: str, directory: str) -> None:
    """The endpoint that the log names shows the metrics of the run, with its directory, as Prometheus reads them."""
    found = re.search(r"metrics for Prometheus: (http://127.0.0.1:\d+/metrics)", JobService(head).logs(job))
    assert found is not None
    until, shown = time.monotonic() + 20, {}
    while "ray_minidist_steps" not in shown and time.monotonic() < until:
        time.sleep(0.5)
        families = text_string_to_metric_families(httpx.get(found[1]).text)
        samples = [sample for family in families for sample in family.samples if sample.name.startswith("ray_minidist_")]
        shown = {sample.name: sample.value for sample in samples if sample.labels["run"] == directory}
    assert shown["ray_minidist_steps"] >= 1
    assert 0 < shown["ray_minidist_loss_nats_per_token"] < 10


def test_a_job_is_submitted_once_watched_and_stopped(head: str, long_run: Path, tmp_path: Path) -> None:
    at = ("--address", head)
    sent = run("submit", long_run, "batch_rows=16", *at)
    assert sent.returncode == 0, sent.stderr
    job = sent.stdout.splitlines()[0].removeprefix("job: ")
    assert job.startswith("long-")
    until = time.monotonic() + 60
    while last_step(tmp_path / "long") is None and time.monotonic() < until:
        time.sleep(0.2)
    again = run("submit", long_run, "batch_rows=16", *at)
    assert again.returncode == 2
    assert again.stderr.startswith(f"minidist: job {job} is running in {tmp_path}/long; wait for it to end")
    shown = run("jobs", "status", job, *at).stdout
    assert "status: RUNNING" in shown and "steps: " in shown, run("jobs", "logs", job, *at).stdout
    assert "batch_rows=16 cluster.address=auto" in shown
    [row] = [line for line in run("jobs", "list", *at).stdout.splitlines() if line.startswith(job)]
    assert row.split()[1] == "RUNNING" and row.endswith(f"{tmp_path}/long")
    check_gauges(head, job, f"{tmp_path}/long")
    assert run("jobs", "stop", job, *at).stdout == f"{job}: STOPPED\n"
    printed = run("jobs", "logs", job, *at).stdout
    assert "stopping after this step" in printed and "stopped by SIGTERM" in printed
    assert list((tmp_path / "long" / "checkpoints").glob("step_*")), "the run can go on"


def test_a_command_that_follows_ends_with_the_code_of_the_job(head: str, long_run: Path) -> None:
    followed = run("submit", long_run, "--follow", "--python", "/bin/false", "--address", head)
    assert followed.returncode == 1
    assert followed.stderr.splitlines()[-1].endswith(": FAILED")


def test_a_job_service_without_the_token_is_of_no_use(head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.write_text("b" * 64)
    for name in (other, tmp_path / "none"):
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(name))
        with pytest.raises(JobError, match="refuses the token, or asks for one"):
            JobService(head).jobs()


def test_an_unknown_job_is_a_sentence(head: str) -> None:
    for verb in ("status", "logs", "stop"):
        done = run("jobs", verb, "none", "--address", head)
        assert (done.returncode, done.stderr) == (2, f"minidist: no job none at {head}; `minidist jobs list` shows all\n")
