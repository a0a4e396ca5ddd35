"""What is sent to a cluster's job service, what is refused before, and what is shown of a job."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from minidist.cluster import jobs as service
from minidist.cluster.jobs import Job, JobService, running_in
from minidist.config import load
from minidist.errors import ConfigError, JobError
from minidist.run.files import lock
from minidist.stages import jobs
from minidist.stages.jobs import command, described, joining, last_step, listed, submit

TOY: dict[str, Any] = {"stage": "toy", "teachers": {"zipf": {"type": "zipf"}}, "divergences": {"forward_kl": {}}}
SORT: dict[str, Any] = {
    "stage": "sft",
    "student": {"architecture": {"model_type": "llama"}, "tokenizer": "characters:sort"},
    "data": {"train": {"path": "task:sort", "rows": 10}, "max_tokens": 32},
}


def job(**changes: Any) -> Job:
    fields = {"id": "a-1", "status": "RUNNING", "directory": "/runs/a", "command": "cd /x; exec minidist sft a.yaml"}
    return Job(**(fields | {"message": "", "started": 10.0, "ended": None, "exit_code": None} | changes))


class Cluster:
    """A job service that keeps what it is asked to run, in place of Ray's."""

    def __init__(self, *found: Job) -> None:
        self.found = list(found)
        self.sent: list[tuple[str, str, dict[str, str]]] = []

    def jobs(self) -> list[Job]:
        return self.found

    def submit(self, command: str, directory: str, environment: dict[str, str], facts: dict[str, str]) -> str:
        self.sent.append((command, directory, environment))
        return "toy-1"

    def job(self, id: str) -> Job:
        return job(id=id)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    cluster = Cluster()
    monkeypatch.setattr(jobs, "JobService", lambda address: cluster)
    return cluster


def write(path: Path, config: dict[str, Any], directory: Any) -> Path:
    path.write_text(yaml.safe_dump(config | {"run": {"directory": str(directory)}}))
    return path


def test_the_verb_is_that_of_the_stage_and_the_run_joins_the_cluster(tmp_path: Path) -> None:
    assert joining(load(write(tmp_path / "sft.yaml", SORT, tmp_path / "run"))) == ["cluster.address=auto"]
    assert joining(load(write(tmp_path / "toy.yaml", TOY, tmp_path / "run"))) == [], "it runs in the driver's process"
    quickstart = Path(__file__).parents[3] / "configs" / "compare" / "sort.yaml"
    assert joining(load(quickstart)) == ["base.cluster.address=auto"]
    assert load(quickstart, ["base.cluster.address=auto"]).cluster.address == "auto"


def test_the_command_runs_in_the_directory_of_the_submission_with_the_variables_it_names(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUNS_HERE", str(tmp_path / "my runs"))
    monkeypatch.setenv("SERVER_TOKEN", "12345678")
    monkeypatch.setenv("UNNAMED", "1")
    file = write(Path("toy.yaml"), TOY, "${RUNS_HERE}/toy")
    file.write_text(f"{file.read_text()}# of ${{SERVER_TOKEN}}, of ${{UNSET_HERE}}\n")
    assert submit(file, ["run.overwrite=true"], python="/opt/python") is not None
    [(line, directory, environment)] = cluster.sent
    assert line.startswith(f"cd {tmp_path} || ")
    assert line.endswith("; exec /opt/python -m minidist.cli compare toy.yaml run.overwrite=true")
    assert directory == f"{tmp_path}/my runs/toy"
    assert environment == {"RUNS_HERE": f"{tmp_path}/my runs"}


def test_a_node_without_the_directory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "it's here").mkdir()
    monkeypatch.chdir(tmp_path / "it's here")
    line = command(["echo", "in", "it's"])
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout) == (0, "in it's\n")
    (tmp_path / "it's here").rename(tmp_path / "gone")
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, cwd="/")
    assert done.returncode == 2
    assert f"does not see {tmp_path}/it's here: submit from a directory that all nodes share" in done.stdout


def test_nothing_is_sent_of_a_configuration_that_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    file = write(tmp_path / "toy.yaml", TOY | {"seeds": [1, 1]}, tmp_path / "run")
    with pytest.raises(ConfigError, match="a repeated seed"):
        submit(file, [])
    with pytest.raises(ConfigError, match="reads the verb from the stage of the configuration: leave distill out"):
        submit(Path("distill"), [str(file)])
    assert cluster.sent == []


def test_a_directory_in_which_a_run_is_under_way_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    file = write(tmp_path / "toy.yaml", TOY, tmp_path / "run")
    held = lock(tmp_path / "run", use="running in", setting="run.directory")
    with pytest.raises(Exception, match="another process is running in"):
        submit(file, [])
    held.close()
    cluster.found = [job(id="run-2", status="PENDING", directory=str(tmp_path / "run"))]
    with pytest.raises(
        JobError, match=r"^job run-2 is pending in .*; wait for it to end, stop it with `minidist jobs stop run-2`"
    ):
        submit(file, [])
    assert cluster.sent == []
    cluster.found = [job(id="run-2", status="FAILED", directory=str(tmp_path / "run"))]
    assert submit(file, []) is not None, "a run that has died is submitted again"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"status": "FAILED", "exit_code": 2}, 2),
        ({"status": "FAILED"}, 1),
        ({"status": "STOPPED"}, 143),
        ({"status": "SUCCEEDED"}, 0),
    ],
)
def test_a_command_that_follows_a_job_ends_with_its_code(changes: dict[str, Any], code: int) -> None:
    assert job(**changes).ends_with == code


def test_a_job_that_is_over_runs_nowhere() -> None:
    found = [job(id="1", status="STOPPED"), job(id="2", directory="/runs/b"), job(id="3")]
    assert running_in("/runs/a", found) == found[2]
    assert running_in("/runs/c", found) is None


def test_jobs_are_shown_in_columns_and_one_in_lines(tmp_path: Path) -> None:
    long = job(
        id="longer-name-2",
        status="FAILED",
        ended=3675.0,
        exit_code=1,
        message="log:\n\nOSError: disk\n",
        directory=str(tmp_path),
    )
    head, first, second = listed([job(started=None), long])
    assert head.index("STATUS") == first.index("RUNNING") == second.index("FAILED")
    assert "1:01:05" in second
    (tmp_path / "metrics.jsonl").write_text('{"step": 3}\n{"step": 4}\n{"step": 5, "lo')
    lines = list(described(long))
    assert {"exit code: 1", "steps: 5", "last line: OSError: disk", "command: minidist sft a.yaml"} <= set(lines)


@pytest.mark.parametrize("text", ["", "x\n", "[1]\n", '{"step": "a"}\n', "\xff\n", '{"a": 1}\n'])
def test_steps_that_cannot_be_read_are_left_out(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text, encoding="latin-1")
    assert last_step(tmp_path) is None
    assert last_step(tmp_path / "none") is None


def test_the_address_is_that_of_a_job_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    for address, shown in (
        ("ray://127.0.0.1:1", "is not that of a job service"),
        (None, "no job service answers at http://127.0.0.1:9 "),
    ):
        with pytest.raises(JobError, match=shown):
            JobService(address)
    with pytest.raises(JobError) as caught:
        JobService("http://user:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)


def test_what_ray_answers_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    trace = "Request failed with status code 500: Traceback\n  File x\nValueError: " + "x" * 1000 + " the end."
    line = service._one_line(trace)
    assert "\n" not in line and len(line) < 310 and line.endswith("the end.")
    assert json.dumps(line)
