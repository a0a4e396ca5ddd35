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


def test_version_and_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert left_with(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"minidist {__version__}\n"
    assert left_with(monkeypatch, "--help") == 0
    shown = capsys.readouterr().out
    assert [verb for verb in ("sft", "distill", "evaluate", "compare", "check", "doctor", "sample") if verb not in shown] == []


@pytest.mark.parametrize("verb", ["sft", "distill", "evaluate", "compare", "check"])
def test_what_the_user_can_mend_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, verb: str
) -> None:
    file = tmp_path / "none.yaml"
    assert left_with(monkeypatch, verb, str(file)) == 2
    assert capsys.readouterr().err == f"minidist: no configuration file at {file}\n"
    file.write_text(yaml.safe_dump({"stage": "sft"}))
    assert left_with(monkeypatch, verb, str(file)) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("error", "code"), [(ConfigError, 2), (CanaryError, 1), (DivergedError, 1), (RoleError, 1)])
def test_error_decides_the_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: type[MinidistError], code: int
) -> None:
    def fail(*_: object) -> None:
        raise error("it happened")

    monkeypatch.setattr(cli, "_run", fail)
    assert left_with(monkeypatch, "sft", "any.yaml") == code
    assert capsys.readouterr().err == "minidist: it happened\n"


def test_sample_of_nothing_is_one_line_and_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert left_with(monkeypatch, "sample", str(tmp_path / "none")) == 2
    assert capsys.readouterr().err == f"minidist: no run directory at {tmp_path / 'none'}\n"
