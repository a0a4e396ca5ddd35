"""The directory of a model, on this machine or downloaded from the Hugging Face hub. Imports no torch."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from minidist.errors import ModelError

ADAPTER_CONFIG = "adapter_config.json"
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]


def resolve(name: str, where: str, *, weights: bool = True) -> Path:
    """The local directory of a model or tokenizer. A hub name is downloaded; without `weights`, only its small files."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{where}: no model directory at {name}; train one with minidist sft, or correct the path")
    try:
        return Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, "*.safetensors"] if weights else _SMALL_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{where}: {name} is not a directory, and the hub did not provide it: {reason}") from None


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
    """Raise an error of transformers or PEFT as a ModelError: `sentence`, and the first line of the error."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise ModelError(f"{sentence}: {str(error).splitlines()[0]}") from None


def is_adapter(path: Path) -> bool:
    """Whether transformers would read this directory as adapters on another model."""
    return (path / ADAPTER_CONFIG).is_file()
