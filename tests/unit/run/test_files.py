"""Files that survive a crash."""

import errno
import json
import os
from pathlib import Path

import pytest
from safetensors import SafetensorError

from minidist.errors import DiskFullError, ModelError, RunDirectoryError
from minidist.run import files
from minidist.run.files import damage, lock, open_tensors, read_record, sha256, write_json, write_text, writing


def test_a_crash_while_writing_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"step": 1})

    def crash(path: Path) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", crash)
        with pytest.raises(OSError, match="disk full"):
            write_json(file, {"step": 2})
    assert json.loads(file.read_text()) == {"step": 1}
    write_json(file, {"step": 3}, indent=None)
    assert file.read_text() == '{"step": 3}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_content_is_on_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    rename = Path.rename
    monkeypatch.setattr(files, "sync", lambda path: order.append(f"sync {path.name}"))
    monkeypatch.setattr(Path, "rename", lambda *paths: (order.append("rename"), rename(*paths)))
    write_json(tmp_path / "a.json", [])
    assert order == ["sync a.partial", "rename", f"sync {tmp_path.name}"]


def test_sum_is_sha256_and_damage_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(file) == expected and damage(file, expected) is None
    file.write_bytes(b"abd")
    assert damage(file, expected) == "has changed"
    assert damage(tmp_path / "b", expected) == "is missing"


def test_a_lock_is_held_until_it_is_closed(tmp_path: Path) -> None:
    held = lock(tmp_path / "new", use="running in", setting="run.directory")
    with pytest.raises(RunDirectoryError, match=r"another process is reading .*new; wait for it to end, or set another cache"):
        lock(tmp_path / "new", use="reading", setting="cache")
    held.close()
    lock(tmp_path / "new", use="reading", setting="cache").close()


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(number, os.strerror(number)) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
        SafetensorError("I/O error: No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos: Disk quota exceeded"),
    ],
    ids=str,
)
def test_a_full_disk_is_a_sentence_with_the_path(tmp_path: Path, error: Exception) -> None:
    sentence = r"metrics.jsonl could not be written: .*; free space there, .* last checkpoint"
    with pytest.raises(DiskFullError, match=sentence), writing(tmp_path / "metrics.jsonl"):
        raise error


def test_other_errors_of_writing_stay_as_they_are(tmp_path: Path) -> None:
    for error in (OSError(errno.EIO, "I/O error"), ValueError("bad")):
        with pytest.raises(type(error)), writing(tmp_path):
            raise error


def test_a_record_has_its_shape_or_names_its_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"a": 1}')
    assert read_record(file, dict[str, int], "mend it") == {"a": 1}
    file.write_text('{"a": "b"}')
    with pytest.raises(ModelError, match=r"a.json is of another shape \(a: Input should be a valid integer.*\); mend it$"):
        read_record(file, dict[str, int], "mend it", ModelError)
    with pytest.raises(RunDirectoryError, match=r"b.json is missing; mend it"):
        read_record(tmp_path / "b.json", dict[str, int], "mend it")


def test_a_text_is_written_through_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a.partial").symlink_to(tmp_path / "precious")
    write_text(tmp_path / "a.json", "new")
    assert ((tmp_path / "a.json").read_text(), (tmp_path / "precious").read_text()) == ("new", "precious")


def test_tensors_are_read_from_whole_files_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("no tensors")
    for name, fault in (("pipe", "is not a file"), ("none", "is missing"), ("text", "is not a whole file of tensors")):
        with pytest.raises(ModelError, match=f"{name} {fault}.*; copy it again"):
            open_tensors(tmp_path / name, "copy it again", ModelError)
