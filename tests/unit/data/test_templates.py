"""Templates over rows: their loops end."""

import pickle

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from minidist.data import sandbox
from minidist.data.chat_template import ChatTemplate
from minidist.data.sandbox import TooMuchError
from minidist.data.templates import BadRow, Template
from minidist.data.values import Number
from minidist.errors import ConfigError, DataError


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
    assert [long.fill({}) for _ in range(4)] == [""] * 4


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


BOMBS = [
    "{{ 'x' * 200000000 }}",
    "{{ 9 ** 999 ** 999 }}",
    "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x | string }}",
    "{% set n = namespace() %}{% set n.x = [n] %}{{ n.x | string }}",
    "{{ 'x' | center(10 ** 9) }}",
    "{{ 'x'.ljust(10 ** 9) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:{w}}'.format(1, w=999999999) }}",
    "{{ range(90000) | map('string') | join('x' * 90000) }}",
    "{{ ('a' * 100000).translate({97: 'x' * 100000}) }}",
    "{{ 5 | round(-100000000, 'ceil') }}",
    "{% set step = 1 %}{% set environment = 1 %}{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "{% set x %}{% for i in range(99999) %}" + "x" * 100000 + "{% endfor %}{% endset %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
]


@pytest.mark.parametrize("source", BOMBS, ids=range(len(BOMBS)))
def test_a_template_that_would_fill_the_memory_or_never_end_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_MOST_WORK", 10_000_000)
    with pytest.raises(BadRow, match=r"TooMuchError: it (computes|makes|rounds)"):
        Template(source, "prompt").fill({})
    with pytest.raises(TooMuchError):
        ChatTemplate(source, {}).write([{"role": "user", "content": "a"}], None, asking=True)


@pytest.mark.parametrize("source", ["(" * 2000, "not " * 5000 + "1", "9" * 5000, "1" + "+1" * 9000])
def test_a_template_that_no_parser_takes_is_refused(source: str) -> None:
    with pytest.raises(ConfigError, match="prompt is not a valid Jinja template"):
        Template(f"{{{{ {source} }}}}", "prompt")
    with pytest.raises(ConfigError, match="prompt is not a valid Jinja template"):
        Template("{% for a in b %}" * 30 + "{% endfor %}" * 30, "prompt")


def test_bounded_templates_write_what_jinja_writes() -> None:
    source = (
        "{{ (a ~ '1')[0:2] }}{{ a in ['x', a] and a == 'ab' }}{{ '%s-%d' | format(a, 3) }}{{ '{}'.format(a) }}"
        "{{ a.replace('a', 'c') | upper }}{{ 2 ** 10 }}{{ 3 * 'ab' }}{{ {'k': a}['k'] }}"
        "{% for x, y in [(1, a)] %}{{ x }}{{ y }}{% endfor %}"
        "{{ [a, 'z'] | join(',') }}{{ [3, 1] | sort | first }}{{ 'a b' | title }}{{ 7 // 2 }}{{ 7 % 4 }}"
    )
    plain = ImmutableSandboxedEnvironment().from_string(source).render(a="ab").replace("True", "true")
    assert Template(source, "prompt").fill({"a": "ab"}) == plain


def test_a_chat_template_crosses_processes() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% generation %}{{ m.content }}{{ end }}{% endgeneration %}{% endfor %}", {"end": "."}
    )
    messages = [{"role": "user", "content": "a"}]
    assert pickle.loads(pickle.dumps(template)).write(messages, None, asking=False) == "a."
