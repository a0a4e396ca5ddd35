"""Templates over rows: their loops end."""

import pytest

from minidist.data.templates import BadRow, Template


def test_loops_write_what_they_did() -> None:
    assert (
        Template("{% for a in x %}{{ a }}{{ loop.index }}{% else %}none{% endfor %}", "prompt").fill({"x": ["p", "q"]})
        == "p1q2"
    )
    nested = Template("{% for a in x recursive %}{{ a.n }}{{ loop(a.c) if a.c }}{% endfor %}", "prompt")
    assert nested.fill({"x": [{"n": "p", "c": [{"n": "q", "c": []}]}]}) == "pq" and nested.columns == {"x"}


def test_nested_loops_are_bounded_and_counted_anew_for_each_row() -> None:
    endless = Template("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}", "prompt")
    with pytest.raises(BadRow, match="prompt takes more than 1,000,000 steps in its loops"):
        endless.fill({})
    long = Template("{% for a in range(90000) %}{% endfor %}", "prompt")
    assert [long.fill({}) for _ in range(13)] == [""] * 13
