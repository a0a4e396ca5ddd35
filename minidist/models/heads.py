"""Output heads: the head of a model in memory, and one read from a checkpoint without loading the rest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from minidist.config.teacher import TeacherConfig
from minidist.errors import ModelError
from minidist.losses.chunked import Head, LinearHead
from minidist.models.files import INDEX, WEIGHTS, resolve, weight_map
from minidist.models.hub import load_config
from minidist.models.names import names_in_files
from minidist.models.shape import skeleton
from minidist.run.files import open_tensors


def load_teacher_head(config: TeacherConfig, vocabulary: int | None, device: torch.device | str = "cpu") -> LinearHead:
    """The head of `teacher.model`, on the learner's device; `vocabulary` slices padded ids off before the softmax. Of a model
    on the hub only the files that hold it are downloaded. Raises ModelError if the checkpoint holds none."""
    model_config = load_config(config, "teacher.model")
    model: Any = skeleton(model_config, trust_remote_code=config.trust_remote_code)
    ends = [model.get_output_embeddings(), model.get_input_embeddings()]
    tied = ends[0].weight is ends[1].weight
    weight_names = _names(model, ends if tied else ends[:1], "weight")
    bias_names = [] if getattr(ends[0], "bias", None) is None else _names(model, ends[:1], "bias")
    path = _with_weights(config.model or "", [*weight_names, *bias_names])
    weight, bias = _read(path, weight_names), _read(path, bias_names)
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


def _names(model: PreTrainedModel, ends: list[nn.Module], tensor: str) -> list[str]:
    """Names that a tensor of the first of these modules may have in the checkpoint: its own, or that of one it is tied to."""
    modules = {id(module): name for name, module in model.named_modules(remove_duplicate=False)}
    return names_in_files(model, [f"{modules[id(end)]}.{tensor}" for end in ends])


def _with_weights(model: str, names: list[str]) -> Path:
    """The local directory of the teacher, with the files that hold the named tensors."""
    files = _files(resolve(model, "teacher.model", weights=False))
    return resolve(model, "teacher.model", weights=True if files is None else sorted({files[n] for n in names if n in files}))


def _files(path: Path) -> dict[str, str] | None:
    """The file of each tensor of a checkpoint; None where it has one file alone."""
    return weight_map(path, "teacher.model") if (path / INDEX).is_file() else None


def _read(path: Path, names: list[str]) -> Tensor | None:
    """The first of the named tensors that the checkpoint holds, or None."""
    files = _files(path)
    for name in names:
        file = path / (files.get(name, "") if files else WEIGHTS)
        if not file.is_file():
            continue
        with open_tensors(file, "copy the model again", ModelError, "pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 (no mapping)
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


class OutputHead(nn.Module):
    """A model's output head as a module of its own, called once for all chunks of a micro-batch: ZeRO-3 gathers a partitioned
    weight when the module that has it is called, and again for its backward pass."""

    bias: Tensor | None

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        linear: Any = model.get_output_embeddings()
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self._config = model.config

    def forward(self, hidden_ND: Tensor, vocabulary: int | None, work: Callable[[LinearHead, Tensor], Any]) -> Any:
        """What `work` makes of the head, sliced to `vocabulary`, and of the hidden states."""
        return work(_linear_head(self.weight, self.bias, self._config, vocabulary), hidden_ND)


def _linear_head(weight: Tensor, bias: Tensor | None, config: PretrainedConfig, vocabulary: int | None) -> LinearHead:
    """With what the family does to its logits: factors, of which a configuration has one at most, and a soft cap."""
    text = config.get_text_config()
    scale = 1.0
    for name, power in _FACTORS.items():
        scale *= float(getattr(text, name, None) or 1.0) ** power
    return LinearHead(weight, bias, scale, getattr(text, "final_logit_softcapping", None), vocabulary)


_FACTORS = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1}
"""Factors of the logits: of Cohere, of Falcon-H1, and of Granite, which divides."""


@torch.no_grad()
def check_logits(config: PretrainedConfig, where: str, *, trust_remote_code: bool = False) -> None:
    """Raise ModelError if the family changes its logits in ways that `head_of` does not reproduce, without any weights: the
    skeleton's own forward pass runs on random hidden states and a random head of a few classes."""
    model: Any = skeleton(config, trust_remote_code=trust_remote_code)
    old = model.get_output_embeddings()
    head = nn.Linear(old.in_features, _CLASSES, bias=old.bias is not None)
    model.set_output_embeddings(head)
    hidden_BSD: Any = torch.randn(1, 4, old.in_features)
    for part in (model.base_model, model.get_decoder()):
        part.forward = lambda *_, **__: _Hidden(last_hidden_state=hidden_BSD)
    try:
        logits = model(input_ids=torch.zeros(1, 4, dtype=torch.long), use_cache=False).logits[0].float()
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return  # the forward pass needs more than hidden states: `check_head` compares when the weights are loaded
    _compare(logits, _linear_head(head.weight, head.bias, config, None)(hidden_BSD[0]), f"{where}: {config.model_type}")


_CLASSES = 8


class _Hidden(BaseModelOutputWithPast):
    """The output of a base model, of which only the hidden states are known."""

    def __getattr__(self, name: str) -> None:
        return None


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise ModelError if `head_of` does not reproduce the model's logits: some families change them in other ways."""
    ids = torch.arange(4, device=next(model.parameters()).device)[None]
    logits = model(input_ids=ids, use_cache=False).logits[0].float()
    recomputed = head_of(model)(model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0])
    _compare(logits, recomputed, type(model).__name__)


def _compare(logits: Tensor, recomputed: Tensor, model: str) -> None:
    difference = float((logits - recomputed).abs().max())
    if difference > 0.02 * (float(logits.abs().max()) + 1.0):
        raise ModelError(
            f"{model} is not supported: it changes its logits after the output head in a way that minidist does not reproduce "
            f"(they differ by {difference:.3g})"
        )
