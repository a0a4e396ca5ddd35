"""How a finished model is loaded: the class of transformers, and the lines of a card."""

from pathlib import Path
from typing import Any

from minidist.config import DistillConfig, SftConfig, TeachConfig
from minidist.errors import ModelError
from minidist.models.files import ADAPTER_CONFIG, is_adapter
from minidist.publishing.markdown import block
from minidist.run.files import read_record

_HEADS = {
    "ForSequenceClassification": ("AutoModelForSequenceClassification", "text-classification"),
    "ForTokenClassification": ("AutoModelForTokenClassification", "token-classification"),
    "ForMaskedLM": ("AutoModelForMaskedLM", "fill-mask"),
    "ForMultipleChoice": ("AutoModelForMultipleChoice", None),
    "ForConditionalGeneration": ("AutoModelForSeq2SeqLM", "text-generation"),
}
"""Class of transformers and task of the hub, by the ending of the architecture's name; else a causal language model."""


def auto_class(final: Path) -> str:
    """Name of the class of transformers that loads a finished model. Raises ModelError."""
    return _head(final)[0]


def pipeline_tag(final: Path, config: SftConfig | DistillConfig | TeachConfig) -> str | None:
    """The hub's name of what the model does; None where it has none."""
    if not isinstance(config, TeachConfig):
        return "text-generation"
    return "text-classification" if config.task.type in ("classes", "score") else _head(final)[1]


def _head(final: Path) -> tuple[str, str | None]:
    if is_adapter(final):
        return "AutoModelForCausalLM", "text-generation"
    found = read_record(final / "config.json", dict[str, Any], "train the model again", ModelError).get("architectures")
    name = str(found[0]) if isinstance(found, list) and found else ""
    return next((pair for ending, pair in _HEADS.items() if name.endswith(ending)), ("AutoModelForCausalLM", "text-generation"))


def loading_lines(final: Path, config: SftConfig | DistillConfig | TeachConfig) -> str:
    """Code that loads the model with transformers and, where vLLM serves its kind, with vLLM."""
    name, path, adapter = auto_class(final), config.run.push_to_hub or "path/to/final", is_adapter(final)
    trust = ", trust_remote_code=True" if config.student.trust_remote_code else ""
    lines = f"""from transformers import {name}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{path}"{trust})
model = {name}.from_pretrained("{path}"{trust})
"""
    if adapter:
        lines = "# pip install peft; transformers then loads the base model and these adapters\n" + lines
    if name != "AutoModelForCausalLM":
        return block(lines, "python")
    base = _base_of(final)
    served = f"vllm serve {base} --enable-lora --lora-modules student={path}" if adapter else f"vllm serve {path}"
    return block(lines, "python") + "\n" + block(served + " --trust-remote-code" * bool(trust) + "\n", "sh")


def _base_of(final: Path) -> str:
    """The model that an adapter adapts, where its name can stand in a command; else a placeholder."""
    found = (
        read_record(final / ADAPTER_CONFIG, dict[str, Any], "train the model again", ModelError) if is_adapter(final) else {}
    )
    name = found.get("base_model_name_or_path")
    fits = isinstance(name, str) and name.replace("/", "").replace("-", "").replace("_", "").replace(".", "").isalnum()
    return name if isinstance(name, str) and fits and not name.startswith("/") else "BASE_MODEL"
