"""Models and data at fsspec addresses: copied once, whole, again when they change; refusals in a sentence."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from minidist import storage
from minidist.config.data import SourceConfig
from minidist.data.sources import check_source, read_rows
from minidist.errors import ModelError, StorageError
from minidist.models.files import check_weights, resolve
from minidist.storage import fetch, is_address


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINIDIST_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def bucket() -> Iterator[Any]:
    """A file system in memory, emptied."""
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are copied."""
    found: list[str] = []
    copy = storage._Remote.copy

    def counted(remote: Any, name: str, target: Path) -> None:
        found.append(name)
        copy(remote, name, target)

    monkeypatch.setattr(storage._Remote, "copy", counted)
    return found


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("s3://b/x", True),
        ("file:///x", True),
        ("gs://b", True),
        ("task:sort", False),
        ("meta-llama/x", False),
        ("/a/b", False),
        ("", False),
    ],
)
def test_addresses_are_known_from_paths_and_hub_names(name: str, expected: bool) -> None:
    assert is_address(name) is expected


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_rows_at_an_address_are_those_of_the_file(kind: str, tmp_path: Path, bucket: Any, copied: list[str]) -> None:
    lines = '{"prompt": "a"}\n{"prompt": "b"}\n'
    (tmp_path / "rows.jsonl").write_text(lines)
    bucket.pipe("/team/rows.jsonl", lines.encode())
    source = SourceConfig(path=f"file://{tmp_path}/rows.jsonl" if kind == "file" else "memory://team/rows.jsonl")
    check_source(source)
    assert [row["prompt"] for row in read_rows(source)] == ["a", "b"]
    assert copied == ["rows.jsonl"], "what is here already is not copied again"


def test_a_directory_of_rows_at_an_address(bucket: Any) -> None:
    bucket.pipe({"/team/data/train-0.jsonl": b'{"prompt": "a"}\n', "/team/data/train-1.jsonl": b'{"prompt": "b"}\n'})
    assert [row["prompt"] for row in read_rows(SourceConfig(path="memory://team/data"))] == ["a", "b"]


def test_a_changed_file_is_copied_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("1")
    first = fetch(f"file://{file}", "data")
    file.write_text("22")
    second = fetch(f"file://{file}", "data")
    assert (first.read_text(), second.read_text()) == ("1", "22")


def test_weights_of_a_model_are_copied_when_they_are_needed(bucket: Any, copied: list[str]) -> None:
    files = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": b"w", "optimizer.bin": b"o"}
    bucket.pipe({f"/models/m/{name}": content for name, content in files.items()})
    check_weights("memory://models/m", "student.model")
    assert resolve("memory://models/m", "student.model", weights=False).is_dir()
    assert copied == ["config.json", "tokenizer.json"]
    path = resolve("memory://models/m", "student.model")
    assert (path / "model.safetensors").read_bytes() == b"w"
    assert copied == ["config.json", "tokenizer.json", "model.safetensors"]
    bucket.rm("/models/m/model.safetensors")
    with pytest.raises(ModelError, match=r"student.model: memory://models/m holds its weights as optimizer.bin alone"):
        check_weights("memory://models/m", "student.model")


def test_threads_that_want_one_file_copy_it_once(bucket: Any, copied: list[str]) -> None:
    bucket.pipe("/one/rows.jsonl", b"x" * 1000)
    threads = [threading.Thread(target=fetch, args=("memory://one/rows.jsonl", "data")) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert copied == ["rows.jsonl"]


def test_a_copy_that_was_cut_short_is_not_taken(bucket: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket.pipe("/one/rows.jsonl", b"x" * 1000)
    monkeypatch.setattr(type(bucket), "get_file", lambda _, source, target, **options: Path(target).write_bytes(b"x"))
    with pytest.raises(StorageError, match=r"data: memory://one/rows.jsonl gave rows.jsonl cut short"):
        fetch("memory://one/rows.jsonl", "data")
    assert [path.name for path in cache.rglob("rows.jsonl")] == []


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("memory://none/x.jsonl", r"data: nothing is at memory://none/x.jsonl; correct the address"),
        ("s3://bucket/x", r"data: addresses of s3:// need a package that is missing: Install s3fs to access S3"),
        ("gs://bucket/x", r"data: addresses of gs:// need a package that is missing: .*gcsfs"),
        ("nonsense://bucket/x", r"data: no file system is known for nonsense://"),
        ("s3://key:secret@bucket/x", r"data: s3://\.\.\.@bucket/x is written with a password; leave it out"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(address: str, sentence: str, bucket: Any) -> None:
    with pytest.raises(StorageError, match=f"^{sentence}") as caught:
        fetch(address, "data")
    assert "secret" not in str(caught.value)


def test_what_a_file_system_says_is_shown_in_one_line_without_a_trace(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no\naccess for s3://key:secret@bucket")

    monkeypatch.setattr(type(bucket), "find", refuse)
    with pytest.raises(StorageError) as caught:
        fetch("memory://a/b", "student.model")
    assert str(caught.value).startswith(
        "student.model: memory://a/b cannot be read (RuntimeError: no access for s3://...@bucket)"
    )


def test_a_listing_that_leaves_its_directory_is_refused(bucket: Any, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    facts = {"size": 1, "name": "/a/../../etc/x"}
    monkeypatch.setattr(type(bucket), "find", lambda *_, **__: {"/a/../../etc/x": facts})
    with pytest.raises(StorageError, match="lists a file outside itself"):
        fetch("memory://a", "student.model")
    assert not cache.exists()


def test_a_model_is_read_from_its_address(tmp_path: Path) -> None:
    from minidist.config.models import ModelConfig
    from minidist.models.hub import load_model, load_tokenizer
    from tests.integration.conftest import SHAPE, save_model

    model = save_model(tmp_path / "model", SHAPE, 1)
    address = f"file://{tmp_path}/model"
    found = load_model(ModelConfig(model=address), "teacher.model")
    assert json.dumps(found.config.hidden_size) == json.dumps(model.config.hidden_size)
    assert all((left == right).all() for left, right in zip(found.parameters(), model.parameters(), strict=True))
    assert len(load_tokenizer(address, "teacher.model")) == found.config.vocab_size
