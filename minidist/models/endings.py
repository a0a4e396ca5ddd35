"""The ids at which a model's own files end an answer. No weights are read."""

from pathlib import Path
from typing import Any

from minidist.errors import ModelError
from minidist.models.files import resolve
from minidist.run.files import read_record

_FILES = ("config.json", "generation_config.json")


def stop_ids(name: str | None, where: str) -> frozenset[int]:
    """Every id that config.json (that of its language model too) or generation_config.json lists as `eos_token_id`.

    The files are read as they are, since transformers fills in an id that they do not name. None: a model without files.
    """
    if name is None:
        return frozenset()
    path = resolve(name, where, weights=False)
    trees = [_read(path / file, where) for file in _FILES if (path / file).is_file()]
    trees += [tree["text_config"] for tree in trees if isinstance(tree.get("text_config"), dict)]
    return frozenset(index for tree in trees for index in _ids(tree.get("eos_token_id"), f"{where}: {path}"))


def _read(file: Path, where: str) -> dict[str, Any]:
    return read_record(file, dict[str, Any], f"mend this file of {where}, or take it from the model's source", ModelError)


def _ids(value: Any, where: str) -> list[int]:
    """A number or a list of numbers as a list; a negative number stands for none."""
    values = value if isinstance(value, list) else [value]
    if not all(each is None or (isinstance(each, int) and not isinstance(each, bool)) for each in values):
        raise ModelError(f"{where} has eos_token_id {value!r}; expected a number, a list of numbers or null: mend the file")
    return [each for each in values if each is not None and each >= 0]
