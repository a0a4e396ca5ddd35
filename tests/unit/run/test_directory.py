"""A run's directory: new, finished, unfinished and resumed, or refused."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minidist.config import DistillConfig, SftConfig
from minidist.errors import RunDirectoryError
from minidist.run import files
from minidist.run.directory import RunDirectory


def run_in(path: Path, steps: int = 5, **run: Any) -> RunDirectory:
    student = {"architecture": {"model_type": "llama"}, "tokenizer": "characters:sort"}
    data = {"train": {"path": "task:sort"}}
    tree = {"stage": "sft", "run": {"directory": str(path), "steps": steps} | run, "student": student, "data": data}
    return RunDirectory(SftConfig.model_validate(tree))


def started(path: Path, **run: Any) -> RunDirectory:
    directory = run_in(path, **run)
    directory.start()
    return directory


def end(directory: RunDirectory) -> None:
    """Release the lock, as the end of a killed process does."""
    directory._lock.close()


def test_a_new_directory_is_made_with_its_configuration(tmp_path: Path) -> None:
    directory = run_in(tmp_path / "a" / "b")
    directory.check()
    assert not directory.finished()
    directory.start()
    assert json.loads((directory.path / "config.json").read_text())["run"]["steps"] == 5
    assert directory.summary is None
    assert directory.final == tmp_path / "a" / "b" / "final"


def test_an_empty_directory_is_new(tmp_path: Path) -> None:
    run_in(tmp_path).start()
    assert (tmp_path / "config.json").is_file()


def test_a_run_without_a_checkpoint_starts_again(tmp_path: Path) -> None:
    end(started(tmp_path / "run"))
    (tmp_path / "run" / "metrics.jsonl").write_text("{}")
    again = run_in(tmp_path / "run")
    again.check()
    assert not again.finished()
    again.start()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_run_with_a_summary_is_finished(tmp_path: Path) -> None:
    directory = run_in(tmp_path / "run")
    directory.start()
    summary = directory.finish({"steps": 5})
    again = run_in(tmp_path / "run")
    again.check()
    assert again.finished()
    assert again.summary == summary and summary.keys() == {"stage", "seconds", "steps"}
    assert (summary["stage"], summary["steps"]) == ("sft", 5) and 0 <= summary["seconds"] < 60


def test_another_configuration_is_refused_with_both_values(tmp_path: Path) -> None:
    run_in(tmp_path / "run").start()
    other = run_in(tmp_path / "run", seed=6)
    for refused in (other.check, other.start):
        with pytest.raises(RunDirectoryError, match=r"run.seed was 0 and is now 6; .*run.overwrite=true"):
            refused()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["seed"] == 0


def test_a_shared_directory_keeps_its_cells_until_it_is_overwritten(tmp_path: Path) -> None:
    cell = tmp_path / "cells" / "a-seed0"
    cell.mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(run_in(tmp_path)._resolved))
    directory = run_in(tmp_path)
    directory.share()
    assert cell.is_dir()
    end(directory)
    run_in(tmp_path, overwrite=True).share()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json"]


def test_a_key_of_another_version_is_named(tmp_path: Path) -> None:
    run_in(tmp_path / "run").start()
    file = tmp_path / "run" / "config.json"
    tree = json.loads(file.read_text())
    tree["run"]["colour"] = "red"
    file.write_text(json.dumps(tree))
    with pytest.raises(RunDirectoryError, match=r"run.colour was 'red' and is now None"):
        run_in(tmp_path / "run").check()


def test_foreign_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunDirectoryError, match=r"holds files but no run; set run.directory"):
        run_in(tmp_path).start()
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_overwrite_deletes_the_other_run(tmp_path: Path) -> None:
    first = run_in(tmp_path / "run")
    first.start()
    first.finish({})
    other = run_in(tmp_path / "run", steps=6, overwrite=True)
    assert not other.finished()
    other.start()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["steps"] == 6
    assert other.summary is None


def test_overwrite_itself_is_not_a_difference(tmp_path: Path) -> None:
    first = run_in(tmp_path / "run", overwrite=True)
    first.start()
    first.finish({})
    again = run_in(tmp_path / "run")
    again.check()
    assert again.finished()


def test_overwrite_spares_files_that_no_run_wrote(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunDirectoryError):
        run_in(tmp_path, overwrite=True).start()
    assert (tmp_path / "thesis.txt").exists()


def test_a_run_half_deleted_is_still_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end(started(tmp_path))
    for name in ("a", "m", "z"):
        (tmp_path / name).mkdir()

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            run_in(tmp_path).start()
    assert run_in(tmp_path).start() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json"]


def test_one_process_at_a_time_runs_in_a_directory(tmp_path: Path) -> None:
    first = started(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("precious")
    for other in (run_in(tmp_path), run_in(tmp_path, overwrite=True)):
        with pytest.raises(RunDirectoryError, match="another process is running"):
            other.start()
    assert (tmp_path / "metrics.jsonl").read_text() == "precious"
    first.finish({"steps": 5})
    run_in(tmp_path, overwrite=True).start()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_directory_is_locked_until_the_summary_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise another process could mistake the run for an unfinished one and delete its files."""
    first, other = started(tmp_path), run_in(tmp_path)
    written, refused = files.write_text, []

    def write_text(file: Path, text: str) -> None:
        if file.name.startswith("summary."):
            with pytest.raises(RunDirectoryError, match="another process is running"):
                other.start()
            refused.append(file)
        written(file, text)

    monkeypatch.setattr(files, "write_text", write_text)
    first.finish({"steps": 5})
    assert len(refused) == 1 and run_in(tmp_path).finished()


HOLDER = """
import fcntl, sys, time
held = open(sys.argv[1], "w")
fcntl.flock(held, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_a_killed_process_unlocks_the_directory(tmp_path: Path) -> None:
    end(started(tmp_path))
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(RunDirectoryError, match="another process is running"):
            run_in(tmp_path).start()
    finally:
        holder.kill()
        holder.communicate()
    run_in(tmp_path).start()


class Files:
    """A learner whose checkpoint is one file."""

    async def save(self, path: Path) -> dict[str, str]:
        (path / "model.safetensors").write_text("weights")
        return {}

    async def save_state(self, path: Path) -> dict[str, str]:
        return {}


def stopped_after(path: Path, step: int, metrics: str, later: str = "", config: Any = None) -> RunDirectory:
    """A run that wrote a checkpoint, then more metrics, and was killed."""
    directory = RunDirectory(config) if config is not None else run_in(path)
    assert directory.start() is None
    (path / "metrics.jsonl").write_text(metrics + later)
    state = {"metrics_bytes": len(metrics.encode())}
    asyncio.run(directory.checkpoints.write(step, Files(), state))  # type: ignore[arg-type]
    end(directory)
    return directory


def test_a_run_resumes_from_its_checkpoint(tmp_path: Path) -> None:
    stopped_after(tmp_path, 3, '{"step": 1}\n{"step": 2, "name": "ä"}\n', '{"step": 3}\n{"st')
    (tmp_path / "best").mkdir()
    again = run_in(tmp_path)
    assert not again.finished()
    checkpoint = again.start()
    assert checkpoint is not None and (checkpoint.step, checkpoint.path.name) == (3, "step_000003")
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2, "name": "ä"}\n'
    assert (tmp_path / "best").is_dir()


@pytest.mark.parametrize("missing", [True, False])
def test_metrics_shorter_than_at_the_checkpoint_are_refused(tmp_path: Path, missing: bool) -> None:
    stopped_after(tmp_path, 3, "0123456789")
    file = tmp_path / "metrics.jsonl"
    file.unlink() if missing else file.write_text("012345678")
    with pytest.raises(RunDirectoryError, match=r"metrics.jsonl is shorter than when step_000003 .*run.overwrite=true"):
        run_in(tmp_path).start()


def test_overwrite_does_not_resume(tmp_path: Path) -> None:
    stopped_after(tmp_path, 3, "0123456789")
    assert run_in(tmp_path, overwrite=True).start() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json"]


def test_a_run_of_damaged_checkpoints_is_not_deleted(tmp_path: Path) -> None:
    stopped_after(tmp_path, 3, "0123456789")
    (tmp_path / "checkpoints" / "step_000003" / "model.safetensors").write_text("Weights")
    with pytest.raises(RunDirectoryError, match="every checkpoint"):
        run_in(tmp_path).start()
    assert (tmp_path / "metrics.jsonl").read_text() == "0123456789"


def distill(path: Path, changes: dict[str, Any] | None = None) -> DistillConfig:
    tree: dict[str, Any] = {
        "stage": "distill",
        "run": {"directory": str(path)},
        "student": {"model": "student"},
        "teacher": {"model": "teacher"},
        "data": {"prompts": {"path": "task:sort"}},
        "objective": {"type": "reverse_kl"},
    }
    for key, value in (changes or {}).items():
        *sections, name = key.split(".")
        part = tree
        for section in sections:
            part = part.setdefault(section, {})
        part[name] = value
    return DistillConfig.model_validate(tree)


FREE: list[dict[str, Any]] = [
    {"cluster.learner.ranks": 2, "cluster.rollout.actors": 2, "cluster.teacher.cpus": 0.5},
    {"cluster.roles": "local", "cluster.gpus": 0, "cluster.threads": 1},
    {"cluster.gpus": 4, "cluster.address": "auto", "cluster.placement": "spread"},
    {"learner.backend": "single"},
    {"learner.zero_stage": 3, "learner.offload_optimizer": True, "learner.offload_parameters": True},
    {"learner.activation_checkpointing": True, "learner.micro_batch_tokens": 9, "learner.layout": "packed"},
    {"learner.chunk_tokens": 7},
    {"canaries.stop_on": ["truncated", "age"], "canaries.alarm_truncated": 0.9, "canaries.alarm_clip": None},
    {"run.checkpoint_every": 7, "run.checkpoints_kept": 9, "run.rollouts_every": 3, "run.tensorboard": False},
]


BOUND: list[dict[str, Any]] = [
    {"learner.optimizer.lr": 0.5},
    {"learner.optimizer.grad_clip": None},
    {"run.seed": 7},
    {"run.deterministic": True},
    {"prefix.student": 0.5, "prefix.teacher": 0.5},
    {"prefix.per": "step"},
    {"objective.temperature": 2.0},
    {"teacher.payload": "top_k"},
    {"rollout.max_new_tokens": 9},
    {"rollout.prompts_per_step": 9},
    {"streams.sft.data.path": "task:sort"},
    {"student.lora.rank": 2},
    {"evaluation.prompts": 3},
    {"canaries.every": 3},
]


@pytest.mark.parametrize("changes", FREE, ids=lambda changes: " ".join(changes))
def test_a_run_resumes_with_settings_that_change_no_numbers(tmp_path: Path, changes: dict[str, Any]) -> None:
    stopped_after(tmp_path, 3, "", config=distill(tmp_path))
    found = RunDirectory(distill(tmp_path, changes)).start()
    assert found is not None and found.step == 3


@pytest.mark.parametrize("changes", BOUND, ids=lambda changes: " ".join(changes))
def test_a_run_does_not_resume_with_settings_that_change_numbers(tmp_path: Path, changes: dict[str, Any]) -> None:
    stopped_after(tmp_path, 3, "", config=distill(tmp_path))
    key = next(iter(changes)).removesuffix(".data.path").removesuffix(".rank")
    with pytest.raises(RunDirectoryError, match=rf"holds a run of another configuration: {key} was .* and is now "):
        RunDirectory(distill(tmp_path, changes)).start()


def test_a_moved_run_resumes(tmp_path: Path) -> None:
    stopped_after(tmp_path / "a", 3, "", config=distill(tmp_path / "a"))
    (tmp_path / "a").rename(tmp_path / "b")
    found = RunDirectory(distill(tmp_path / "b")).start()
    assert found is not None and found.path.parent.parent == tmp_path / "b"


def finished_after(path: Path, steps: int, *, checkpoint: bool = True, planned: int | None = None) -> None:
    """A run that took all of its steps, or fewer than planned."""
    directory = run_in(path, steps=planned or steps)
    assert directory.start() is None
    (path / "metrics.jsonl").write_text("0123456789")
    if checkpoint:
        asyncio.run(directory.checkpoints.write(steps, Files(), {"metrics_bytes": 10}))  # type: ignore[arg-type]
    directory.finish({"steps": steps})


def test_a_finished_run_goes_on_with_more_steps(tmp_path: Path) -> None:
    finished_after(tmp_path, 5)
    assert run_in(tmp_path, steps=5).finished() and run_in(tmp_path, steps=5).earlier_steps is None
    more = run_in(tmp_path, steps=8)
    assert more.earlier_steps == 5 and not more.finished()
    found = more.start()
    assert found is not None and found.step == 5
    assert more.summary is None, "it is not finished any more"
    end(more)
    assert not run_in(tmp_path, steps=8).finished() and run_in(tmp_path, steps=8).earlier_steps is None
    found = run_in(tmp_path, steps=12).start()  # an unfinished run goes on too
    assert found is not None and found.step == 5


@pytest.mark.parametrize("unfinished", [False, True])
def test_a_run_does_not_go_back_to_fewer_steps(tmp_path: Path, unfinished: bool) -> None:
    finished_after(tmp_path, 5)
    if unfinished:
        (tmp_path / "summary.json").unlink()
    with pytest.raises(RunDirectoryError, match=r"run.steps is 4, and the run in .* has taken 5 already; raise it, or set"):
        run_in(tmp_path, steps=4).check()
    run_in(tmp_path, steps=4, overwrite=True).check()


def test_a_finished_run_without_a_checkpoint_is_not_deleted_to_go_on(tmp_path: Path) -> None:
    finished_after(tmp_path, 5, checkpoint=False)
    with pytest.raises(RunDirectoryError, match=r"run.steps is now 8, .* after 5 without a checkpoint to go on from; set stud"):
        run_in(tmp_path, steps=8).start()
    assert (tmp_path / "metrics.jsonl").read_text() == "0123456789"


def test_a_run_that_stopped_improving_has_no_more_steps_to_take(tmp_path: Path) -> None:
    finished_after(tmp_path, 5, planned=20)
    assert run_in(tmp_path, steps=30).finished() and run_in(tmp_path, steps=20).finished()


def not_a_file(file: Path, how: str) -> None:
    """In place of a file: a directory, a pipe, a link to nothing, bytes, deep JSON, or JSON of another shape."""
    file.unlink(missing_ok=True)
    if how == "directory":
        file.mkdir()
    elif how == "pipe":
        os.mkfifo(file)
    elif how == "link":
        file.symlink_to(file.parent / "nothing")
    else:
        texts = {"binary": b"\xff\x00\x80", "deep": b"[" * 100_000, "nested": b"[" * 400 + b"]" * 400, "list": b"[1]"}
        file.write_bytes((texts | {"null": b"null", "text": b'{"stage": 3, "run": [], "steps": "many", "step": "x"}'})[how])


HOW = ["directory", "pipe", "link", "binary", "deep", "nested", "list", "null", "text"]


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    "name", ["summary.json", "config.json", "checkpoints/step_000005/state.json", "checkpoints", "metrics.jsonl"]
)
def test_files_of_another_kind_are_refused_with_their_name(tmp_path: Path, name: str, how: str) -> None:
    finished_after(tmp_path, 5)
    if name == "checkpoints":
        shutil.rmtree(tmp_path / name)
    not_a_file(tmp_path / name, how)
    if name == "config.json":
        with pytest.raises(RunDirectoryError, match="holds files but no run"):
            run_in(tmp_path, steps=8).check()
    elif name == "metrics.jsonl" and how not in ("directory", "pipe", "link"):
        return  # any bytes are metrics
    elif name == "checkpoints" and how == "directory":
        with pytest.raises(RunDirectoryError, match="without a checkpoint to go on from"):
            run_in(tmp_path, steps=8).start()
    else:
        with pytest.raises(RunDirectoryError) as caught:
            directory = run_in(tmp_path, steps=8)
            directory.finished()
            directory.start()
        assert len(str(caught.value).splitlines()) == 1 and "; " in str(caught.value)


@pytest.mark.parametrize("where", ["{}/file/run", "{}/" + "a" * 300, "/proc/run"])
def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(RunDirectoryError, match=r"run.directory .* (is a file, or below one|cannot be used: )"):
        run_in(Path(where.format(tmp_path))).start()


def test_a_link_as_the_lock_is_refused_and_its_target_kept(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("years of work")
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RunDirectoryError, match=r"run.directory .* cannot be used: .lock is a symbolic link; set another"):
        run_in(tmp_path / "run").start()
    assert (tmp_path / "precious").read_text() == "years of work"


def test_the_content_of_a_lock_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("precious")
    run_in(tmp_path).start()
    assert (tmp_path / ".lock").read_text() == "precious"


def test_links_in_a_run_are_removed_without_what_they_name(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_text("precious")
    end(started(tmp_path / "run"))
    (tmp_path / "run" / "tensorboard").symlink_to(tmp_path / "elsewhere")
    run_in(tmp_path / "run").start()
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert (tmp_path / "elsewhere" / "file").read_text() == "precious"


@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts", "log.txt"])
def test_a_run_writes_through_no_symbolic_link(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir() if name == "rollouts" else outside.write_text("precious")
    end(started(tmp_path / "run"))
    (tmp_path / "run" / name).unlink(missing_ok=True)
    (tmp_path / "run" / name).symlink_to(outside)
    shared = run_in(tmp_path / "run")
    with pytest.raises(RunDirectoryError, match=f"{name} is a symbolic link, and a run writes through none"):
        shared.share()
    end(shared)
    run_in(tmp_path / "run").start()  # without a checkpoint it starts again
    assert outside.exists() and not (tmp_path / "run" / name).is_symlink()
    assert outside.is_dir() or outside.read_text() == "precious"
