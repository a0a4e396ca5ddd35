"""`minidist.run`: overrides as Python values, errors as exceptions, inside a running event loop, stopped by Ctrl-C."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import minidist
from minidist.errors import ConfigError, DataError, MinidistError, UserError
from minidist.notebook.start import _assignments, _error
from tests.support.trained import trained_tree

ROOT = Path(minidist.__file__).parents[1]


def assigned(**overrides: Any) -> dict[str, Any]:
    pairs = (each.partition("=") for each in _assignments(overrides))
    return {key: yaml.safe_load(value) for key, _, value in pairs}


def test_overrides_are_those_of_the_command_line() -> None:
    found = assigned(
        run={"steps": 20, "directory": Path("runs/a b")},
        objective={"type": "jsd", "beta": 0.3},
        method=None,
        streams={},
        **{"learner.optimizer.lr": 1e-5, "learner.optimizer.betas": (0.9, 0.99), "data.prompts.prompt": "a: #b\n'c'"},
    )
    assert found == {
        "run.steps": 20,
        "run.directory": "runs/a b",
        "objective": {"type": "jsd", "beta": 0.3},
        "method": None,
        "streams": {},
        "learner.optimizer.lr": 1e-5,
        "learner.optimizer.betas": [0.9, 0.99],
        "data.prompts.prompt": "a: #b\n'c'",
    }


def test_a_configuration_is_refused_before_anything_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", None)
    tree = trained_tree(tmp_path)
    with pytest.raises(ConfigError, match=r"^the configuration: .*run.stepz"):
        minidist.run(tree, run={"stepz": 1})
    with pytest.raises(ConfigError, match=r"^no configuration file at /nowhere.yaml"):
        minidist.run("/nowhere.yaml")
    with pytest.raises(ConfigError, match="stage is 'dance'"):
        minidist.run({"stage": "dance"})


def test_errors_are_those_of_the_command_line() -> None:
    sentence = deque(["a line", "minidist: no data file at x.jsonl"])
    assert type(_error(2, sentence)) is UserError and str(_error(2, sentence)) == "no data file at x.jsonl"
    assert type(_error(1, sentence)) is MinidistError
    assert "ended with signal 9; its last lines: a line" in str(_error(-9, deque(["a line"])))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[dict[str, Any]], "subprocess.Popen[str]"]]:
    """Starts a kernel whose cell runs a configuration; it is gone after the test."""
    started: list[subprocess.Popen[str]] = []

    def kernel(tree: dict[str, Any]) -> "subprocess.Popen[str]":
        file = tmp_path / "tree.json"
        file.write_text(json.dumps(tree))
        command = [sys.executable, "-m", "tests.support.notebook", str(file)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True, **pipes)
        started.append(process)
        return process

    yield kernel
    for process in started:
        process.kill()
        process.communicate()


def test_a_notebook_is_stopped_and_goes_on_and_its_end_ends_the_run(tmp_path: Path, start: Any) -> None:
    """The kernel has a running loop. Its stop button is SIGINT; the next one is killed, and its run stops by itself."""
    tree, metrics, log = (
        trained_tree(tmp_path, steps=100_000, checkpoint_every=None),
        "run/metrics.jsonl",
        tmp_path / "run/log.txt",
    )
    kernel = start(tree)
    wait_for(lambda: size(tmp_path / metrics) > 1000, kernel)
    kernel.send_signal(signal.SIGINT)
    printed, _ = kernel.communicate(timeout=60)
    assert kernel.returncode == 0 and "KeyboardInterrupt was raised" in printed and "Traceback" not in printed
    assert "the same command resumes from it" in printed
    taken = size(tmp_path / metrics)
    kernel = start(tree)
    wait_for(lambda: "resuming from" in log.read_text() and size(tmp_path / metrics) > taken + 1000, kernel)
    kernel.kill()
    wait_for(lambda: log.read_text().count("the same command resumes from it") == 2)


def test_an_error_of_the_run_is_raised(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = trained_tree(tmp_path)
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(UserError, match=r"no data file or directory at .*rows.jsonl") as found:
        minidist.run(tree)
    assert not isinstance(found.value, DataError) and not re.search("Traceback|/minidist-", capsys.readouterr().out)


def size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def wait_for(holds: Callable[[], bool], kernel: "subprocess.Popen[str] | None" = None) -> None:
    """Until something holds; the kernel lives as long."""
    deadline = time.monotonic() + 120
    while not holds():
        assert (kernel is None or kernel.poll() is None) and time.monotonic() < deadline
        time.sleep(0.05)
