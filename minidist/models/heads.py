"""A teacher's output head, read from its checkpoint without loading the rest."""

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
from minidist.models.arrays import to_array
from minidist.models.files import resolve
from minidist.models.hub import load_config
from minidist.models.shape import skeleton
from minidist.types import TeacherHead


def load_teacher_head(config: TeacherConfig, vocabulary: int | None) -> TeacherHead:
    """The head of `teacher.model`; `vocabulary` slices padded ids off before the softmax."""
    path, model_config = resolve(config.model or "", "teacher.model"), load_config(config, "teacher.model")
    model = skeleton(model_config, trust_remote_code=config.trust_remote_code)
    weight = _read(path, _names(model))
    bias = _read(path, ["lm_head.bias"]) if getattr(model.get_output_embeddings(), "bias", None) is not None else None
    if weight is None:
        raise ModelError(f"teacher.model: {path} has no output head in its safetensors files")
    dtype = getattr(torch, config.dtype)
    return TeacherHead(
        weight=to_array(weight.to(dtype))[0],
        bias=None if bias is None else to_array(bias.to(dtype))[0],
        scale=logit_scale(model_config),
        soft_cap=getattr(model_config, "final_logit_softcapping", None),
        vocabulary=vocabulary,
    )


def vocabulary_size(config: PretrainedConfig) -> int:
    """Rows of the embedding, padding included."""
    return int(config.get_text_config().vocab_size)


def _names(model: PreTrainedModel) -> list[str]:
    """Where the head may stand in the checkpoint: as itself, or as the input embedding it is tied to."""
    ends = [model.get_output_embeddings(), model.get_input_embeddings()]
    modules = {id(module): name for name, module in model.named_modules(remove_duplicate=False)}
    head, embedding = (f"{modules[id(end)]}.weight" for end in ends)
    names = [head, embedding] if model.config.get_text_config().tie_word_embeddings else [head]
    # Some checkpoints (GPT-2's) leave the prefix of the base model away.
    return names + [name.removeprefix(f"{model.base_model_prefix}.") for name in names]


def _read(path: Path, names: list[str]) -> torch.Tensor | None:
    index = path / "model.safetensors.index.json"
    files = json.loads(index.read_text())["weight_map"] if index.is_file() else None
    for name in names:
        file = path / (files.get(name, "") if files else "model.safetensors")
        if not file.is_file():
            continue
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                return tensors.get_tensor(name)
    return None


def head_of(model: PreTrainedModel, vocabulary: int | None = None) -> Head:
    """The model's output head as it is now: hidden states [N, D] to float32 logits [N, V], sliced to `vocabulary`."""
    linear: Any = model.get_output_embeddings()
    scale, soft_cap = logit_scale(model.config), getattr(model.config, "final_logit_softcapping", None)
    head = LinearHead(linear.weight, linear.bias, scale, soft_cap, vocabulary)
    if not hasattr(linear.weight, "ds_id"):
        return head
    # ZeRO-3 fetches a partitioned weight when its module is called, and only then.
    return lambda hidden: head.finish(linear(hidden.to(linear.weight.dtype))[:, :vocabulary])


def apply_head(head: TeacherHead, weight: Tensor, bias: Tensor | None) -> Head:
    """A `TeacherHead` whose arrays are already tensors on the learner's device."""
    return LinearHead(weight, bias, head.scale, head.soft_cap, head.vocabulary)


def logit_scale(config: PretrainedConfig) -> float:
    """Cohere multiplies its logits, Granite divides them."""
    if getattr(config, "logit_scale", None) is not None:
        return float(config.logit_scale)
    return 1.0 / float(getattr(config, "logits_scaling", None) or 1.0)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise ModelError if `head_of` does not give the model's own logits: some families scale them in ways of their own."""
    ids = torch.arange(4, device=next(model.parameters()).device)[None]
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    ours = head_of(model)(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])
    scale = float(logits.abs().max()) + 1.0
    difference = float((logits - ours).abs().max())
    if difference > 0.02 * scale:
        raise ModelError(
            f"{type(model).__name__} changes its logits after the output head in a way minidist does not know (they differ by "
            f"{difference:.3g}); its family is not supported"
        )
