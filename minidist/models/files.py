"""The directory of a model, on this machine or downloaded from the Hugging Face hub. Imports no torch."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from minidist.errors import MinidistError, ModelError
from minidist.run.files import open_tensors, read_record, shaped
from minidist.storage import fetch, is_address, names

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "README.md"]


def resolve(name: str, where: str, *, weights: bool | Sequence[str] = True) -> Path:
    """The local directory of a model or tokenizer. What is at an fsspec address or on the hub is downloaded: of its weights
    all, none, or the named files."""
    files = (["*.safetensors"] if weights else []) if isinstance(weights, bool) else weights
    if is_address(name):
        return fetch(name, where, (*_SMALL_FILES, *files))
    path = Path(name).expanduser()
    if path.is_dir():
        _check_kinds(path, where)
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{where}: no model directory at {name}; train one with minidist sft or teach, or correct the path")
    try:
        return Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, *files]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{where}: {name} is not a directory, and the hub did not provide it: {reason}") from None


def _check_kinds(path: Path, where: str) -> None:
    """Raise ModelError where a directory of a model holds what is neither file nor directory, such as a pipe: a library that
    reads one waits without end."""
    try:
        odd = next((entry for entry in path.iterdir() if entry.exists() and not (entry.is_file() or entry.is_dir())), None)
    except OSError as error:
        raise ModelError(f"{where}: {path} cannot be read: {error.strerror}; correct the path") from None
    if odd is not None:
        raise ModelError(f"{where}: {odd} is neither a file nor a directory; remove it, or copy the model again")


def whole_model(path: Path, where: str) -> Path:
    """`path`, unless it holds LoRA adapters alone: vLLM and a teacher's head read a whole model. Raises ModelError."""
    if is_adapter(path):
        raise ModelError(
            f"{where}: {path} holds only a LoRA adapter, but a whole model is needed; train with student.lora.save=merged, or "
            "merge the adapter with PEFT's merge_and_unload"
        )
    return path


@contextmanager
def refused(sentence: str) -> Iterator[None]:
    """Raise an error of transformers or PEFT as a ModelError: `sentence`, and the beginning of the error.

    Files that others wrote bring these libraries to raise errors of any type.
    """
    try:
        yield
    except (MinidistError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()] or ["no reason given"]
        reason = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        raise ModelError(f"{sentence}: {kind}{reason[:300]}") from None


def check_json(path: Path, where: str) -> None:
    """The small JSON files of a model or a tokenizer hold objects. Raises ModelError."""
    for name in _JSON_FILES:
        if os.path.lexists(path / name):
            read_record(path / name, dict[str, Any], f"correct this file of {where}", ModelError)


def check_weights(name: str, where: str) -> None:
    """A model has weights in safetensors, every file of them whole. Raises ModelError."""
    path = Path(name).expanduser()
    if not path.is_dir():
        _check_names(names(name, where) if is_address(name) else _on_hub(name), name, where)
        return
    _check_names({file.name for file in path.iterdir()}, name, where)
    whole = path / WEIGHTS
    files = [whole] if whole.is_file() else [path / file for file in weight_files(path, where)]
    for file in files:
        with open_tensors(file, f"copy the model of {where} again", ModelError):
            pass


def weight_files(path: Path, where: str) -> list[str]:
    """Names of the files that the index of a model's weights lists. Raises ModelError."""
    return sorted(set(weight_map(path, where).values()))


def weight_map(path: Path, where: str) -> dict[str, str]:
    """The file of each tensor, by the index of a model's weights; every file is below `path`. Raises ModelError."""
    index = read_record(path / INDEX, dict[str, Any], "copy the model again", ModelError)
    where = f"{where}: {path / INDEX} is of another shape"
    found = shaped(index.get("weight_map"), dict[str, str], where, "copy the model again", ModelError)
    for name in found.values():
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ModelError(f"{where}: it names the file {name!r}, outside the model's directory; copy the model again")
    return found


def _check_names(found: set[str] | None, name: str, where: str) -> None:
    if found is None or found & {WEIGHTS, INDEX}:
        return
    pickled = sorted(each for each in found if each.endswith((".bin", ".pt", ".pth")) and "training_args" not in each)
    if pickled:
        kind = f"{name} holds its weights as {pickled[0]} alone, a kind of file that can run code when it is read"
        cure = f"convert it where you trust it, AutoModelForCausalLM.from_pretrained({name!r}).save_pretrained(DIRECTORY)"
        raise ModelError(f"{where}: {kind}; {cure} of transformers, and set {where} to that directory")
    expected = f"expected {WEIGHTS}, or {INDEX} with the files that it lists"
    raise ModelError(f"{where}: {name} holds no weights; {expected}; set {where} to the directory of a whole model")


def _on_hub(name: str) -> set[str] | None:
    """Names of a model's files on the hub; None where the hub cannot be asked."""
    try:
        return set(HfApi().list_repo_files(name))
    except Exception:  # noqa: BLE001 - the hub's library raises those of its HTTP client too
        return None


def is_adapter(path: Path) -> bool:
    """Whether transformers would read this directory as adapters on another model."""
    return (path / ADAPTER_CONFIG).is_file()
