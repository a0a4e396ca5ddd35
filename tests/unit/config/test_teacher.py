"""The section teacher: one class a backend, which refuses the fields of other backends."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from minidist.config.teacher import AnyTeacherConfig, TeacherConfig
from minidist.types import Payload
from tests.support.config import assert_refused, teacher_config

SERVER = {"backend": "server", "payload": "top_k", "server": {"url": "http://a"}}
KINDS: dict[str, dict[str, Any]] = {
    "HFTeacherConfig": {},
    "VLLMTeacherConfig": {"backend": "vllm", "payload": "top_k"},
    "ServerTeacherConfig": SERVER,
    "CacheTeacherConfig": {"backend": "cache", "cache": "scores"},
    "PromptedTeacherConfig": {"placement": "learner", "prompt": {}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_backend_and_placement_choose_the_class(kind: str) -> None:
    config = teacher_config(model="t", **KINDS[kind])
    assert type(config).__name__ == kind
    assert TypeAdapter[TeacherConfig](AnyTeacherConfig).validate_python(config.model_dump(mode="json")) == config


def test_backends_declare_what_they_can_do() -> None:
    made = {kind: teacher_config(model="t", **fields) for kind, fields in KINDS.items()}
    assert [kind for kind, config in made.items() if Payload.HIDDEN in config.payloads] == [
        "HFTeacherConfig",
        "VLLMTeacherConfig",
        "CacheTeacherConfig",
        "PromptedTeacherConfig",
    ]
    assert [kind for kind, config in made.items() if not config.live] == ["CacheTeacherConfig"]
    assert [kind for kind, config in made.items() if config.learns] == ["PromptedTeacherConfig"]
    assert [kind for kind, config in made.items() if not config.takes_turns] == ["ServerTeacherConfig", "CacheTeacherConfig"]
    assert [kind for kind, config in made.items() if not config.cuts_padding] == ["VLLMTeacherConfig", "ServerTeacherConfig"]
    assert all(config.writes for config in made.values())
    assert [config.splits_by for config in made.values()] == ["shards", "tensor_parallel", None, None, "shards"]


def test_a_vllm_teacher_of_hidden_states_does_not_write_and_cuts_padding() -> None:
    hidden = teacher_config(model="t", backend="vllm")
    assert hidden.payload == Payload.HIDDEN and hidden.cuts_padding and hidden.splits_by == "tensor_parallel"
    assert not hidden.writes and not hidden.takes_turns


def test_null_and_default_fields_of_another_backend_are_ignored() -> None:
    assert teacher_config(model="t", server=None, cache=None, prompt=None) == teacher_config(model="t")
    assert teacher_config(model="t", max_sequences=256, **SERVER) == teacher_config(model="t", **SERVER)


REFUSED = [
    (["=null"], ["teacher is None; expected a section with model"]),
    (["model=null"], ["teacher.model is missing", "teacher.backend=hf needs it"]),
    (["backend=vlm"], ["teacher.backend is 'vlm'", "expected one of hf, vllm, server, cache"]),
    (
        ["backend=server", "server={url: http://a}"],
        ["teacher.backend=server does not give payload hidden", "sampled or top_k", "backend=hf or vllm gives all three"],
    ),
    (["backend=server", "payload=top_k"], ["teacher.server is missing", "teacher.backend=server needs it", "with its url"]),
    (["server={url: http://a}"], ["teacher.server belongs to teacher.backend=server", "is of backend=hf"]),
    (["backend=cache"], ["teacher.cache is missing", "Directory that minidist score wrote"]),
    (["cache=scores"], ["teacher.cache belongs to teacher.backend=cache", "leave out teacher.cache"]),
    (["backend=cache", "cache=scores", "batch_tokens=9"], ["teacher.batch_tokens belongs to teacher.backend=hf"]),
    (["placement=learner"], ["teacher.prompt is missing", "teacher.placement=learner needs it"]),
    (["prompt={}"], ["teacher.prompt belongs to teacher.placement=learner", "set teacher.placement=learner"]),
    (["top_kk=3"], ["unknown key teacher.top_kk", "did you mean top_k?"]),
    (["backend=server", "payload=top_k", "server={url: ftp://a}"], ["teacher.server.url is 'ftp://a'"]),
    (
        ["backend=server", "payload=top_k", "server={url: http://a, modle: x}"],
        ["unknown key teacher.server.modle"],
    ),
]


@pytest.mark.parametrize(("fields", "parts"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED])
def test_missing_and_foreign_fields_are_refused(tmp_path: Path, fields: list[str], parts: list[str]) -> None:
    assert_refused(tmp_path, "distill", [f"teacher.{field}".replace(".=", "=") for field in fields], parts)


def test_a_prompted_teacher_runs_in_transformers() -> None:
    with pytest.raises(ValidationError, match="Input should be 'hf'"):
        teacher_config(model="t", backend="vllm", placement="learner", prompt={})


SECRET = "hunter2"
ADDRESSES = [
    (f"http://user:{SECRET}@host", "holds a user or a password; leave it out, and set teacher.server.key_variable"),
    (f"http://{SECRET}@host:80", "holds a user or a password"),
    (f"ftp://user:{SECRET}@host", "teacher.server.url is 'ftp://...@host'"),
    ("http://host:port", "is no address"),
    ("http://host:99999", "is no address"),
    ("http://host:0", "no address"),
    ("http://host:-1", "is no address"),
    ("http://", "no address"),
    ("http://:8000", "no address"),
    ("http://a b", "no address"),
    ("http://a..b", "is no address"),
    ("http://[::1", "is no address"),
    (f"http://{'a' * 64}.de", "is no address"),
    ("http://a\\u0000b", "no address"),
    ("http://host/\\u001b[2J", "no address"),
    ("http://bücher.de", "no address"),
    ("http://host/\\u202e", "no address"),
    ("http://host?key=1", "with a query or a fragment"),
    ("http://host#part", "with a query or a fragment"),
]


@pytest.mark.parametrize(("url", "part"), ADDRESSES, ids=[url for url, _ in ADDRESSES])
def test_what_is_no_address_of_a_server_is_refused(tmp_path: Path, url: str, part: str) -> None:
    fields = ["teacher.backend=server", "teacher.payload=top_k", f'teacher.server.url="{url}"']
    assert SECRET not in assert_refused(tmp_path, "distill", fields, ["teacher.server.url", part])


@pytest.mark.parametrize("field", ["teacher.server", "teacher", "teacher.model.x", "student.model.url"])
def test_no_message_shows_the_password_of_an_address(tmp_path: Path, field: str) -> None:
    assert SECRET not in assert_refused(tmp_path, "distill", [f"{field}=http://user:{SECRET}@host"], [])


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "https://a-b.c_d.example/v1/", "http://[::1]:80/proxy"])
def test_addresses_are_accepted(url: str) -> None:
    config = teacher_config(model="t", **SERVER | {"server": {"url": url}})
    assert config.remote_name == f"server:{url}"
