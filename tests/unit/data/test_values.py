"""Values of a row keep the text that they have in the file."""

import json
import pickle
from typing import Any

import pytest

from minidist.data.values import ClassNumber, Null, Number, as_text, read_json, to_json

WRITTEN = ["1.50", "1e400", "-0", "-0.0", "12345678901234567890123", "0.1", "1E5", "true", "false", "null", '"007"', '"é"']


@pytest.mark.parametrize("text", [*WRITTEN, "[1.50, null, true]", '{"a": {"b": [1.10, "x"]}}', "1" * 5000])
def test_json_is_written_as_it_was_read(text: str) -> None:
    assert to_json(read_json(text)) == text


@pytest.mark.parametrize("text", WRITTEN)
def test_a_single_value_is_filled_in_as_the_file_has_it(text: str) -> None:
    shown = {"null": "", '"007"': "007", '"é"': "é"}.get(text, text)
    assert as_text(read_json(text)) == shown


def test_json_can_be_indented() -> None:
    value = {"a": [1, {"b": []}], "c": "x"}
    assert to_json(value, indent=2) == json.dumps(value, indent=2)


def test_a_number_is_a_number() -> None:
    assert Number("1.50") * 2 == 3.0 and Number("1.50") == 1.5


@pytest.mark.parametrize("value", [Number("1.50"), Null(), ClassNumber(1, ("no", "yes"))])
def test_a_value_crosses_processes_as_it_is(value: Any) -> None:
    """Rows are pickled on their way to the workers of a pipeline."""
    found = pickle.loads(pickle.dumps(value))
    assert type(found) is type(value) and found == value and str(found) == str(value) and vars(found) == vars(value)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "{", "[1,]", "'a'"])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_json(text)
