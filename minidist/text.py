"""Text that others wrote (data, models, servers, configurations), made fit for a message, a terminal or a page."""

import os
import re
from typing import Any

_TURNING = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"
_HIDDEN = re.compile(f"[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\u2028\u2029\ud800-\udfff{_TURNING}]")
_SECRET_NAME = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_LONGEST_MESSAGE = 2000
# In http a password may hold a slash; in other addresses an @ behind a slash names a revision.
_PASSWORD = re.compile(r"(https?://)[^\s'\"<>]{0,500}@|(?<=://)[^\s/'\"<>]{0,500}@")
_hidden_values: set[str] = set()


def readable(text: str) -> str:
    """Text without what moves a terminal's cursor, turns its writing, or cannot be written: \ufffd in its place. Line
    breaks and tabs stay."""
    return _HIDDEN.sub("\ufffd", text)


def shown(text: str, longest: int = 300) -> str:
    """A text for a message: in one line, readable, at most `longest` characters, without passwords."""
    return without_secrets(readable(" ".join(text[: 10 * longest].split())))[:longest]


def brief(value: Any, longest: int = 200) -> str:
    """`repr` of a value for a message, of at most `longest` characters; of a number too long to be written, its size."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python writes no whole number of more than 4,300 digits
        bits = value.bit_length() if isinstance(value, int) else 0
        text = f"a whole number of {bits:,} bits" if bits else f"a {type(value).__name__} that cannot be written"
    return text if len(text) <= longest else f"{text[: longest - 4]} ..."


def message(text: str, longest: int = _LONGEST_MESSAGE) -> str:
    """A text as an error shows it: readable, without secrets; of a long one, the beginning and the end, where the remedy is."""
    if len(text) > 40 * longest:
        text = f"{text[: 20 * longest]} {text[-20 * longest :]}"
    text = without_secrets(readable(text))
    return text if len(text) <= longest else f"{text[: longest * 2 // 3]} ... {text[-longest // 3 :]}"


def without_secrets(text: str) -> str:
    """A text whose addresses show neither user nor password, and which shows no secret of the environment, as `secret_name`
    knows them, and none that `hide` was given."""
    text = _PASSWORD.sub(r"\1...@", text)
    secrets = {value for name, value in os.environ.items() if secret_name(name) and _is_secret(value)}
    for secret in sorted(secrets | _hidden_values, key=len, reverse=True):
        text = text.replace(secret, "...")
    return text


def secret_name(name: str) -> bool:
    """Whether the name of an environment variable says that it holds a secret, as HF_TOKEN and WANDB_API_KEY do."""
    return _SECRET_NAME.search(name) is not None


def hide(secret: str) -> None:
    """Show a secret in no message from now on."""
    if _is_secret(secret):
        _hidden_values.add(secret)


def _is_secret(value: str) -> bool:
    """Whether a value is long enough to be told from other text, and no path."""
    return len(value) >= 8 and not value.startswith(("/", "."))
