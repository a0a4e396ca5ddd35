"""Slow: pip resolves the requirements of a machine with GPUs together with the project's own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.test_requirements import GPU

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_pip_resolves_the_requirements_of_a_gpu(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--dry-run", "--ignore-installed", "--quiet", "--report", str(report)]
    command = [sys.executable, "-m", "pip", "install", *options, "-r", "requirements/gpu.txt", "-e", "."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    installed = {
        each["metadata"]["name"].lower().replace("_", "-"): each["metadata"]
        for each in json.loads(report.read_text())["install"]
    }
    assert "minidist" in installed
    for name, number in GPU.items():
        assert installed[name]["version"].split("+")[0] == number
