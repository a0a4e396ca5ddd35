"""The command line: codes, one-sentence refusals, and where they are written."""

from pathlib import Path

import pytest
import yaml

from minidist import __version__, cli
from minidist.errors import CanaryError, ConfigError, DivergedError, MinidistError, RoleError


def left_with(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `minidist ARGUMENTS`, run in this process."""
    monkeypatch.setattr("sys.argv", ["minidist", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


def test_version_and_help_list_every_verb(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert left_with(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"minidist {__version__}\n"
    assert left_with(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    assert [
        verb
        for verb in ("sft", "distill", "evaluate", "score", "compare", "check", "doctor", "sample", "plan", "submit", "jobs")
        if verb not in shown
    ] == []


@pytest.mark.parametrize("verb", ["sft", "distill", "evaluate", "score", "compare", "check", "plan"])
def test_a_configuration_error_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str
) -> None:
    file = tmp_path / "none.yaml"
    assert left_with(monkeypatch, verb, str(file)) == 2
    assert capsys.readouterr().err == f"minidist: no configuration file at {file}\n"
    file.write_text(yaml.safe_dump({"stage": "sft"}))
    assert left_with(monkeypatch, verb, str(file)) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_file_for_another_verb_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "toy.yaml"
    toy = {"stage": "toy", "run": {"directory": "runs/toy"}, "teachers": {"zipf": {"type": "zipf"}}}
    file.write_text(yaml.safe_dump(toy | {"divergences": {"forward_kl": {}}}))
    assert left_with(monkeypatch, "distill", str(file)) == 2
    assert capsys.readouterr().err.endswith("toy.yaml is a configuration for `minidist compare`, not for `minidist distill`\n")


@pytest.mark.parametrize(("error", "code"), [(ConfigError, 2), (CanaryError, 1), (DivergedError, 1), (RoleError, 1)])
def test_the_class_of_an_error_decides_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[MinidistError], code: int
) -> None:
    def fail(*_: object) -> None:
        raise error("it happened")

    monkeypatch.setattr(cli, "_run", fail)
    assert left_with(monkeypatch, "sft", "any.yaml") == code
    assert capsys.readouterr().err == "minidist: it happened\n"


def test_sample_without_a_run_directory_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert left_with(monkeypatch, "sample", str(tmp_path / "none")) == 2
    assert capsys.readouterr().err == f"minidist: no run directory at {tmp_path / 'none'}\n"
