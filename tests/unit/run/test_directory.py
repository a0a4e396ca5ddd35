"""A run's directory: new, finished, to be gone on with, or refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from minidist.config import SftConfig
from minidist.errors import RunDirectoryError
from minidist.run.directory import RunDirectory


def run_in(place: Path, steps: int = 5, **run: Any) -> RunDirectory:
    student = {"architecture": {"model_type": "llama"}, "tokenizer": "characters:sort"}
    data = {"train": {"path": "task:sort"}}
    tree = {"stage": "sft", "run": {"directory": str(place), "steps": steps} | run, "student": student, "data": data}
    return RunDirectory(SftConfig.model_validate(tree))


def started(place: Path, **run: Any) -> RunDirectory:
    directory = run_in(place, **run)
    directory.start()
    return directory


def end(directory: RunDirectory) -> None:
    """What the end of a process that was killed does."""
    directory._lock.close()


def test_new(tmp_path: Path) -> None:
    directory = run_in(tmp_path / "a" / "b")
    directory.check()
    assert not directory.finished()
    directory.start()
    assert json.loads((directory.path / "config.json").read_text())["run"]["steps"] == 5
    assert directory.summary is None
    assert directory.final == tmp_path / "a" / "b" / "final"


def test_empty_directory_is_new(tmp_path: Path) -> None:
    run_in(tmp_path).start()
    assert (tmp_path / "config.json").is_file()


def test_unfinished_run_starts_again(tmp_path: Path) -> None:
    end(started(tmp_path / "run"))
    (tmp_path / "run" / "metrics.jsonl").write_text("{}")
    again = run_in(tmp_path / "run")
    again.check()
    assert not again.finished()
    again.start()
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_finished_run_is_finished(tmp_path: Path) -> None:
    directory = run_in(tmp_path / "run")
    directory.start()
    directory.finish({"steps": 5})
    again = run_in(tmp_path / "run")
    again.check()
    assert again.finished()
    assert again.summary == {"steps": 5}


def test_other_configuration_is_refused_with_both_values(tmp_path: Path) -> None:
    run_in(tmp_path / "run").start()
    other = run_in(tmp_path / "run", steps=6)
    for refused in (other.check, other.start):
        with pytest.raises(RunDirectoryError, match=r"run.steps was 5 and is now 6; .*run.overwrite=true"):
            refused()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["steps"] == 5


def test_key_of_another_version_is_named(tmp_path: Path) -> None:
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


def test_overwrite_itself_is_no_difference(tmp_path: Path) -> None:
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


def test_one_process_at_a_time(tmp_path: Path) -> None:
    first = started(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("precious")
    for other in (run_in(tmp_path), run_in(tmp_path, overwrite=True)):
        with pytest.raises(RunDirectoryError, match="another process is running"):
            other.start()
    assert (tmp_path / "metrics.jsonl").read_text() == "precious"
    first.finish({"steps": 5})
    run_in(tmp_path, overwrite=True).start()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_free_only_once_the_summary_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else another process could take the directory for that of an unfinished run, and empty it."""
    first, other = started(tmp_path), run_in(tmp_path)
    written, refused = Path.write_text, []

    def write_text(file: Path, *arguments: Any, **options: Any) -> int:
        if file.name.startswith("summary."):
            with pytest.raises(RunDirectoryError, match="another process is running"):
                other.start()
            refused.append(file)
        return written(file, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", write_text)
    first.finish({"steps": 5})
    assert len(refused) == 1 and run_in(tmp_path).finished()


HOLDER = """
import fcntl, sys, time
held = open(sys.argv[1], "w")
fcntl.flock(held, fcntl.LOCK_EX)
print("held", flush=True)
time.sleep(60)
"""


def test_a_killed_process_frees_it(tmp_path: Path) -> None:
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
