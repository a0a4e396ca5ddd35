"""Hugging Face models: configuration, tokenizer and weights."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from minidist.config.models import ModelConfig, StudentConfig
from minidist.data.rendering import character_tokenizer
from minidist.data.tasks import find
from minidist.errors import ModelError
from minidist.models.activations import fuse_gelu
from minidist.models.device import pick_device
from minidist.models.families import attention_kernel, freeze_other_parts, shifted_positions
from minidist.models.files import refused, resolve, whole_model
from minidist.models.filling import fill
from minidist.models.generation import left_out_line, read_generation, settled
from minidist.models.sizes import check_sizes
from minidist.run.tracking import log

# Where a tokenizer may be in a directory of its own.
_CURES = {f"{role}.model": f" (set {role}.tokenizer to a directory that has one)" for role in ("student", "teacher")}


def load_config(config: ModelConfig, where: str) -> PretrainedConfig:
    """The transformers configuration of a checkpoint; its weights are not downloaded."""
    path = whole_model(resolve(config.model or "", where, weights=False), where)
    with refused(f"{where}: {path} has no usable config.json"):
        found = AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    check_sizes(found, f"{where}: {path}/config.json")
    return found


def load_tokenizer(name: str, where: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer from a directory or the hub; `characters:TASK` builds one of the task's characters."""
    if name.startswith("characters:"):
        return character_tokenizer(find(name.removeprefix("characters:")).alphabet)
    path = resolve(name, where, weights=False)
    with refused(f"{where}: {path} has no usable tokenizer{_CURES.get(where, '')}"):
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        tokenizer("a text")  # finds settings of another type
        if not set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens):  # made of the model's family alone
            raise ValueError("it has no vocabulary; copy the tokenizer's files to it")
    return tokenizer


def tokenizer_of(config: ModelConfig, where: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model or, where `tokenizer` beside `model` is set, that one. `where`: the key of the model."""
    where = f"{where.removesuffix('.model')}.tokenizer" if config.tokenizer else where
    return load_tokenizer(config.tokenizer or config.model or "", where, trust_remote_code=config.trust_remote_code)


def architecture(config: StudentConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The transformers configuration that `student.architecture` describes; unknown fields are refused."""
    fields: dict[str, Any] = dict(config.architecture or {})
    with refused("student.architecture.model_type"):
        known = AutoConfig.for_model(fields.pop("model_type"))
    aliases = set(known.attribute_map)
    for key in fields:
        if key not in aliases and not hasattr(known, key):
            raise ModelError(f"student.architecture.{key} is not a field of a {known.model_type} configuration")
    first, end, padding = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    padding = None if padding == end else padding  # the embedding of a padding token is never trained
    tokens = {"bos_token_id": first, "vocab_size": len(tokenizer), "eos_token_id": end, "pad_token_id": padding}
    with refused("student.architecture"):
        made = type(known)(**tokens | fields)
    check_sizes(made, "student.architecture")
    return made


def build_student(
    config: StudentConfig,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    on_gpu: bool = False,
    *,
    partitioning: AbstractContextManager[None] | None = None,
) -> PreTrainedModel:
    """The student: from its checkpoint, as `load_model` loads it, or whole with random weights in its architecture."""
    if config.model is not None:
        return load_model(config, "student.model", on_gpu, partitioning)
    torch.manual_seed(seed)
    shape = architecture(config, tokenizer)
    options = {"dtype": getattr(torch, config.dtype), "attn_implementation": attention_kernel(shape)}
    return _ready(AutoModelForCausalLM.from_config(shape, **options), on_gpu)


def load_model(
    config: ModelConfig, where: str, on_gpu: bool = False, partitioning: AbstractContextManager[None] | None = None
) -> PreTrainedModel:
    """The model of a checkpoint in evaluation mode (no dropout), from safetensors only, on the role's device. `partitioning`: a
    context in which parameters are partitioned over ranks as they are made; each rank then reads its own parts alone."""
    shape = load_config(config, where)
    if partitioning is None:
        return _ready(read_checkpoint(AutoModelForCausalLM, config, where, shape)[0], on_gpu)
    path = whole_model(resolve(config.model or "", where), where)
    found = read_generation(path, where)
    options = {"dtype": getattr(torch, config.dtype), "attn_implementation": attention_kernel(shape)}
    with refused(f"{where}: cannot load {path}"):
        with partitioning:
            model = AutoModelForCausalLM.from_config(shape, trust_remote_code=config.trust_remote_code, **options)
        fill(model, path, where)
    return _ready(_with_generation(model, found, where), on_gpu)


def read_checkpoint(maker: Any, config: ModelConfig, where: str, shape: PretrainedConfig) -> tuple[Any, set[str]]:
    """The model that a class of transformers makes of a checkpoint, from safetensors only, with generation settings that can be
    written; and the names of the weights that the checkpoint does not have, which are random.

    Args:
        maker: AutoModelForCausalLM, or another of its kind.
        config: the section.
        where: key of the section's model, for messages.
        shape: the configuration of the model.
    """
    path = whole_model(resolve(config.model or "", where), where)
    options: dict[str, Any] = {"trust_remote_code": config.trust_remote_code, "use_safetensors": True, "config": shape}
    options |= {"dtype": getattr(torch, config.dtype), "attn_implementation": attention_kernel(shape)}
    found = read_generation(path, where)
    if found is not None:
        options["generation_config"] = found[0]
    with refused(f"{where}: cannot load {path}"):
        model, report = maker.from_pretrained(path, output_loading_info=True, **options)
    return _with_generation(model, found, where), set(report["missing_keys"])


def _with_generation(model: Any, found: tuple[GenerationConfig, list[str]] | None, where: str) -> Any:
    """The model with generation settings that can be written: those `found` beside its weights."""
    if model.can_generate():
        # Without a file of their own the settings are those of config.json.
        model.generation_config, left_out = settled(model.generation_config.to_diff_dict()) if found is None else found
        if left_out:
            log.warning("%s", left_out_line(where, left_out))
    return model


def _ready(model: Any, on_gpu: bool) -> PreTrainedModel:
    """The model on the role's device, without dropout; what text never reaches is frozen."""
    freeze_other_parts(model)
    fuse_gelu(model)
    return model.to(pick_device(on_gpu)).eval()


def context_length(config: PretrainedConfig) -> int:
    """The longest sequence that the model accepts, in tokens."""
    text = config.get_text_config()
    return int(getattr(text, "max_position_embeddings", None) or 1 << 20) - shifted_positions(text)
