"""A teacher's scores on disk are read bit for bit as written, or the cache is refused in one sentence."""

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from minidist.errors import ConfigError, DataError, DiskFullError, MinidistError, RunDirectoryError
from minidist.run.files import sha256
from minidist.teachers.cache.origin import origin_of
from minidist.teachers.cache.store import CachedTeacher, Origin, ScoreCache, check_origin, key_of
from minidist.teachers.cache.writer import ScoreWriter
from minidist.teachers.hf import HFTeacher
from minidist.types import Rollout, Sampling, TeacherScores
from tests.support.config import teacher_config
from tests.support.tiny import VOCABULARY, random_rollouts, tiny_model, tiny_renderer

ROLLOUTS = random_rollouts([(3, 4), (1, 9), (6, 1), (2, 2), (5, 8)])
PAYLOADS: list[dict[str, Any]] = [
    {"payload": "hidden"},
    {"payload": "hidden", "dtype": "bfloat16"},
    {"payload": "top_k", "top_k": 4},
    {"payload": "sampled"},
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher")
    tiny_model().save_pretrained(path)
    return path


def live(path: Path, rollouts: Sequence[Rollout], **options: Any) -> list[TeacherScores]:
    async def ask() -> list[TeacherScores]:
        teacher = HFTeacher(teacher_config(model=str(path), **options), tiny_renderer(), vocabulary=VOCABULARY)
        found = await teacher.score(rollouts)
        await teacher.close()
        return found

    return asyncio.run(ask())


def origin(path: Path, **options: Any) -> Origin:
    return origin_of(teacher_config(model=str(path), **options), tiny_renderer().tokenizer, VOCABULARY)


def write(cache: Path, origin: Origin, scores: Sequence[TeacherScores], rollouts: Sequence[Rollout] = ROLLOUTS) -> None:
    writer = ScoreWriter(cache, origin, shard_rows=2)
    writer.add(rollouts, scores)
    writer.close()


def killed(cache: Path, origin: Origin, rollouts: Sequence[Rollout], scores: Sequence[TeacherScores]) -> None:
    """Complete shards exist; rows that waited for a full shard are lost, and the lock is free."""
    writer = ScoreWriter(cache, origin, shard_rows=2)
    writer.add(rollouts, scores)
    writer._lock.close()


def assert_same_bits(found: TeacherScores, wanted: TeacherScores) -> None:
    for field in fields(TeacherScores):
        left, right = getattr(found, field.name), getattr(wanted, field.name)
        if isinstance(right, np.ndarray):
            assert left.dtype == right.dtype and left.shape == right.shape
            assert left.tobytes() == right.tobytes()
        else:
            assert left == right


@pytest.mark.parametrize("options", PAYLOADS, ids=str)
def test_every_row_is_read_as_it_was_written(saved: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    scores = live(saved, ROLLOUTS, **options)
    write(tmp_path, origin(saved, **options), scores)
    assert sorted(file.name for file in tmp_path.glob("scores-*")) == [f"scores-0000{n}.safetensors" for n in range(3)]
    cache = ScoreCache(tmp_path)
    assert len(cache) == 5 and cache.bytes == sum(file.stat().st_size for file in tmp_path.glob("scores-*"))
    for index in (4, 0, 2, 1, 3):
        assert_same_bits(cache.read(ROLLOUTS[index]), scores[index])


@pytest.mark.parametrize("options", PAYLOADS, ids=str)
def test_a_cached_teacher_is_the_live_one(saved: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    """Written in two batches, read in one batch of another order."""
    near = 0.1 if options.get("dtype") == "bfloat16" else 1e-5
    write(tmp_path, origin(saved, **options), live(saved, ROLLOUTS[:2], **options) + live(saved, ROLLOUTS[2:], **options))
    teacher = CachedTeacher(teacher_config(model=str(saved), backend="cache", cache=tmp_path, **options), ScoreCache(tmp_path))
    asked = [ROLLOUTS[index] for index in (3, 1, 4, 0, 2)]
    for found, wanted in zip(asyncio.run(teacher.score(asked)), live(saved, asked, **options), strict=True):
        assert found.payload is wanted.payload and found.hidden_dtype == wanted.hidden_dtype
        for name in ("logprobs", "top_logprobs", "hidden"):
            left, right = getattr(found, name), getattr(wanted, name)
            assert (left is None) == (right is None)
            if left is not None:
                assert np.abs(as_float(left) - as_float(right)).max() < near, name


def as_float(array: np.ndarray) -> np.ndarray:
    """bfloat16 travels as uint16: the upper half of a float32."""
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array


def test_fewer_classes_are_cut_exactly(saved: Path, tmp_path: Path) -> None:
    write(tmp_path, origin(saved, payload="top_k", top_k=5), live(saved, ROLLOUTS, payload="top_k", top_k=5))
    config = teacher_config(model=str(saved), backend="cache", cache=tmp_path, payload="top_k", top_k=3)
    check_origin(tmp_path, origin_of(config, tiny_renderer().tokenizer, VOCABULARY))
    found = asyncio.run(CachedTeacher(config, ScoreCache(tmp_path)).score(ROLLOUTS))
    for cut, expected in zip(found, live(saved, ROLLOUTS, payload="top_k", top_k=3), strict=True):
        assert expected.top_logprobs is not None
        if expected.top_logprobs[0, 0] == expected.top_logprobs[0, 2]:
            continue  # after the padding token all classes are equally likely, so any three are the likeliest
        assert cut.top_ids is not None and np.array_equal(cut.top_ids, expected.top_ids)
        assert cut.top_logprobs is not None and np.abs(cut.top_logprobs - expected.top_logprobs).max() < 1e-5


def test_a_key_separates_prompt_and_answer() -> None:
    moved = replace(
        ROLLOUTS[0],
        prompt=replace(ROLLOUTS[0].prompt, tokens=np.append(ROLLOUTS[0].prompt.tokens, ROLLOUTS[0].tokens[0])),
        tokens=ROLLOUTS[0].tokens[1:],
    )
    assert key_of(moved) != key_of(ROLLOUTS[0])
    assert key_of(replace(ROLLOUTS[0], tokens=ROLLOUTS[0].tokens.astype(np.int64))) == key_of(ROLLOUTS[0])
    assert len({key_of(rollout) for rollout in ROLLOUTS}) == 5


def test_a_cache_of_a_killed_writer_can_be_completed(saved: Path, tmp_path: Path) -> None:
    scores, mine = live(saved, ROLLOUTS), origin(saved)
    killed(tmp_path, mine, ROLLOUTS[:3], scores[:3])
    # Killed between writing a shard and listing it, and while writing another shard.
    shutil.copy(tmp_path / "scores-00000.safetensors", tmp_path / "scores-00001.safetensors")
    (tmp_path / "scores-00007.partial").write_bytes(b"half")
    assert len(ScoreCache(tmp_path)) == 2
    writer = ScoreWriter(tmp_path, mine, shard_rows=2)
    waiting = [index for index, rollout in enumerate(ROLLOUTS) if rollout not in writer.existing]
    assert waiting == [2, 3, 4]
    writer.add([ROLLOUTS[index] for index in waiting], [scores[index] for index in waiting])
    writer.close()
    cache = ScoreCache(tmp_path)
    assert [shard["rows"] for shard in cache.shards] == [2, 2, 1]
    for rollout, wanted in zip(ROLLOUTS, scores, strict=True):
        assert_same_bits(cache.read(rollout), wanted)
    assert {file.name for file in tmp_path.glob("scores-*")} == {shard["file"] for shard in cache.shards}


@pytest.mark.parametrize("damage", ["byte", "gone"])
def test_a_damaged_shard_is_refused_and_mended(saved: Path, tmp_path: Path, damage: str) -> None:
    scores, mine = live(saved, ROLLOUTS), origin(saved)
    write(tmp_path, mine, scores)
    shard = tmp_path / "scores-00001.safetensors"
    held = bytearray(shard.read_bytes())
    held[-3] ^= 1
    shard.unlink()
    if damage == "byte":
        shard.write_bytes(held)
    with pytest.raises(ConfigError, match=r"scores-00001.safetensors (has changed|is missing); .* run.overwrite=true"):
        ScoreCache(tmp_path)
    writer = ScoreWriter(tmp_path, mine, shard_rows=2)
    assert [rollout in writer.existing for rollout in ROLLOUTS] == [
        True,
        True,
        False,
        False,
        True,
    ]
    writer.add(ROLLOUTS[2:4], scores[2:4])
    writer.close()
    assert_same_bits(ScoreCache(tmp_path).read(ROLLOUTS[3]), scores[3])


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"weights": "sha256:0"}, "holds scores of another teacher, .*; set teacher.model to that teacher, or write a"),
    "shape": ({"shape": "0"}, "holds scores of another teacher"),
    "tokenizer": ({"tokenizer": "0"}, "another tokenizer, whose token ids mean other text; write a cache of this teacher"),
    "payload": ({"payload": "sampled", "top_k": None}, "teacher.payload is sampled, and .* top_k; set teacher.payload=top_k"),
    "dtype": ({"dtype": "bfloat16"}, "teacher.dtype is bfloat16, and .* written with float32; set teacher.dtype=float32"),
    "more": ({"top_k": 5}, "teacher.top_k is 5, and .* lists 4 tokens a position; set teacher.top_k=4"),
    "vocabulary": ({"vocabulary": 12}, "over 13 token ids, and student and teacher share 12"),
}


@pytest.mark.parametrize("what", OTHERS)
def test_scores_of_another_kind_are_refused(saved: Path, tmp_path: Path, what: str) -> None:
    options: dict[str, Any] = {"payload": "top_k", "top_k": 4}
    mine = origin(saved, **options)
    write(tmp_path, mine, live(saved, ROLLOUTS, **options))
    check_origin(tmp_path, replace(mine, model="elsewhere", backend="cache"))
    changes, sentence = OTHERS[what]
    with pytest.raises(ConfigError, match=sentence):
        check_origin(tmp_path, replace(mine, **changes))
    with pytest.raises(ConfigError, match="set another cache"):
        ScoreWriter(tmp_path, replace(mine, **changes), shard_rows=2)


def test_fewer_classes_are_not_added_to_a_cache_of_more(saved: Path, tmp_path: Path) -> None:
    mine = origin(saved, payload="top_k", top_k=4)
    write(tmp_path, mine, live(saved, ROLLOUTS, payload="top_k", top_k=4))
    with pytest.raises(ConfigError, match=r"lists 4 tokens a position; set teacher.top_k=4, or set another cache"):
        ScoreWriter(tmp_path, replace(mine, top_k=3), shard_rows=2)


def test_a_teacher_is_identified_by_its_weights_and_not_by_its_path(saved: Path, tmp_path: Path) -> None:
    copy, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(saved, copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"transformers_version": "0"}))
    tiny_model(seed=1).save_pretrained(other)
    assert replace(origin(copy), model=str(saved)) == origin(saved)
    assert origin(other).weights != origin(saved).weights and origin(other).shape == origin(saved).shape
    (copy / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.5}))
    assert origin(copy).shape != origin(saved).shape


def test_a_server_is_identified_by_shape_and_tokenizer(saved: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"payload": "sampled"}
    served = origin(saved, backend="server", server={"url": "http://there:8000"}, **options)
    assert served.weights == "server:http://there:8000"
    write(tmp_path, served, live(saved, ROLLOUTS, **options))
    check_origin(tmp_path, origin(saved, backend="cache", cache=tmp_path, **options))
    with pytest.raises(ConfigError, match="another teacher"):
        check_origin(tmp_path, replace(served, weights="server:http://elsewhere"), writing=True)


def test_a_missing_row_is_named(saved: Path, tmp_path: Path) -> None:
    write(tmp_path, origin(saved), live(saved, ROLLOUTS[:2]), ROLLOUTS[:2])
    teacher = CachedTeacher(teacher_config(model=str(saved), backend="cache", cache=tmp_path), ScoreCache(tmp_path))
    with pytest.raises(DataError, match=r"lacks 2 of 3 rows .*; the first is row 1 \('prompt 2', 1 labels\). Name"):
        asyncio.run(teacher.score(ROLLOUTS[1:4]))
    with pytest.raises(MinidistError, match=r"writes no text; set teacher.backend=hf"):
        asyncio.run(teacher.extend([], Sampling(max_new_tokens=1)))


def test_a_second_writer_is_refused(saved: Path, tmp_path: Path) -> None:
    writer = ScoreWriter(tmp_path, origin(saved), shard_rows=2)
    with pytest.raises(RunDirectoryError, match="another process is writing to the cache"):
        ScoreWriter(tmp_path, origin(saved), shard_rows=2)
    writer.close()
    ScoreWriter(tmp_path, origin(saved), shard_rows=2).close()


@pytest.mark.parametrize(("text", "sentence"), [(None, "there is no score cache"), ('{"format": 9}', "has format 9, and")])
def test_a_directory_without_a_cache_is_refused(tmp_path: Path, text: str | None, sentence: str) -> None:
    if text is not None:
        (tmp_path / "cache.json").write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        ScoreCache(tmp_path)


def test_a_lost_index_is_made_anew_from_the_shards(saved: Path, tmp_path: Path) -> None:
    scores, mine = live(saved, ROLLOUTS), origin(saved)
    write(tmp_path, mine, scores)
    before = json.loads((tmp_path / "cache.json").read_text())
    (tmp_path / "cache.json").unlink()
    with pytest.raises(ConfigError, match=r"cache.json is lost: .* lists the shards anew"):
        ScoreCache(tmp_path)
    writer = ScoreWriter(tmp_path, mine, shard_rows=2)
    assert all(rollout in writer.existing for rollout in ROLLOUTS)
    writer.close()
    assert json.loads((tmp_path / "cache.json").read_text()) == before
    for rollout, wanted in zip(ROLLOUTS, scores, strict=True):
        assert_same_bits(ScoreCache(tmp_path).read(rollout), wanted)


@pytest.mark.parametrize("silent", [True, False])
def test_shards_of_another_teacher_or_of_none_are_kept_and_refused(saved: Path, tmp_path: Path, silent: bool) -> None:
    mine = origin(saved)
    write(tmp_path, mine, live(saved, ROLLOUTS))
    (tmp_path / "cache.json").unlink()
    shards = sorted(tmp_path.glob("*.safetensors"))
    if silent:
        save_file({"keys": np.zeros((1, 32), np.uint8)}, shards[0])
    whose = "does not say whose scores it holds" if silent else "holds scores of "
    with pytest.raises(ConfigError, match=f"cache.json is lost, and scores-00000.safetensors {whose}"):
        ScoreWriter(tmp_path, mine if silent else replace(mine, weights="others"), shard_rows=2)
    assert sorted(tmp_path.glob("*.safetensors")) == shards


@pytest.mark.parametrize(
    "change",
    [
        {"origin": {"model": "m"}},
        {"origin": 3},
        {"shards": [{"file": "../secret", "rows": 1, "tokens": 1, "sha256": "x"}]},
        {"shards": [{"file": "scores-00000.safetensors"}]},
        {"shards": "many"},
        {"hidden_dtype": None},
    ],
    ids=str,
)
def test_an_index_of_another_shape_is_refused(saved: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    mine = origin(saved)
    write(tmp_path, mine, live(saved, ROLLOUTS))
    index = json.loads((tmp_path / "cache.json").read_text())
    (tmp_path / "cache.json").write_text(json.dumps(index | change))
    for read in (lambda: ScoreCache(tmp_path), lambda: check_origin(tmp_path, mine)):
        with pytest.raises(ConfigError, match=r"cache.json is of another shape \("):
            read()


@pytest.mark.parametrize(
    "change",
    [
        {"keys": np.zeros((2, 31), np.uint8)},
        {"keys": np.zeros((3, 32), np.uint8)},
        {"starts": np.array([0, 9, 4])},
        {"starts": np.array([0, 4, 99])},
        {"starts": np.array([[0, 4, 13]])},
        {"hidden": None},
        {"keys": None},
    ],
    ids=str,
)
def test_a_shard_whose_arrays_do_not_fit_is_refused(saved: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path, origin(saved), live(saved, ROLLOUTS))
    file = tmp_path / "scores-00000.safetensors"
    tensors = {name: value for name, value in (load_file(file) | change).items() if value is not None}
    save_file(tensors, file)
    index = json.loads((tmp_path / "cache.json").read_text())
    index["shards"][0]["sha256"] = sha256(file)
    (tmp_path / "cache.json").write_text(json.dumps(index))
    with pytest.raises(
        ConfigError, match=r"scores-00000.safetensors is not a shard of a score cache: .*; remove the cache and"
    ):
        ScoreCache(tmp_path)


def test_a_full_disk_leaves_the_shards_before_it(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    scores, mine = live(saved, ROLLOUTS), origin(saved)
    writer = ScoreWriter(tmp_path, mine, shard_rows=2)
    writer.add(ROLLOUTS[:2], scores[:2])
    with monkeypatch.context() as patch:
        patch.setattr("minidist.teachers.cache.writer.save_file", full)
        with pytest.raises(DiskFullError, match=r"scores-00001.safetensors could not be written: No space left on device"):
            writer.add(ROLLOUTS[2:4], scores[2:4])
    writer._lock.close()
    assert len(ScoreCache(tmp_path)) == 2
