"""Whole runs from the command line: what they leave, what they learn, and that nothing stays behind."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from minidist.run.accounting import PREFIXES
from tests.integration.conftest import SHAPE, Stack
from tests.integration.live_server import Live
from tests.support.commands import LIMIT, Command, run, start
from tests.support.kills import Observed


def write(path: Path, config: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def sft(root: Path, name: str, shape: dict[str, Any], rows: int, steps: int, seed: int) -> dict[str, Any]:
    return {
        "stage": "sft",
        "run": {"directory": str(root / name), "steps": steps, "seed": seed},
        "student": {"architecture": shape, "tokenizer": "characters:sort"},
        "data": {
            "train": {"path": "task:sort", "rows": rows, "seed": seed},
            "validation": {"path": "task:sort", "split": "valid", "rows": 50},
            "max_tokens": 32,
        },
        "learner": {"backend": "single", "optimizer": {"lr": 3e-3}},
        "evaluation": {"every": steps},
        "cluster": {"roles": "local", "threads": 1},
        "batch_rows": 32,
    }


def distill(root: Path, name: str, steps: int) -> dict[str, Any]:
    return {
        "stage": "distill",
        "run": {"directory": str(root / name), "steps": steps, "rollouts_every": 5, "checkpoint_every": 10},
        "student": {"model": str(root / "student" / "final")},
        "teacher": {"model": str(root / "teacher" / "final")},
        "data": {
            "prompts": {"path": "task:sort", "rows": 500, "seed": 5},
            "validation": {"path": "task:sort", "split": "valid", "rows": 64},
            "max_prompt_tokens": 16,
        },
        "objective": {"type": "reverse_kl"},
        "rollout": {"prompts_per_step": 48, "max_new_tokens": 10},
        "learner": {"optimizer": {"lr": 2e-3, "warmup_steps": 5}},
        "evaluation": {"every": 20},
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a student, trained from scratch by `minidist sft`."""
    root = tmp_path_factory.mktemp("runs")
    for name, rows, steps, seed in (("teacher", 4000, 150, 1), ("student", 200, 40, 2)):
        done = run("sft", write(root / f"{name}.yaml", sft(root, name, SHAPE, rows, steps, seed)))
        assert done.returncode == 0, done.stderr
    return root


class Started:
    """The processes, temporary files and shared memory of the commands that one test starts, and of no one else.

    The commands inherit an environment variable and a temporary directory that no other process on the machine has.
    """

    def __init__(self, folder: Path, mark: str) -> None:
        self.folder, self._mark, self._memory = folder, f"{MARK}={mark}".encode(), _shared_memory()

    def processes(self) -> list[psutil.Process]:
        """Zombies aside."""
        return [process for process in psutil.process_iter() if process.pid != os.getpid() and self._started(process.pid)]

    def _started(self, pid: int) -> bool:
        """Whether the process has the variable, or a file open in the directory. A process that has renamed itself, as Ray's
        workers do, may have overwritten its environment."""
        root = Path(f"/proc/{pid}")
        try:
            if (root / "stat").read_text().rpartition(") ")[2].startswith("Z"):
                return False
            if self._mark in (root / "environ").read_bytes() or str(self.folder).encode() in (root / "cmdline").read_bytes():
                return True
            return any(str(link.readlink()).startswith(str(self.folder)) for link in (root / "fd").iterdir())
        except OSError:  # it has ended, or is another user's
            return False

    def left(self) -> list[str]:
        """What is still there."""
        files = [str(path) for path in self.folder.iterdir()]
        memory = _shared_memory() - self._memory
        return [str(process) for process in self.processes()] + files + sorted(memory - _mapped(memory))


def _shared_memory() -> set[str]:
    shared = Path("/dev/shm")
    return {str(path) for path in shared.iterdir()} if shared.is_dir() else set()


def _mapped(names: set[str]) -> set[str]:
    """Those of the names that a living process uses; a process of the test's commands is found by itself."""
    used = set()
    for maps in Path("/proc").glob("[0-9]*/maps") if names else ():
        try:
            text = maps.read_text()
        except OSError:
            continue
        used |= {name for name in names if name in text}
    return used


MARK = "MINIDIST_TEST_STARTED"


@pytest.fixture
def nothing_left(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, starting: Live | None) -> Iterator[Started]:
    """Fails the test when a process, a temporary file or shared memory outlives the commands that the test started."""
    if starting is not None:
        request.getfixturevalue("server")  # while it starts, it makes semaphores of its own
    folder = Path(tempfile.mkdtemp(prefix="m-", dir="/tmp"))  # short: the paths of sockets lie in it
    started = Started(folder, folder.name)
    monkeypatch.setenv(MARK, folder.name)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setenv("SPT_NOENV", "1")  # setproctitle leaves the environment readable
    yield started
    for _ in range(40):
        if not started.left():
            folder.rmdir()
            return
        time.sleep(0.5)
    raise AssertionError(f"left behind: {started.left()}")


def metrics(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_distillation_brings_the_student_closer_and_leaves_its_files(models: Path, nothing_left: Started) -> None:
    done = run("distill", write(models / "distill.yaml", distill(models, "distill", 40)), fresh=True)
    assert done.returncode == 0, done.stderr
    directory = models / "distill"
    summary = json.loads((directory / "summary.json").read_text())
    before, after = summary["evaluations"][0], summary["evaluations"][-1]
    assert (before["step"], after["step"]) == (0, 40)
    assert after["reverse_kl"] < 0.7 * before["reverse_kl"]
    assert "where the time of 40 steps went" in done.stdout and "memory: " in done.stdout
    assert summary["syncs_proved"] == 41  # before the first word, and after every step
    assert summary["engine"]["class"].startswith("vllm") and summary["learner"]["class"] == "DeepSpeedLearner"
    assert summary["engine"]["tokens_written"] > 40 * 48
    assert summary["canaries"]["engine_learner_nats_mean_worst"] < 1e-4
    steps = [line for line in metrics(directory) if "loss/nats_per_token" in line]
    assert [line["step"] for line in steps] == list(range(40))
    assert {line["age/updates_max"] for line in steps} == {0}
    needed = {
        "rollout/length_mean_tokens",
        "rollout/truncated_frac",
        "time/generate_s",
        "time/update_s",
        "canary/sync_nats_max",
    }
    assert needed <= steps[-1].keys()
    assert (directory / "checkpoints" / "step_000040" / "model.safetensors").is_file()
    rollout = json.loads((directory / "rollouts" / "step_000005.jsonl").read_text().splitlines()[0])
    assert rollout["prompt"] and "".join(rollout["pieces"]).startswith(rollout["answer"])
    assert rollout["student_logprobs"] == pytest.approx(rollout["logprobs"], abs=1e-3)  # sampled at temperature 1
    assert len(rollout["teacher_logprobs"]) == len(rollout["tokens"])
    shown = run("sample", directory, "--rows", "2")
    assert shown.returncode == 0 and "mean difference" in shown.stdout, shown.stderr
    assert list((directory / "tensorboard").glob("events*")) and (directory / "log.txt").stat().st_size


def test_a_run_says_where_its_time_went(models: Path) -> None:
    """Of the run above: a timeline with every actor, in order, and figures of every phase."""
    directory = models / "distill"
    events = json.loads((directory / "timeline.json").read_text())
    rows = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert sorted(rows.values()) == ["driver", "learner", "rollout", "teacher"]
    spans = [event for event in events if event["ph"] == "X"]
    for row, name in rows.items():
        times = [(span["ts"], span["dur"], span["name"]) for span in spans if span["pid"] == row]
        assert times == sorted(times, key=lambda time: time[0]) and min(dur for _, dur, _ in times) >= 0
        verb = {"driver": "update", "learner": "update", "rollout": "generate", "teacher": "score"}[name]
        assert sum(each == verb for _, _, each in times) >= 40
    last = [line for line in metrics(directory) if "loss/nats_per_token" in line][-1]
    for phase in ("generate", "score", "update"):
        assert last[f"tokens/{phase}"] > 0 and last[f"bytes/{phase}_mib"] > 0
        assert 0 < last[f"utilisation/{phase}_frac"] < 1
    assert last["padding/score_frac"] <= 0.05 and last["padding/update_frac"] <= 0.05
    assert last["tokens/generate"] == pytest.approx(48 * last["rollout/length_mean_tokens"])
    spent = json.loads((directory / "summary.json").read_text())["time"]
    assert spent["account"]["steps"] == 40 and 0.5 < spent["memory_peak_gib"] < 8
    assert spent["account"]["other"] < 0.1 * spent["account"]["seconds"]
    assert all(0 < seconds < spent["account"]["seconds"] for seconds in spent["account"]["idle"].values())


def test_final_loads_in_transformers_and_vllm_as_it_is(models: Path, stack: Stack) -> None:
    final = models / "distill" / "final"
    assert "on-policy-distillation" in (final / "README.md").read_text(), "it has its card"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(final), AutoTokenizer.from_pretrained(final)
    ids = tokenizer("badc=", return_tensors="pt", add_special_tokens=False)["input_ids"]
    engine = stack.host_engine(final)
    scored = stack.run(engine.score([ids[0].tolist()]))[0]
    stack.dismiss(engine)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(ids).logits[0, :-1], -1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    assert max(abs(a - b) for a, b in zip(scored, logprobs.tolist(), strict=True)) < 2e-4


def test_a_finished_run_is_left_alone_and_another_one_refused(models: Path) -> None:
    config = models / "student.yaml"
    before = (models / "student" / "final" / "model.safetensors").stat().st_mtime_ns
    again = run("sft", config)
    assert again.returncode == 0 and "finished already" in again.stderr
    assert (models / "student" / "final" / "model.safetensors").stat().st_mtime_ns == before
    other = run("sft", config, "batch_rows=41")
    assert other.returncode == 2 and "batch_rows was" in other.stderr and "is now 41" in other.stderr
    fewer = run("sft", config, "run.steps=39")
    assert fewer.returncode == 2 and "has taken 40 already; raise it" in fewer.stderr


@pytest.mark.parametrize("patience", [None, 2])
def test_a_finished_run_goes_on_as_one_of_more_steps(models: Path, patience: int | None) -> None:
    """The same metrics, and the same weights to the last bit, as a run that had all the steps from its start."""
    for name, every in (("grown", 4), ("whole", 100)):
        config = sft(models, f"{name}-{patience}", SHAPE, 200, 9, 3)
        config["run"] |= {"deterministic": True, "checkpoint_every": every}
        config["evaluation"] = {"every": 3, "patience": patience}
        for steps in (6, 9) if name == "grown" else (9,):
            done = run("sft", write(models / f"{name}.yaml", config), f"run.steps={steps}")
            assert done.returncode == 0, done.stderr
        assert ("run.steps was 6 and is now 9: the run goes on from its checkpoint after 6" in done.stderr) == (name == "grown")
    grown, whole = models / f"grown-{patience}", models / f"whole-{patience}"
    assert numbers(grown) == numbers(whole) and json.loads((grown / "summary.json").read_text())["steps"] == 9
    assert (grown / "final" / "model.safetensors").read_bytes() == (whole / "final" / "model.safetensors").read_bytes()


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
from minidist.cli import main
main()
"""


@pytest.mark.parametrize(
    ("limit", "every", "written"), [(60_000, 2, "checkpoints/step_000004"), (6_000, 100, "(metrics.jsonl|tensorboard)")]
)
def test_a_full_disk_ends_a_run_with_a_sentence_and_its_last_checkpoint_whole(
    models: Path, limit: int, every: int, written: str
) -> None:
    """No file may grow beyond `limit` bytes, as on a disk that is full; then there is room again."""
    name = f"full-{limit}"
    config = sft(models, name, SHAPE, 200, 40, 3) | {"evaluation": {}}
    config["run"] |= {"deterministic": True, "checkpoint_every": 2}
    file = write(models / f"{name}.yaml", config)
    assert run("sft", file, "run.steps=2").returncode == 0
    command = [sys.executable, "-c", LIMITED, str(limit), "sft", str(file), f"run.checkpoint_every={every}"]
    full = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert full.returncode == 1 and "Traceback" not in full.stderr, full.stderr
    sentence = rf"minidist: {models}/{name}/{written} could not be written: .*; free space.*"
    assert re.fullmatch(sentence, full.stderr.splitlines()[-1]), full.stderr
    assert [path.name for path in (models / name / "checkpoints").iterdir()] == ["step_000002"]
    assert not (models / name / "summary.json").exists()
    again = run("sft", file)
    assert again.returncode == 0 and "resuming from" in again.stderr
    assert [line["step"] for line in metrics(models / name)] == list(range(40))


def test_evaluate_prints_one_table_and_writes_it(models: Path, nothing_left: Started) -> None:
    config = {
        "stage": "evaluate",
        "run": {"directory": str(models / "evaluate")},
        "models": {name: str(models / name / "final") for name in ("teacher", "student", "distill")},
        "teacher": {"model": str(models / "teacher" / "final")},
        "data": {"test": {"path": "task:sort", "split": "test", "rows": 100}, "max_prompt_tokens": 16},
        "rollout": {"max_new_tokens": 10},
        "cluster": {"roles": "local"},
    }
    done = run("evaluate", write(models / "evaluate.yaml", config))
    assert done.returncode == 0, done.stderr
    result = json.loads((models / "evaluate" / "result.json").read_text())
    assert list(result) == ["teacher", "student", "distill"]
    assert result["distill"]["reverse_kl"] < result["student"]["reverse_kl"]
    assert result["teacher"]["reverse_kl"] == 0
    assert result["distill"]["training"]["syncs_proved"] == 41
    for figures in result.values():
        assert {"accuracy", "accuracy_se", "forward_kl", "length_mean_tokens", "distinct_4", "exposure_bias"} <= set(figures)
    assert "reverse KL" in done.stdout and "result.json" in done.stdout


def test_minillm_on_mixed_samples_in_one_process(models: Path, nothing_left: Started) -> None:
    """Two vLLM engines, a transformers teacher and a learner in one process; plain text beside, two steps a collection."""
    config = distill(models, "local", 20) | {"cluster": {"roles": "local"}}
    config["objective"] = {"type": "minillm", "minibatches": 2}
    config["streams"] = {
        "text": {"data": {"path": "task:sort", "rows": 50}, "objective": {"type": "kd"}, "rows": 8, "weight": 0.1}
    }
    config["streams"]["text"]["max_tokens"] = 32
    done = run("distill", write(models / "local.yaml", config))
    assert done.returncode == 0, done.stderr
    summary = json.loads((models / "local" / "summary.json").read_text())
    before, after = summary["evaluations"][0], summary["evaluations"][-1]
    assert after["reverse_kl"] < 0.9 * before["reverse_kl"]
    assert summary["engine"]["class"].startswith("vllm") and summary["syncs_proved"] == 21
    assert summary["learner"]["optimizer_steps"] == 40
    steps = [line for line in metrics(models / "local") if "loss/nats_per_token" in line]
    assert {line["age/updates_max"] for line in steps} == {1}
    assert all(0.5 < line["policy/weight_max"] <= 1.25 and line["mixed/teacher_s"] > 0 for line in steps)
    whose = [sum(line[f"mixed/{side}_tokens"] for line in steps) for side in ("student", "teacher")]
    assert whose[1] / sum(whose) == pytest.approx(0.2, abs=0.03)
    rollouts = (models / "local" / "rollouts" / "step_000020.jsonl").read_text().splitlines()
    for rollout in map(json.loads, rollouts):
        assert [value is None for value in rollout["logprobs"]] == [bool(coin) for coin in rollout["coins"]]
        assert len(rollout["student_logprobs"]) == len(rollout["teacher_logprobs"]) == len(rollout["tokens"])


def test_offline_training_from_scores_needs_no_teacher(models: Path) -> None:
    """Trained from the cache, and with the teacher itself: the same losses."""
    gold = {"path": "task:sort", "rows": 200, "seed": 5, "max_new_tokens": 10}
    scoring = {
        "stage": "score",
        "run": {"directory": str(models / "score")},
        "student": {"model": str(models / "student" / "final")},
        "teacher": {"model": str(models / "teacher" / "final")},
        "data": {"sources": {"gold": gold}, "max_prompt_tokens": 16},
        "cache": str(models / "cache"),
        "cluster": {"roles": "local"},
    }
    done = run("score", write(models / "score.yaml", scoring))
    assert done.returncode == 0, done.stderr
    scored = json.loads((models / "score" / "summary.json").read_text())
    assert scored["rows_scored"] == scored["rows"] <= 200 and scored["teacher"]["class"] == "HFTeacher"
    for name, changes in (("taught", {}), ("offline", {"backend": "cache", "cache": scored["cache"]})):
        config = distill(models, name, 5) | {"prefix": {"student": 0, "dataset": 1}, "cluster": {"roles": "local"}}
        config["data"]["prompts"]["rows"], config["learner"] = 200, {"backend": "single", "optimizer": {"lr": 1e-3}}
        config["teacher"] |= changes
        del config["evaluation"]
        done = run("distill", write(models / f"{name}.yaml", config))
        assert done.returncode == 0, done.stderr
    summary = json.loads((models / "offline" / "summary.json").read_text())
    assert summary["teacher"] == {
        "class": "CachedTeacher",
        "payload": "hidden",
        "cache": scored["cache"],
        "rows": scored["rows"],
        "actors": 1,
    }
    losses = [[line["loss/nats_per_token"] for line in metrics(models / name)] for name in ("taught", "offline")]
    assert len(losses[0]) == 5 and losses[1] == pytest.approx(losses[0], rel=1e-5)


STEPS = 60


def deterministic(models: Path, name: str, **cluster: Any) -> Path:
    """A run whose numbers are the same to the last bit each time, whatever happens to it in between."""
    config = distill(models, name, STEPS)
    config["run"] |= {"deterministic": True, "checkpoint_every": 4}
    return write(models / f"{name}.yaml", config | {"cluster": {"threads": 1} | cluster})


@pytest.fixture(scope="module")
def undisturbed(models: Path) -> list[dict[str, float]]:
    done = run("distill", deterministic(models, "undisturbed", roles="local"))
    assert done.returncode == 0, done.stderr
    return numbers(models / "undisturbed")


def numbers(directory: Path) -> list[dict[str, float]]:
    """The metrics, but for how long things took."""
    return [{k: v for k, v in line.items() if not k.startswith(PREFIXES)} for line in metrics(directory)]


WAYS: list[tuple[signal.Signals, dict[str, Any], str | None]] = [
    (signal.SIGINT, {"learner": {"ranks": 2}}, "learner"),
    (signal.SIGTERM, {"roles": "local"}, None),
    (signal.SIGKILL, {"weight_transfer": "gloo"}, "raylet"),
]


@pytest.mark.parametrize(
    ("how", "cluster", "lost"), WAYS, ids=["SIGINT, lost rank", "SIGTERM, local", "SIGKILL, lost Ray, gloo"]
)
def test_an_interrupted_run_leaves_nothing_behind_and_resumes_as_if_undisturbed(
    models: Path,
    undisturbed: list[dict[str, float]],
    nothing_left: Started,
    how: signal.Signals,
    cluster: dict[str, Any],
    lost: str | None,
) -> None:
    """Interrupted at some step, in Ray actors or in one process, with weights through the object store, in memory or over a
    channel, and resumed in one process. Before that, the run has lost a process, and has gone on."""
    name = f"stopped-{how.name}"
    directory, config = models / name, deterministic(models, name, **cluster)
    observed = None if lost is None else Observed(models / f"{name}.events", "distill", config)
    command = start("distill", config, fresh="roles" not in cluster) if observed is None else observed.command
    try:
        goes_on = observed is None or lost is None or lose(observed, lost)
        if goes_on:
            wait_for_steps(directory, command, 7 + time.time_ns() % 20)  # past the first checkpoint
            command.process.send_signal(how)
        errors = command.wait(60).stderr
    finally:
        command.process.kill()
    assert not (directory / "final").exists(), "it was over before it could be interrupted"
    if how is not signal.SIGKILL:  # after which nobody is left to say a word
        assert command.returncode == 128 + how
        assert f"stopped by {how.name}" in errors and "Traceback" not in errors
        assert "the same command resumes from it" in errors
    assert lost is None or not goes_on or re.search(LOST[lost], errors)
    again = run("distill", deterministic(models, name, roles="local"))
    assert again.returncode == 0 and "resuming from" in again.stderr, again.stderr
    found = numbers(directory)
    if "learner" not in cluster:
        assert found == undisturbed
        weights = [(models / each / "final" / "model.safetensors").read_bytes() for each in (name, "undisturbed")]
        assert weights[0] == weights[1]
    else:
        check_same_course(found, undisturbed)
    assert len(list((directory / "checkpoints").iterdir())) == 2


LOST = {
    "learner": r"the learner [01] died in .* starts again, and the run goes on from its checkpoint after \d+ steps",
    "raylet": r"Ray's node \(raylet\) has died; Ray starts again, and the run goes on from its checkpoint after \d+ steps",
}


def lose(run: Observed, kind: str) -> bool:
    """Kill a process of the run after its first checkpoint, and wait until it has taken a step again. False where Ray has ended
    the run with its node, which it does when that dies while they speak: the run then says so."""
    run.wait(lambda: run.steps() >= 5)
    at = run.kill(kind)
    while run.command.returncode is None and not (run.next_step(at) and re.search(LOST[kind], run.command.stderr)):
        assert time.time() < at + LIMIT, run.command.stderr
        time.sleep(0.1)
    if run.command.returncode is not None:
        time.sleep(1)
        assert kind == "raylet" and "the same command resumes it" in run.command.stderr
        return False
    print(f"{kind}: a step again {run.recovered(at):.1f} s after its death")
    return True


def check_same_course(found: list[dict[str, float]], undisturbed: list[dict[str, float]]) -> None:
    """The same steps and evaluations, but for sums of several ranks, which are added in another order."""
    assert [line["step"] for line in found] == [line["step"] for line in undisturbed]
    assert found[-1]["evaluation/reverse_kl"] == pytest.approx(undisturbed[-1]["evaluation/reverse_kl"], rel=0.05)
    ours, expected = (
        [line["loss/nats_per_token"] for line in lines if "loss/nats_per_token" in line] for lines in (found, undisturbed)
    )
    assert ours[:5] == pytest.approx(expected[:5], rel=1e-3)


def test_a_run_stopped_while_it_starts_leaves_nothing_behind(models: Path, nothing_left: Started) -> None:
    command = start("distill", write(models / "early.yaml", distill(models, "early", 5000)), fresh=True)
    try:
        for _ in range(LIMIT * 4):
            if any(nothing_left.folder.glob("minidist-*")):
                break
            time.sleep(0.25)
        time.sleep(1.5)  # Ray is starting
        command.process.send_signal(signal.SIGTERM)
        errors = command.wait(90).stderr
    finally:
        command.process.kill()
    assert command.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM" in errors and "Traceback" not in errors


def test_a_role_that_dies_without_supervision_ends_the_run_with_a_sentence(models: Path, nothing_left: Started) -> None:
    directory = models / "bereaved"
    config = distill(models, directory.name, 5000)
    config.setdefault("cluster", {})["supervision"] = {"enabled": False}
    command = start("distill", write(models / "bereaved.yaml", config), fresh=True)
    try:
        wait_for_steps(directory, command)
        hosts = [process for process in nothing_left.processes() if "ray::Host" in " ".join(process.cmdline())]
        assert len(hosts) == 3
        hosts[0].kill()
        errors = command.wait(60).stderr
    finally:
        command.process.kill()
    assert command.returncode == 1
    assert "minidist: the " in errors and " died in " in errors and "Traceback" not in errors
    assert list((directory / "logs").iterdir())


def wait_for_steps(directory: Path, command: Command, count: int = 3) -> None:
    for _ in range(LIMIT * 10):
        if command.returncode is not None:
            raise AssertionError(f"ended too early: {command.stderr}")
        if (directory / "metrics.jsonl").exists() and (directory / "metrics.jsonl").read_text().count("\n") >= count:
            return
        time.sleep(0.1)
    raise AssertionError("no step in time")
