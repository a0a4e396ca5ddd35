"""Templates over rows: their loops end."""

import pickle

import pytest

from minidist.data import sandbox
from minidist.data.templates import BadRow, Template
from minidist.data.values import Number
from minidist.errors import DataError


def test_loops_write_what_they_did() -> None:
    assert (
        Template("{% for a in x %}{{ a }}{{ loop.index }}{% else %}none{% endfor %}", "prompt").fill({"x": ["p", "q"]})
        == "p1q2"
    )
    nested = Template("{% for a in x recursive %}{{ a.n }}{{ loop(a.c) if a.c }}{% endfor %}", "prompt")
    assert nested.fill({"x": [{"n": "p", "c": [{"n": "q", "c": []}]}]}) == "pq" and nested.columns == {"x"}


def test_nested_loops_are_bounded_and_counted_anew_for_each_row() -> None:
    endless = Template("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "prompt")
    with pytest.raises(BadRow, match="computes more than any text needs"):
        endless.fill({})
    long = Template("{% for a in range(90000) %}{% endfor %}", "prompt")
    assert [long.fill({}) for _ in range(13)] == [""] * 13


def test_filters_of_loops_and_macros_write_what_they_did() -> None:
    filtered = Template("{% for a in x if a > 1 %}{{ a }}{{ loop.last }}{% else %}none{% endfor %}", "prompt")
    assert filtered.fill({"x": [1, 2, 3]}) == "2false3true" and filtered.fill({"x": [1]}) == "none"
    recursive = "{% macro m(n) %}<{{ n }}{{ m(n - 1) if n }}>{% endmacro %}{{ m(2) }}"
    assert Template(recursive, "prompt").fill({}) == "<2<1<0>>>"
    called = "{% macro m() %}<{{ caller() }}>{% endmacro %}{% call m() %}!{% endcall %}"
    assert Template(called, "prompt").fill({}) == "<!>"


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(200) %}{% for b in range(9999) if b < 0 %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    ],
)
def test_entries_that_a_filter_leaves_out_and_calls_of_macros_are_bounded(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_MOST_WORK", 1_000_000)
    with pytest.raises(BadRow, match="computes more than any text needs"):
        Template(source, "prompt").fill({})


@pytest.mark.parametrize("value", ["a{{ b }}", 1.50, True, None, Number("1.50"), "half \ud800", ["a"], {"a": 1}, b"a"])
def test_a_column_alone_is_filled_in_as_jinja_fills_it_in(value: object) -> None:
    def filled(source: str, row: dict[str, object]) -> str:
        try:
            return Template(source, "prompt", str.upper).fill(row)
        except BadRow as error:
            return str(error).replace(source, "SOURCE")

    assert filled("{{ x }}", {"x": value}) == filled("{% if true %}{{ x }}{% endif %}", {"x": value})
    assert filled("{{ x }}", {}) == filled("{% if true %}{{ x }}{% endif %}", {}) == ""


def test_a_template_crosses_processes() -> None:
    template = Template("{% for n in given %}{{ n }}{{ word }}{% endfor %}", "prompt", str.upper, frozenset({"given"}))
    copy = pickle.loads(pickle.dumps(template))
    row = {"given": [1, 2], "word": "a"}
    assert copy.fill(row) == template.fill(row) == "1A2A"
    copy.check(["word"], "rows.jsonl")
    with pytest.raises(DataError, match="no column 'word', which prompt uses"):
        copy.check([], "rows.jsonl")
