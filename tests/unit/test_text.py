"""Text that others wrote, in messages and on terminals: readable, bounded, without secrets."""

import logging

import pytest

from minidist.errors import ConfigError, MinidistError, RoleError, RunDirectoryError
from minidist.run.tracking import log
from minidist.text import brief, hide, readable, shown


def test_what_moves_a_cursor_or_turns_text_is_not_shown() -> None:
    hostile = "a\x1b[31mb\x07c\u202ed\x9be\ud800f\r\u2028"
    assert readable(hostile) == "a\ufffd[31mb\ufffdc\ufffdd\ufffde\ufffdf\ufffd\ufffd"
    assert readable("line\n\tnext é 東京 🙂") == "line\n\tnext é 東京 🙂"


@pytest.mark.parametrize("kind", [ConfigError, RunDirectoryError, RoleError])
def test_every_error_shows_text_of_others_readable_and_bounded(kind: type[MinidistError]) -> None:
    message = str(kind("column \x1b]0;title\x07" + "x" * 100_000 + " set another column"))
    assert "\x1b" not in message and "\x07" not in message
    assert len(message) < 2100 and message.startswith("column") and message.endswith("set another column")


def test_a_sentence_of_a_user_error_is_one_line() -> None:
    assert str(ConfigError("the key\n  'a'\tis\r\nunknown")) == "the key 'a' is\ufffd unknown"
    assert str(RoleError("first\nsecond")) == "first\nsecond"


def test_addresses_and_secrets_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("SHORT_KEY", "12")
    hide("server-key-of-another-name")
    text = "http://user:sec/ret@host and s3://a:b@c/d, hf://datasets/a@main: 0123456789abcdef, 12, server-key-of-another-name"
    assert str(RoleError(text)) == "http://...@host and s3://...@c/d, hf://datasets/a@main: ..., 12, ..."
    assert "secret" not in shown(text)


def test_the_log_shows_what_errors_show(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    with caplog.at_level(logging.INFO, "minidist"):
        log.info("column %s of %s", "\x1b[31m", "hf_abcdefgh")
    assert set(caplog.messages) == {"column \ufffd[31m of ..."}


def test_a_value_is_shown_in_brief() -> None:
    assert brief("a") == "'a'" and len(brief("x" * 9999)) == 200
    assert brief(10**9999) == "a whole number of 33,216 bits"
    assert brief([10**9999]) == "a list that cannot be written"
