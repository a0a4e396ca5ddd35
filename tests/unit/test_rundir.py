"""A run's directory: new, finished, or refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from minidist.config import SftConfig
from minidist.errors import RunDirectoryError
from minidist.rundir import RunDirectory


def run_in(place: Path, steps: int = 5, **run: Any) -> RunDirectory:
    student = {"architecture": {"model_type": "llama"}, "tokenizer": "characters:sort"}
    data = {"train": {"path": "task:sort"}}
    tree = {"stage": "sft", "run": {"directory": str(place), "steps": steps} | run, "student": student, "data": data}
    return RunDirectory(SftConfig.model_validate(tree))


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
    run_in(tmp_path / "run").start()
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
        with pytest.raises(RunDirectoryError, match=r"run.steps is 5 there and 6 here; .*run.overwrite=true"):
            refused()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["run"]["steps"] == 5


def test_key_of_another_version_is_named(tmp_path: Path) -> None:
    run_in(tmp_path / "run").start()
    file = tmp_path / "run" / "config.json"
    tree = json.loads(file.read_text())
    tree["run"]["colour"] = "red"
    file.write_text(json.dumps(tree))
    with pytest.raises(RunDirectoryError, match=r"run.colour is 'red' there and None here"):
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
