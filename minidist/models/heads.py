"""Output heads: the head of a model in memory, and one read from a checkpoint without loading the rest."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from minidist.config.teacher import TeacherConfig
from minidist.errors import ModelError
from minidist.losses.chunked import Head, LinearHead
from minidist.models.files import resolve
from minidist.models.hub import load_config
from minidist.models.shape import skeleton


def load_teacher_head(config: TeacherConfig, vocabulary: int | None, device: torch.device | str = "cpu") -> LinearHead:
    """The head of `teacher.model`, on the learner's device; `vocabulary` slices padded ids off before the softmax. Raises
    ModelError if the checkpoint holds none."""
    path, model_config = resolve(config.model or "", "teacher.model"), load_config(config, "teacher.model")
    model = skeleton(model_config, trust_remote_code=config.trust_remote_code)
    weight = _read(path, _names(model))
    bias = _read(path, ["lm_head.bias"]) if getattr(model.get_output_embeddings(), "bias", None) is not None else None
    if weight is None:
        raise ModelError(
            f"teacher.model: {path} has no output head in its safetensors files, which payload hidden needs; save the whole "
            "model as safetensors, or set teacher.payload=top_k"
        )
    dtype = getattr(torch, config.dtype)
    bias = None if bias is None else bias.to(dtype).to(device)
    return _linear_head(weight.to(dtype).to(device), bias, model_config, vocabulary)


def vocabulary_size(config: PretrainedConfig) -> int:
    """Rows of the embedding, padding included."""
    return int(config.get_text_config().vocab_size)


def _names(model: PreTrainedModel) -> list[str]:
    """Names that the head may have in the checkpoint: its module's, or that of the input embedding it is tied to."""
    ends = [model.get_output_embeddings(), model.get_input_embeddings()]
    modules = {id(module): name for name, module in model.named_modules(remove_duplicate=False)}
    head, embedding = (f"{modules[id(end)]}.weight" for end in ends)
    names = [head, embedding] if model.config.get_text_config().tie_word_embeddings else [head]
    # Some checkpoints (GPT-2's) omit the prefix of the base model.
    return names + [name.removeprefix(f"{model.base_model_prefix}.") for name in names]


def _read(path: Path, names: list[str]) -> Tensor | None:
    """The first of the named tensors that the checkpoint holds, or None."""
    index = path / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"] if index.is_file() else None
    for name in names:
        file = path / (files.get(name, "") if files else "model.safetensors")
        if not file.is_file():
            continue
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 (safe_open is not a mapping)
                return tensors.get_tensor(name)
    return None


def head_of(model: PreTrainedModel, vocabulary: int | None = None) -> Head:
    """The model's output head as it is now: hidden states [N, D] to float32 logits [N, V], sliced to `vocabulary`."""
    linear: Any = model.get_output_embeddings()
    head = _linear_head(linear.weight, linear.bias, model.config, vocabulary)
    if not hasattr(linear.weight, "ds_id"):
        return head
    # ZeRO-3 gathers a partitioned weight only when its module is called.
    return lambda hidden_ND: head.finish(linear(hidden_ND.to(linear.weight.dtype))[:, :vocabulary])


def _linear_head(weight: Tensor, bias: Tensor | None, config: PretrainedConfig, vocabulary: int | None) -> LinearHead:
    """With the factor of a model's logits: Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`."""
    multiplier = getattr(config, "logit_scale", None)
    scale = 1.0 / float(getattr(config, "logits_scaling", None) or 1.0) if multiplier is None else float(multiplier)
    return LinearHead(weight, bias, scale, getattr(config, "final_logit_softcapping", None), vocabulary)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise ModelError if `head_of` does not reproduce the model's logits: some families change them in other ways."""
    ids = torch.arange(4, device=next(model.parameters()).device)[None]
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    recomputed = head_of(model)(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])
    scale = float(logits.abs().max()) + 1.0
    difference = float((logits - recomputed).abs().max())
    if difference > 0.02 * scale:
        raise ModelError(
            f"{type(model).__name__} is not supported: it changes its logits after the output head in a way that minidist does "
            f"not reproduce (they differ by {difference:.3g})"
        )
