"""Malformed inputs of every kind that minidist reads, and what each may lead to: success, or one sentence.

A kind is a strategy of inputs and a check. The check puts an input where minidist finds it, and reads it as a command does. Any
exception but minidist's own, a sentence too long or with control characters, a call beyond its deadline, and a file changed
outside the run directory fail.
"""

import asyncio
import gzip
import json
import lzma
import os
import shutil
import signal
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import yaml
from hypothesis import strategies as st
from pydantic import TypeAdapter

from minidist.config import difference, dump, load
from minidist.config.data import QuestionsConfig, SourceConfig
from minidist.config.task import TaskConfig
from minidist.config.teacher import ServerConfig
from minidist.data.labelled import read_labelled
from minidist.data.questions import read_questions
from minidist.data.rendering import Renderer
from minidist.data.sources import read_examples, read_prompts
from minidist.data.templates import Template
from minidist.errors import MinidistError
from minidist.learners.state import Piece, StateReader, save_state
from minidist.models.files import check_json, check_weights, resolve
from minidist.models.hub import load_config, load_model, load_tokenizer
from minidist.models.shape import read_shape
from minidist.pipelines.writers import _sample as read_sample
from minidist.report.page import Report
from minidist.run.checkpoint import Checkpoints
from minidist.run.directory import RunDirectory
from minidist.run.show import show
from minidist.teachers.cache.store import ScoreCache
from minidist.teachers.cache.writer import ScoreWriter
from minidist.teachers.payload import to_scores
from minidist.teachers.server.connection import Connection
from minidist.teachers.server.protocol import APIS, error_text
from minidist.teachers.server.wire import Question, Writing, tokenize
from minidist.types import Payload, Sampling, TeacherScores
from tests.support.config import TREES, teacher_config
from tests.support.hostile import ALIAS_BOMB, HOSTILE_TEXTS, MERGE_BOMB, YAML
from tests.support.server import Server
from tests.support.tiny import VOCABULARY, random_rollouts, save_pair, tiny_renderer

SECONDS = 20
"""Longest call, on a machine that other tests share."""
LONGEST = 2500
PRECIOUS = json.dumps({"step": 0, "text": "precious"}) + "\n"
"""Characters of a sentence."""


@dataclass(frozen=True)
class Kind:
    """Inputs, and the check of one, given a directory of its own. `found`: inputs that have failed."""

    inputs: st.SearchStrategy[Any]
    check: Callable[[Path, Any], None]
    found: tuple[Any, ...] = ()


class TooSlow(BaseException):
    """A call beyond its deadline."""


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def attempt(call: Callable[[], Any]) -> str | None:
    """The sentence in which a call refuses its input; None where it accepts it. Raises what a user would see as a traceback."""
    with deadline(SECONDS):
        try:
            call()
            return None
        except MinidistError as error:
            sentence = str(error)
        except OSError as error:
            if error.filename is None:
                raise
            return None  # the command line says it in a sentence
    assert sentence.strip() and len(sentence) <= LONGEST, f"{len(sentence)} characters: {sentence[:200]}"
    hidden = [letter for letter in sentence if unicodedata.category(letter) in ("Cc", "Cs") and letter not in "\n\t"]
    assert not hidden and "\u202e" not in sentence, ascii(sentence[:300])
    return sentence


def files_in(root: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of all files outside the run directory."""
    return {
        str(path.relative_to(root)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in root.rglob("*")
        if path.relative_to(root).parts[0] != "run" and not path.is_dir()
    }


@contextmanager
def place() -> Iterator[Path]:
    """An empty directory to work in, with a file beside it that nobody may change."""
    root, before = Path(tempfile.mkdtemp(prefix="malformed-")), Path.cwd()
    (root / "in").mkdir()
    (root / "precious").write_text(PRECIOUS)
    os.chdir(root / "in")
    try:
        yield root / "in"
        assert (root / "precious").read_text() == PRECIOUS and {path.name for path in root.iterdir()} == {"in", "precious"}
    finally:
        os.chdir(before)
        shutil.rmtree(root, ignore_errors=True)


# Values of other types, out of range, or hostile.

_numbers = st.one_of(
    st.integers(),
    st.sampled_from([-1, 0, 2**31, 2**63, -(2**63) - 1, 10**30, 10**400]),
    st.floats(),
    st.just(1e30),
    st.just(1e308),
)
_texts = st.one_of(st.text(max_size=20), st.sampled_from(HOSTILE_TEXTS))
leaves = st.one_of(st.none(), st.booleans(), _numbers, _texts)
values = st.recursive(
    leaves, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_texts, inner, max_size=3)), max_leaves=6
)
json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=10), st.sampled_from(HOSTILE_TEXTS)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=8,
)
deep_json = st.sampled_from(
    ["[" * 100_000, "[" * 3000 + "]" * 3000, '{"a":' * 500 + "1" + "}" * 500, "9" * 5000, "NaN", "1e999"]
)
raw_json = st.one_of(
    json_values.map(lambda value: json.dumps(value).encode()),
    deep_json.map(str.encode),
    st.binary(max_size=40),
    st.sampled_from([b"", b"\xff\xfe", b"null", b"[]", b"{}", b'{"a": 1', b"\xef\xbb\xbf{}", b'"\\ud800"']),
)


def paths_of(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value of a tree."""
    yield path
    if isinstance(tree, dict | list):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from paths_of(value, (*path, key))


def put(tree: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The tree with a value in a place; DELETED removes it."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    copied = dict(tree) if isinstance(tree, dict) else list(tree)
    if not rest and value is DELETED:
        del copied[key]
    else:
        copied[key] = put(copied[key], rest, None if value is DELETED else value)
    return copied


DELETED = object()


@st.composite
def mutated(draw: st.DrawFn, tree: Any, odd: st.SearchStrategy[Any] = values, most: int = 3) -> Any:
    """The tree with some of its values replaced, removed, or with others beside them."""
    for _ in range(draw(st.integers(1, most))):
        places = list(paths_of(tree))
        path = draw(st.sampled_from(places[1:] or places))
        how = draw(st.sampled_from(["replace", "replace", "remove", "beside"]))
        if how == "beside" and path and isinstance(path[-1], str):
            parent = path[:-1]
            section: Any = tree
            for key in parent:
                section = section[key]
            tree = put(tree, parent, section | {draw(_texts): draw(odd)})
        elif path:
            tree = put(tree, path, DELETED if how == "remove" else draw(odd))
        if not isinstance(tree, dict | list) or not tree:
            break
    return tree


# Configurations.

SECTIONS: dict[str, Any] = {
    "sft": {
        "learner": {"optimizer": {"betas": [0.9, 0.99], "lr": 1e-3}, "micro_batch_tokens": 64},
        "evaluation": {"every": 10},
    },
    "distill": {
        "rollout": {"engine": "hf", "max_new_tokens": 8, "temperature": 1.0, "teacher_mix": 0.2},
        "learner": {"optimizer": {"lr": 1e-3}},
        "cluster": {"roles": "local", "threads": 1},
        "streams": [{"path": "task:sort", "weight": 1.0, "objective": {"type": "supervised"}}],
        "prefix": {"student": 1.0},
        "canaries": {},
    },
    "teach": {"lesson": {"type": "lgtm"}, "teacher": {"model": "runs/teacher"}},
    "evaluate": {"seeds": [1, 2], "rollout": {"samples": 1}},
    "score": {"teacher": {"backend": "server", "payload": "top_k", "server": {"url": "http://127.0.0.1:1"}, "model": "t"}},
}
OVERRIDDEN = [
    "run.steps",
    "run.seed",
    "teacher.server.url",
    "student.model",
    "a.b.c",
    "run",
    "stage",
    "objective.type",
    "=",
    "",
    ".",
]


def whole(stage: str) -> dict[str, Any]:
    return TREES[stage] | SECTIONS.get(stage, {})


SHIPPED = [path for path in (Path(__file__).parents[2] / "configs").rglob("*.yaml") if path.parent.name != "prompts"]
BASES: dict[str, Any] = {stage: whole(stage) for stage in TREES}
BASES |= {str(path): yaml.safe_load(path.read_text()) for path in sorted(SHIPPED)}
"""The smallest configuration of each stage, and all that the repository has."""


@st.composite
def _configurations(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    base = BASES[draw(st.sampled_from(list(BASES)))]
    how = draw(st.sampled_from(["tree", "tree", "tree", "yaml", "bytes"]))
    if how == "tree":
        raw = yaml.safe_dump(draw(mutated(base))).encode("utf-8", "surrogatepass")
    elif how == "yaml":
        path = draw(st.sampled_from([path for path in paths_of(base) if path]))
        text = yaml.safe_dump(put(base, path, "PLACE"), default_flow_style=draw(st.booleans()))
        raw = text.replace("PLACE", draw(st.sampled_from(YAML))).encode()
    else:
        dumped = yaml.safe_dump(base).encode()
        cut = draw(st.integers(0, len(dumped)))
        changed = [dumped[:cut] + b"\xff" + dumped[cut:], dumped[:cut], dumped + b"\x00", b"", b"\xff\xfe" + dumped]
        raw = draw(st.sampled_from(changed))
        raw = draw(st.one_of(st.just(raw), st.binary(max_size=30), st.sampled_from([ALIAS_BOMB.encode(), MERGE_BOMB.encode()])))
    pair = st.builds(
        "{}={}".format, st.sampled_from(OVERRIDDEN), st.one_of(st.sampled_from(YAML[:60]), _texts, _numbers.map(_written))
    )
    return raw, draw(st.lists(st.one_of(pair, _texts), max_size=2))


def _written(number: Any) -> str:
    return str(number) if abs(number) < 10**300 or number != number else "1" + "0" * 400


def check_configuration(root: Path, example: tuple[bytes, list[str]]) -> None:
    raw, overrides = example
    (root / "config.yaml").write_bytes(raw)

    def read() -> None:
        config = load(root / "config.yaml", overrides)
        assert difference(dump(config), config) is None
        RunDirectory(config).finished()

    attempt(read)


# Data.

ROW_COLUMNS = ["prompt", "answer", "text", "messages", "references"]
rows = st.dictionaries(st.sampled_from(ROW_COLUMNS), st.one_of(values, st.sampled_from(["12=", "3"])), max_size=4)
TURNS = st.lists(
    st.dictionaries(
        st.sampled_from(["role", "content", "from", "value", "tool_calls"]), st.one_of(leaves, st.just("user")), max_size=3
    ),
    max_size=4,
)


def json_text(value: Any) -> bytes:
    return json.dumps(value).encode()


def packed(ending: str, raw: bytes) -> bytes:
    return gzip.compress(raw, mtime=0) if ending.endswith(".gz") else lzma.compress(raw) if ending.endswith(".xz") else raw


def parquet(table: dict[str, list[Any]]) -> bytes:
    import pyarrow
    from pyarrow import parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table(table), sink)
    return sink.getvalue().to_pybytes()


PARQUET = [
    {"prompt": [1, 2], "answer": [None, None]},
    {"prompt": [b"\xff\x00", b"a"], "answer": ["a", "b"]},
    {"prompt": [[1], [2]], "answer": [{"a": 1}, {"a": 2}]},
    {"prompt": [1.5, float("nan")], "answer": [True, False]},
    {"prompt": ["12=", "3="], "answer": ["12", "3"]},
    {"prompt": [None, None], "answer": [None, None]},
    {"x": []},
]


@st.composite
def _damaged(draw: st.DrawFn, raw: bytes) -> bytes:
    """Cut, flipped, or as it is."""
    how = draw(st.sampled_from(["as it is", "as it is", "cut", "flip", "insert"]))
    at = draw(st.integers(0, max(0, len(raw) - 1)))
    if how == "cut":
        return raw[:at]
    if how == "flip" and raw:
        return raw[:at] + bytes([raw[at] ^ (1 << draw(st.integers(0, 7)))]) + raw[at + 1 :]
    return raw[:at] + draw(st.binary(min_size=1, max_size=4)) + raw[at:] if how == "insert" else raw


@st.composite
def _data(draw: st.DrawFn) -> tuple[str, bytes, dict[str, Any]]:
    ending = draw(
        st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet", ".jsonl.gz", ".jsonl.xz", ".json.gz", ".odd"])
    )
    if ending == ".parquet":
        raw = parquet(draw(st.sampled_from(PARQUET)))
    elif ending.startswith((".csv", ".tsv")):
        raw = b"prompt,answer\n" + draw(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(lambda t: t.encode())))
    else:
        found = draw(st.lists(st.one_of(rows, st.fixed_dictionaries({"messages": TURNS})).map(json_text), max_size=3))
        lines = [
            *found,
            *draw(st.lists(raw_json, max_size=2)),
            *draw(st.lists(st.just(b'{"prompt": "12=", "answer": "3"}'), max_size=2)),
        ]
        raw = (b"[" + b",".join(lines) + b"]") if draw(st.booleans()) and "json" in ending else b"\n".join(lines)
        raw = draw(
            st.one_of(
                st.just(raw), st.just(raw.decode("utf-8", "replace").encode("utf-16")), st.just(raw + "\xe9".encode("latin-1"))
            )
        )
    settings: dict[str, Any] = draw(
        st.sampled_from(
            [
                {"prompt": "{{ prompt }}", "answer": "{{ answer }}"},
                {"prompt": "{{ prompt }}", "answer": "{{ answer }}", "bad_rows": "skip"},
                {"text": "{{ text }}"},
                {"messages": "messages"},
                {"messages": "messages", "labels": "last", "bad_rows": "skip"},
                {"prompt": "{{ prompt }}", "references": "references"},
                {"rows": 1},
                {"skip": 2},
            ]
        )
    )
    return ending, draw(_damaged(packed(ending, raw))), settings


CHAT = "{% for m in messages %}{{ m['role'][0:1] }}={{ m['content'] }}={% endfor %}"


@cache
def renderers() -> tuple[Renderer, Renderer]:
    """Without and with a chat template."""
    from minidist.config.data import RenderConfig

    tokenizer = tiny_renderer().tokenizer
    tokenizer.chat_template = CHAT
    return tiny_renderer(), Renderer(tokenizer, RenderConfig(), ())


TASKS: list[dict[str, Any]] = [
    {"type": "classes", "names": ["1", "2"], "text": "{{ prompt }}", "label": "answer"},
    {"type": "score", "text": "{{ prompt }}", "label": "answer"},
    {"type": "tokens", "prompt": "{{ prompt }}", "answer": "{{ answer }}"},
]


def check_data(root: Path, example: tuple[str, bytes, dict[str, Any]]) -> None:
    ending, raw, settings = example
    path = str(root / f"rows{ending}")
    Path(path).write_bytes(raw)
    for renderer in renderers():
        limits = {"max_prompt_tokens": 50, "max_tokens": 50}
        attempt(lambda: read_examples(SourceConfig(path=path, **settings), renderer, **limits))  # noqa: B023
        attempt(lambda: read_prompts(SourceConfig(path=path, **settings), renderer, max_prompt_tokens=50))  # noqa: B023
        for choices in ("references", ["1", "3"]):
            questions = QuestionsConfig(path=path, prompt="{{ prompt }}", answer="{{ answer }}", choices=choices)
            attempt(lambda: read_questions(questions, renderer, **limits))  # noqa: B023
    for tree in TASKS:
        task = TypeAdapter[Any](TaskConfig).validate_python(tree)
        attempt(lambda: read_labelled(task, SourceConfig(path=path)))  # noqa: B023


# Templates.

PIECES = [
    "prompt",
    "answer",
    "messages",
    "'x'",
    "1",
    "0",
    "-1",
    "10**9",
    "1.5",
    "none",
    "[prompt]",
    "{'a': prompt}",
    "range(99999)",
]
OPERATORS = ["+", "-", "*", "/", "//", "%", "**", "~", "in", "==", "<", "and", "is"]
FILTERS = [
    "abs",
    "attr('x')",
    "batch(10**9)",
    "capitalize",
    "center(10**9)",
    "count",
    "default('x')",
    "dictsort",
    "e",
    "escape",
    "filesizeformat",
    "first",
    "float",
    "forceescape",
    "format(1)",
    "groupby('a')",
    "indent(10**9)",
    "int",
    "items",
    "join('x'*99999)",
    "last",
    "length",
    "list",
    "lower",
    "map('upper')",
    "max",
    "min",
    "pprint",
    "random",
    "reject('x')",
    "replace('','x'*99999)",
    "reverse",
    "round(10**9)",
    "safe",
    "select('x')",
    "selectattr('a')",
    "slice(10**9)",
    "sort",
    "string",
    "striptags",
    "sum",
    "title",
    "tojson",
    "tojson(10**9)",
    "trim",
    "truncate(-1)",
    "unique",
    "upper",
    "urlencode",
    "urlize",
    "wordcount",
    "wordwrap(0)",
    "xmlattr",
    "nothing",
]
METHODS = [
    "upper()",
    "ljust(10**9)",
    "zfill(10**9)",
    "format(prompt)",
    "format_map(prompt)",
    "replace('','x'*99999)",
    "join(range(99999))",
    "encode()",
    "expandtabs(10**9)",
    "split('')",
    "__class__",
    "__init__.__globals__",
    "translate({97:'x'*99999})",
    "items()",
    "x.y.z",
    "[0]",
    "['a']",
    "[::-1]",
    "[10**9]",
    "(1)",
]
BLOCKS = [
    "{{% for a in {0} %}}{{{{ a }}}}{{% endfor %}}",
    "{{% for a in range(9999) %}}{{% for b in range(9999) %}}{{{{ {0} }}}}{{% endfor %}}{{% endfor %}}",
    "{{% if {0} %}}x{{% endif %}}",
    "{{% set x = {0} %}}{{{{ x }}}}",
    "{{% set n = namespace(x={0}) %}}{{% for i in range(99) %}}{{% set n.x=[n.x,n.x] %}}{{% endfor %}}{{{{ n.x | string }}}}",
    "{{% set ns = namespace(x='a') %}}{{% for i in range(99) %}}{{% set ns.x = ns.x ~ ns.x %}}{{% endfor %}}{{{{ ns.x }}}}",
    "{{% macro f(x) %}}{{{{ f(x) }}}}{{% endmacro %}}{{{{ f({0}) }}}}",
    "{{% include {0} %}}",
    "{{% extends {0} %}}",
    "{{% filter upper %}}{{{{ {0} }}}}{{% endfilter %}}",
    "{{{{ {0}",
    "{{% {0} %}}",
    "{{{{ {0} }}}}",
    "{{{{ {0} }}}}",
    "{{# {0}",
]


@st.composite
def _expressions(draw: st.DrawFn, depth: int = 2) -> str:
    how = draw(st.sampled_from(["piece", "binary", "filter", "method", "odd"])) if depth else "piece"
    if how == "binary":
        left, right = draw(_expressions(depth - 1)), draw(_expressions(depth - 1))
        return f"({left} {draw(st.sampled_from(OPERATORS))} {right})"
    if how in ("filter", "method"):
        inner, name = draw(_expressions(depth - 1)), draw(st.sampled_from(FILTERS if how == "filter" else METHODS))
        return f"({inner}) | {name}" if how == "filter" else f"({inner}){'' if name[0] in '([' else '.'}{name}"
    if how == "odd":
        return draw(
            st.sampled_from(
                ["(" * 500, "9" * 5000, "not " * 2000 + "1", "1" + "+1" * 5000, "lipsum(10**6)", "self", "loop", "caller()"]
            )
        )
    return draw(st.sampled_from(PIECES))


_row = st.fixed_dictionaries({"prompt": st.one_of(values, st.just("12=")), "answer": leaves, "messages": TURNS})
_templates = st.tuples(st.builds(lambda block, inner: block.format(inner), st.sampled_from(BLOCKS), _expressions()), _row)


def check_template(root: Path, example: tuple[str, dict[str, Any]]) -> None:
    source, row = example
    attempt(lambda: Template(source, "prompt").fill(row))
    tokenizer = tiny_renderer().tokenizer
    tokenizer.chat_template = source.replace("prompt", "messages[0].content")
    from minidist.config.data import RenderConfig

    messages = [{"role": "user", "content": "12="}, {"role": "assistant", "content": "3"}]
    attempt(lambda: Renderer(tokenizer, RenderConfig(chat_template="on"), ()).conversation(messages))


# Directories that a run has written, and others have changed.


@st.composite
def _changes(draw: st.DrawFn, names: list[str]) -> list[tuple[str, str, Any]]:
    """Changes of files: bytes in their place, a value in JSON replaced, a link, a directory, nothing."""
    found = []
    for _ in range(draw(st.integers(1, 2))):
        name = draw(st.sampled_from(names))
        how = draw(st.sampled_from(["raw", "json", "damage", "damage", "link", "directory", "gone", "pipe"]))
        if how == "raw":
            what: Any = draw(raw_json)
        elif how == "json":
            what = (draw(st.integers(0, 30)), draw(json_values), draw(st.booleans()))
        else:
            what = (draw(st.sampled_from(["cut", "flip"])), draw(st.floats(0, 1)), draw(st.integers(0, 7)))
        found.append((name, how, what))
    return found


def apply(root: Path, changes: list[tuple[str, str, Any]]) -> None:
    for name, how, what in changes:
        file = root / name
        whole = file.read_bytes() if file.is_file() and not file.is_symlink() else b""
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        elif os.path.lexists(file):
            file.unlink()
        if not file.parent.is_dir():
            continue
        if how == "raw":
            file.write_bytes(what)
        elif how == "json":
            file.write_bytes(_json_changed(whole, *what))
        elif how == "damage":
            at = min(int(what[1] * len(whole)), max(0, len(whole) - 1))
            flipped = whole[:at] + bytes([whole[at] ^ (1 << what[2])]) + whole[at + 1 :] if whole else b"\x80"
            file.write_bytes(whole[:at] if what[0] == "cut" else flipped)
        elif how == "link":
            file.symlink_to(Path.cwd().parent / "precious")
        elif how == "directory":
            file.mkdir()
        elif how == "pipe":
            os.mkfifo(file)


def _json_changed(raw: bytes, number: int, value: Any, removes: bool) -> bytes:
    try:
        tree = json.loads(raw)
    except ValueError:
        return json.dumps(value).encode()
    places = [path for path in paths_of(tree) if path]
    if not places:
        return json.dumps(value).encode()
    return json.dumps(put(tree, places[number % len(places)], DELETED if removes else value)).encode()


class _Saves:
    async def save(self, path: Path) -> dict[str, str]:
        (path / "model.safetensors").write_bytes(bytes(range(200)))
        return {}

    async def save_state(self, path: Path) -> dict[str, str]:
        import torch

        return save_state(path, 4, [Piece.whole("layer", "weight", torch.ones(3))])


RUN = whole("sft") | {"run": {"directory": "run", "steps": 10}, "learner": {}, "evaluation": {}}
RUN_FILES = [
    "config.json",
    "summary.json",
    "metrics.jsonl",
    "timeline.json",
    "log.txt",
    ".lock",
    "checkpoints",
    "checkpoints/step_000004",
    "checkpoints/step_000004/state.json",
    "checkpoints/step_000004/sums.json",
    "checkpoints/step_000004/model.safetensors",
    "checkpoints/step_000004/training",
    "checkpoints/step_000004/training/00001.safetensors",
    "rollouts",
    "rollouts/step_000004.jsonl",
]
LINE = {"prompt": "12=", "answer": "3", "finish": "stop", "tokens": [1, 2], "logprobs": [-0.5, -1.0], "pieces": ["1", "2"]}


@cache
def written_run() -> Path:
    """A run of sft with a checkpoint and rollouts."""
    root = Path(tempfile.mkdtemp(prefix="written-run-"))
    before = Path.cwd()
    os.chdir(root)
    try:
        (root / "config.yaml").write_text(yaml.safe_dump(RUN))
        directory = RunDirectory(load(root / "config.yaml"))
        directory.start()
        (root / "run" / "metrics.jsonl").write_text('{"step": 0}\n')
        asyncio.run(Checkpoints(root / "run" / "checkpoints", 1).write(4, _Saves(), {"metrics_bytes": 12}))  # type: ignore[arg-type]
        (root / "run" / "rollouts").mkdir()
        (root / "run" / "rollouts" / "step_000004.jsonl").write_text(json.dumps(LINE) + "\n")
        (root / "run" / "summary.json").write_text(json.dumps({"steps": 10, "result": {"student": {"kl": 1.0}}}))
        directory._lock.close()
    finally:
        os.chdir(before)
    return root


def check_run(root: Path, changes: list[tuple[str, str, Any]]) -> None:
    shutil.copytree(written_run(), root, dirs_exist_ok=True)
    apply(root / "run", changes)
    attempt(lambda: show(root / "run", step=None, rows=3, html=root / "run" / "page.html"))
    attempt(lambda: Report([root / "run"]).page())
    for newest in (root / "run" / "checkpoints").glob("step_*"):
        attempt(lambda: _read_state(newest))  # noqa: B023

    def begin() -> None:
        directory = RunDirectory(load(root / "config.yaml"))
        if not directory.finished() or (root / "run" / "summary.json").exists():
            checkpoint = directory.start()
            if checkpoint is not None:
                _read_state(checkpoint.path)
            directory.finish({})

    before = files_in(root)
    attempt(begin)
    assert files_in(root) == before


def _read_state(path: Path) -> None:
    reader = StateReader(path)
    for key in reader.keys:
        reader.tensors(key.split("|")[0])


# Models.

MODEL_FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]


@cache
def written_model() -> Path:
    root = Path(tempfile.mkdtemp(prefix="written-model-"))
    save_pair(root)
    return root / "student"


def check_model(root: Path, changes: list[tuple[str, str, Any]]) -> None:
    shutil.copytree(written_model(), root / "model")
    apply(root / "model", changes)
    from minidist.config.models import ModelConfig

    config, where = ModelConfig(model=str(root / "model")), "student.model"

    def read() -> None:
        resolve(str(root / "model"), where)
        check_json(root / "model", where)
        load_tokenizer(str(root / "model"), where)
        read_shape(load_config(config, where))
        check_weights(str(root / "model"), where)
        load_model(config, where)

    attempt(read)


# Answers of servers.

STATUSES = [200, 200, 200, 200, 204, 301, 400, 401, 404, 408, 429, 500, 503]
HEADERS: list[dict[str, str]] = [
    {},
    {"Content-Type": "text/html"},
    {"Content-Encoding": "gzip"},
    {"Content-Encoding": "br, gzip"},
    {"Content-Type": "application/json; charset=utf-16"},
    {"Content-Type": "application/json; charset=nothing"},
    {"Content-Length": "100000"},
    {"Content-Length": "1"},
    {"Content-Length": "nonsense"},
    {"Retry-After": "1e9"},
    {"Retry-After": "Wed, 99 Nov 9999"},
    {"Transfer-Encoding": "chunked"},
    {"Location": "http://user:secret@host"},
]
GOOD = {
    "models": {"data": [{"id": "tiny", "max_model_len": 48}]},
    "scores": {
        "choices": [{"prompt_logprobs": [None, {"3": {"logprob": -0.5, "rank": 1}, "4": {"logprob": -1.5, "rank": 2}}]}],
        "meta_info": {
            "input_token_logprobs": [[None, 2, None], [-0.5, 3, None]],
            "input_top_logprobs": [None, [[-0.5, 3, None], [-1.5, 4, None]]],
        },
    },
    "texts": {
        "choices": [{"token_ids": [3, 0], "logprobs": {"token_logprobs": [-0.5, -1.0]}, "finish_reason": "stop"}],
        "meta_info": {
            "output_token_logprobs": [[-0.5, 3, None], [-1.0, 0, None]],
            "finish_reason": {"type": "stop", "matched": 0},
        },
    },
    "tokens": {"tokens": [1, 2]},
    "chats": {
        "choices": [{"message": {"role": "assistant", "content": "3"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
    },
    "error": {"error": {"message": "no"}},
}
_odd_json = st.one_of(
    json_values, st.sampled_from([2**31, 2**40, -1, 10**30, [[1]], "1", None, float("inf"), float("nan"), 1.0, True])
)


@st.composite
def _answers(draw: st.DrawFn) -> tuple[str, str, int, dict[str, str], bytes]:
    api, asked = (
        draw(st.sampled_from(["vllm", "sglang"])),
        draw(st.sampled_from(["models", "scores", "texts", "tokens", "chats"])),
    )
    tree = GOOD[draw(st.sampled_from([asked, asked, asked, "error"]))]
    body = draw(
        st.one_of(mutated(tree, _odd_json).map(lambda tree: json.dumps(tree).encode()), raw_json, st.just(b"<html>\x1b[31m"))
    )
    return api, asked, draw(st.sampled_from(STATUSES)), draw(st.sampled_from(HEADERS)), body


SAMPLING = Sampling(max_new_tokens=4)


def check_answer(root: Path, example: tuple[str, str, int, dict[str, str], bytes]) -> None:
    kind, asked, status, headers, body = example
    api = APIS[kind](VOCABULARY)
    question: Any = {
        "models": api.models,
        "scores": partial(api.score, "tiny", [2, 3], 1, 2),
        "texts": partial(api.write, "tiny", Writing([2], SAMPLING, 0, (0,), VOCABULARY, VOCABULARY)),
        "tokens": partial(tokenize, "tiny", "12="),
        "chats": lambda: Question("POST", "/v1/chat/completions", {}, read_sample),
    }[asked]()
    if asked == "scores":
        config = teacher_config(model="t", backend="server", server={"url": "http://a"}, payload="top_k", top_k=2)
        read = question.read
        question = replace(question, read=lambda raw: _to_scores(read(raw), config))

    async def ask(server: Server) -> Any:
        settings = ServerConfig(url=server.url, api=kind, attempts=2, pause_s=0.01, timeout_s=0.3)
        connection = Connection(settings, error_text, logs=False)
        try:
            return await connection.ask(question)
        finally:
            await connection.close()

    server = Server(kind)
    reply = (status, headers, body)
    server.get = lambda path, headers: reply  # type: ignore[method-assign]
    server.post = lambda path, body, headers: reply  # type: ignore[method-assign]
    try:
        attempt(lambda: asyncio.run(ask(server)))
    finally:
        server.close()


def _to_scores(table: Any, config: Any) -> TeacherScores:
    scores = to_scores(table.logprobs, table.ids, table.values, config, None)
    assert scores.top_ids is not None and scores.top_ids.max(initial=0) < VOCABULARY
    return scores


# Score caches.

ROLLOUTS = random_rollouts([(3, 4), (1, 9), (2, 2)])
CACHE_FILES = ["cache.json", "scores-00000.safetensors", "scores-00001.safetensors"]


@cache
def written_cache() -> Path:
    root = Path(tempfile.mkdtemp(prefix="written-cache-"))
    writer = ScoreWriter(root, _origin(), shard_rows=2)
    writer.add(ROLLOUTS, [_scores(len(rollout.tokens)) for rollout in ROLLOUTS])
    writer.close()
    return root


def _scores(count: int) -> TeacherScores:
    return TeacherScores(Payload.SAMPLED, logprobs=np.full(count, -1, np.float32))


@cache
def _origin() -> Any:
    from minidist.teachers.cache.store import Origin

    return Origin("teacher", "hf", "a", "b", "c", "float32", "sampled", None, VOCABULARY)


def check_cache(root: Path, example: tuple[list[tuple[str, str, Any]], bool]) -> None:
    changes, sealed = example
    shutil.copytree(written_cache(), root / "run", dirs_exist_ok=True)
    apply(root / "run", changes)
    if sealed and (root / "run" / "cache.json").is_file():  # damage whose sums are right
        _seal(root / "run")

    def read() -> None:
        cache = ScoreCache(root / "run")
        for rollout in ROLLOUTS:
            if rollout in cache:
                cache.read(rollout)

    attempt(read)

    def write() -> None:
        writer = ScoreWriter(root / "run", _origin(), shard_rows=2)
        writer.add(ROLLOUTS[:1], [_scores(len(ROLLOUTS[0].tokens))])
        writer.close()

    attempt(write)


def _seal(root: Path) -> None:
    from minidist.run.files import sha256

    try:
        index = json.loads((root / "cache.json").read_bytes())
        for shard in index["shards"]:
            if (root / shard["file"]).is_file():
                shard["sha256"] = sha256(root / shard["file"])
        (root / "cache.json").write_text(json.dumps(index))
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass


# Sizes of a run, whose plan is made before anything starts.

SIZED: dict[str, list[Any]] = {
    "rollout": ["max_new_tokens", "prompts_per_step", "samples", "temperature", "top_p", "seed", "max_sequences"],
    "learner": ["micro_batch_tokens", "inner_epochs", "minibatches", "chunk_tokens", "optimizer"],
    "run": ["steps", "seed", "checkpoint_every", "checkpoints_kept", "rollouts_every"],
    "data": ["max_prompt_tokens", "max_tokens", "system", "truncate", "chat_template"],
    "teacher": ["batch_tokens", "top_k", "dtype", "payload", "kv_cache_gib", "context"],
    "cluster": ["threads", "object_store_gib", "gpus", "rollout", "learner", "gpu_gib"],
    "objective": ["temperature", "type", "support", "top_k"],
    "evaluation": ["every", "rows"],
}
_sizes = st.one_of(st.sampled_from([0, 1, -1, 3, 2**15, 2**31, 2**53, 2**62, 0.5, 1e-9, 1e9, 1e18]), values)


@st.composite
def _plans(draw: st.DrawFn) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for _ in range(draw(st.integers(1, 3))):
        section = draw(st.sampled_from(list(SIZED)))
        tree.setdefault(section, {})[draw(st.sampled_from(SIZED[section]))] = draw(_sizes)
    return tree


def check_plan(root: Path, changes: dict[str, Any]) -> None:
    models = written_model().parent
    (root / "rows.jsonl").write_text('{"prompt": "12="}\n' * 8)
    tree: dict[str, Any] = {
        "stage": "distill",
        "run": {"directory": "run", "steps": 2},
        "student": {"model": str(models / "student")},
        "teacher": {"model": str(models / "teacher")},
        "data": {"prompts": {"path": str(root / "rows.jsonl")}, "max_prompt_tokens": 8},
        "objective": {"type": "reverse_kl"},
        "rollout": {"engine": "hf", "prompts_per_step": 4, "max_new_tokens": 8},
        "learner": {"backend": "single"},
        "cluster": {"roles": "local", "threads": 1},
    }
    for section, fields in changes.items():
        tree[section] = tree.get(section, {}) | fields
    (root / "config.yaml").write_text(yaml.safe_dump(tree))
    from minidist.preflight.forecast.report import forecast
    from minidist.preflight.plan import plan_distill

    def plan() -> None:
        config: Any = load(root / "config.yaml")
        plan_distill(config)
        forecast(config, "h100", None)

    attempt(plan)


# Command lines, in this process.

VERBS = [
    "check",
    "check",
    "plan",
    "sample",
    "sft",
    "nothing",
    "--help",
    "--version",
    "check --show -1",
    "sample --step x",
    "jobs",
    "report",
]


@st.composite
def _commands(draw: st.DrawFn) -> tuple[list[str], bytes]:
    words = draw(st.sampled_from(VERBS)).split()
    path = draw(
        st.sampled_from(["config.yaml", "config.yaml", "none.yaml", ".", "/dev/null", "/proc/self/mem", "x" * 300, "a\udce9"])
    )
    raw, overrides = draw(_configurations())
    return [*words, path, *[each for each in overrides if "\x00" not in each]], raw


def check_command(root: Path, example: tuple[list[str], bytes]) -> None:
    words, raw = example
    (root / "config.yaml").write_bytes(raw if words[0] != "sft" else b"\xff" + raw)
    from minidist.cli import main

    before = sys.argv
    sys.argv = ["minidist", *words]
    try:
        with deadline(3 * SECONDS):
            main()
    except SystemExit as ended:
        assert ended.code in (0, 1, 2, None), ended.code
    finally:
        sys.argv = before


KINDS: dict[str, Kind] = {
    "configurations": Kind(_configurations(), check_configuration),
    "data": Kind(_data(), check_data),
    "templates": Kind(_templates, check_template),
    "runs": Kind(_changes(RUN_FILES), check_run),
    "models": Kind(_changes(MODEL_FILES), check_model),
    "answers": Kind(_answers(), check_answer),
    "plans": Kind(_plans(), check_plan),
    "caches": Kind(st.tuples(_changes(CACHE_FILES), st.booleans()), check_cache),
    "commands": Kind(_commands(), check_command),
}
