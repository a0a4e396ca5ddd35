"""Identifies the teacher of a cache: checksums of its configuration, weights and vocabulary."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict

from minidist.config.teacher import TeacherConfig
from minidist.errors import ModelError
from minidist.models.files import resolve
from minidist.run.files import read_record, sha256
from minidist.teachers.cache.store import Origin
from minidist.types import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Index(TypedDict):
    """The field of a checkpoint's index that is read."""

    weight_map: dict[str, str]


_IGNORED = {"_name_or_path", "transformers_version", "dtype", "torch_dtype"}


def origin_of(config: TeacherConfig, tokenizer: "PreTrainedTokenizerBase", vocabulary: int) -> Origin:
    """The origin of this teacher's scores, or that a cache in its stead must have. Reads all of the weights.

    `tokenizer`: the teacher's. Another student may have another one, as long as they share the same ids.
    """
    path = resolve(config.model or "", "teacher.model", weights=False)
    config_file = read_record(path / "config.json", dict[str, Any], "correct this file of teacher.model", ModelError)
    shape = {key: value for key, value in config_file.items() if key not in _IGNORED}
    absent = () if config.payload == "hidden" else Vocabulary.of(vocabulary).absent
    return Origin(
        model=config.model or "",
        backend=config.backend,
        shape=_text_sum(shape),
        weights=_weights(config, path),
        tokenizer=_text_sum([tokenizer.get_vocab(), tokenizer.eos_token_id, *absent]),
        dtype=config.dtype,
        payload=config.payload,
        top_k=min(config.top_k, Vocabulary.of(vocabulary).count) if config.payload == "top_k" else None,
        vocabulary=None if config.payload == "hidden" else int(vocabulary),
    )


def _weights(config: TeacherConfig, path: Path) -> str:
    """A checksum of weights on this machine; the name and revision of others."""
    if config.remote_name is not None:
        return config.remote_name
    if not Path(config.model or "").expanduser().is_dir():
        return f"hub:{config.model}@{path.name}"  # the directory of a snapshot is named after its revision
    index = path / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if index.is_file():
        names = sorted(set(read_record(index, Index, "correct this file of teacher.model", ModelError)["weight_map"].values()))
    total = hashlib.sha256()
    for name in names:
        if not (path / name).is_file():
            raise ModelError(f"teacher.model: {path} has no {name}, whose checksum identifies the teacher of a score cache")
        total.update(bytes.fromhex(sha256(path / name)))
    return f"sha256:{total.hexdigest()}"


def _text_sum(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
