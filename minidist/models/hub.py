"""Hugging Face models as minidist uses them: found, loaded, and run on flat micro-batches up to their hidden states."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from minidist.config.models import ModelConfig, StudentConfig
from minidist.data.batching import MicroBatch
from minidist.data.rendering import character_tokenizer
from minidist.data.tasks import find
from minidist.errors import ModelError
from minidist.lora import is_adapter
from minidist.losses.chunked import Head, LinearHead
from minidist.types import Array, TeacherHead

_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]


def resolve(name: str, where: str, *, weights: bool = True) -> Path:
    """The local directory of a model or tokenizer; a hub name is downloaded, without its weights unless asked for."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{where}: no model directory at {name}; train one with minidist sft, or correct the path")
    try:
        return Path(snapshot_download(name, allow_patterns=[*_SMALL_FILES, "*.safetensors"] if weights else _SMALL_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{where}: no directory {name}, and the hub does not give it: {reason}") from None


def load_config(config: ModelConfig, where: str) -> PretrainedConfig:
    """Configuration of a checkpoint, without its weights."""
    path = _whole(resolve(config.model or "", where, weights=False), where)
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=config.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{where}: {path} holds no usable config.json: {str(error).splitlines()[0]}") from None


def _whole(path: Path, where: str) -> Path:
    """The same path. Raises ModelError where it holds adapters alone: vLLM, and a teacher's head, need the whole model."""
    if is_adapter(path):
        raise ModelError(
            f"{where}: {path} holds a LoRA adapter, and a whole model is needed; train with student.lora.save=merged, or "
            "merge it with PEFT's merge_and_unload"
        )
    return path


def load_tokenizer(name: str, where: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """A tokenizer from a directory or the hub; `characters:TASK` is made on the spot."""
    if name.startswith("characters:"):
        return character_tokenizer(find(name.removeprefix("characters:")).alphabet)
    path = resolve(name, where, weights=False)
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"{where}: {path} holds no usable tokenizer: {str(error).splitlines()[0]}") from None


def student_tokenizer(config: StudentConfig) -> PreTrainedTokenizerBase:
    """The student's tokenizer: named, or the checkpoint's own."""
    where = "student.tokenizer" if config.tokenizer else "student.model"
    return load_tokenizer(config.tokenizer or config.model or "", where, trust_remote_code=config.trust_remote_code)


def architecture(config: StudentConfig, tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    """The transformers configuration that `student.architecture` describes; unknown fields are refused."""
    fields: dict[str, Any] = dict(config.architecture or {})
    try:
        known = AutoConfig.for_model(fields.pop("model_type"))
    except ValueError as error:
        raise ModelError(f"student.architecture.model_type: {str(error).splitlines()[0]}") from None
    aliases = set(known.attribute_map)
    for key in fields:
        if key not in aliases and not hasattr(known, key):
            raise ModelError(f"student.architecture.{key} is no field of a {known.model_type} configuration")
    tokens: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokens["pad_token_id"] = None  # the embedding of a padding token is never trained
    given: dict[str, Any] = {"bos_token_id": tokenizer.bos_token_id} | tokens | fields
    return type(known)(**given)


def build_student(config: StudentConfig, tokenizer: PreTrainedTokenizerBase, seed: int, gpus: int = 0) -> PreTrainedModel:
    """The student: from its checkpoint, or random weights of its architecture."""
    if config.model is not None:
        return load_model(config, "student.model", gpus)
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(architecture(config, tokenizer), dtype=getattr(torch, config.dtype))
    return model.to(pick_device(gpus)).eval()


def load_model(config: ModelConfig, where: str, gpus: int = 0) -> PreTrainedModel:
    """A checkpoint's model in evaluation mode (no dropout), from safetensors only, on the role's device."""
    path = _whole(resolve(config.model or "", where), where)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            path, dtype=getattr(torch, config.dtype), trust_remote_code=config.trust_remote_code, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{where}: cannot load {path}: {str(error).splitlines()[0]}") from None
    return model.to(pick_device(gpus)).eval()


def context_length(config: PretrainedConfig) -> int:
    """Longest sequence the model takes, in tokens."""
    return int(getattr(config, "max_position_embeddings", None) or 1 << 20)


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


def padded_layout(layout: str, device: torch.device) -> bool:
    """Whether micro-batches are computed as rectangles (`buckets`) rather than as one packed row."""
    return layout == "buckets" or (layout == "auto" and device.type == "cpu")


def hidden_states(model: PreTrainedModel, micro: MicroBatch, *, padded: bool, prompt_PD: Tensor | None = None) -> Tensor:
    """Hidden states [L, D] before the output head, at the L loss tokens of a flat micro-batch.

    Rows do not see one another: in a rectangle each has its own line, and causal attention hides the padding on its
    right; in a packed row the positions, which start again with each row, part them. `prompt_PD`: embeddings of P virtual
    tokens that every row begins with; its own tokens come P positions later.
    """
    if prompt_PD is not None:
        micro = _lengthened(micro, len(prompt_PD))
    device = next(model.parameters()).device
    tokens, positions = torch.as_tensor(micro.tokens, device=device), torch.as_tensor(micro.positions, device=device)
    sequence, outputs = torch.as_tensor(micro.sequence, device=device), torch.as_tensor(micro.outputs, device=device)
    if padded:
        rows, longest = len(micro.rows), int(micro.positions.max()) + 1
        places = sequence * longest + positions
        ids = torch.zeros(rows * longest, dtype=torch.long, device=device).index_put((places,), tokens).view(rows, longest)
        # No mask: with causal attention a token never looks at the padding behind it, and the kernel stays the fast one.
        text = {"input_ids": ids} if prompt_PD is None else _behind(prompt_PD, model, ids, places[positions < len(prompt_PD)])
        hidden = model.base_model(**text, use_cache=False).last_hidden_state
        return hidden.reshape(rows * longest, -1)[places[outputs]]
    ids = tokens[None]
    text = (
        {"input_ids": ids}
        if prompt_PD is None
        else _behind(prompt_PD, model, ids, (positions < len(prompt_PD)).nonzero()[:, 0])
    )
    # Without a mask transformers reads the rows' borders off the positions, and keeps each layer's own window.
    hidden = model.base_model(**text, position_ids=positions[None], use_cache=False).last_hidden_state
    return hidden[0, outputs]


def _lengthened(micro: MicroBatch, count: int) -> MicroBatch:
    """The micro-batch with `count` tokens before each row. Their ids say nothing; outputs are where they were in their rows."""
    rows = len(micro.rows)
    starts = np.repeat(np.flatnonzero(micro.positions == 0), count)
    return replace(
        micro,
        tokens=np.insert(micro.tokens, starts, 0),
        positions=np.insert(micro.positions + count, starts, np.tile(np.arange(count), rows)),
        sequence=np.insert(micro.sequence, starts, np.repeat(np.arange(rows), count)),
        outputs=micro.outputs + count * (micro.sequence[micro.outputs] + 1),
    )


def _behind(prompt_PD: Tensor, model: PreTrainedModel, ids: Tensor, places: Tensor) -> dict[str, Tensor]:
    """The model's input: embeddings of `ids` [B, S], and at the flat `places`, row after row, those of the prompt."""
    embedding: Any = model.get_input_embeddings()
    table = embedding(ids)
    prompts = prompt_PD.to(table.dtype).repeat(len(places) // max(1, len(prompt_PD)), 1)
    return {"inputs_embeds": table.flatten(0, 1).index_put((places,), prompts).view_as(table)}


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


def to_tensor(array: Array, dtype: str) -> Tensor:
    """A numpy array to a tensor; bfloat16 travels as uint16."""
    import warnings

    with warnings.catch_warnings():
        # Arrays out of Ray's object store are read-only views, and so is this tensor: nobody writes to it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" and array.dtype.name == "uint16" else tensor


def to_array(tensor: Tensor) -> tuple[Array, str]:
    """A tensor to a numpy array and the name of its dtype; bfloat16 travels as uint16."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy(), "bfloat16"
    return tensor.numpy(), str(tensor.dtype).removeprefix("torch.")


def pick_device(gpus: int) -> torch.device:
    """The device of a role: its GPU when the run has any, else the CPU."""
    return torch.device("cuda", 0) if gpus and os.environ.get("CUDA_VISIBLE_DEVICES") != "" else torch.device("cpu")


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep only each layer's input for the backward pass, and compute the layer again there.

    transformers does so only in training mode. The layers alone are put into it, not what is in them: dropout stays off.
    """
    if not model.supports_gradient_checkpointing:
        raise ModelError(f"{type(model).__name__} has no activation checkpointing; set learner.activation_checkpointing=false")
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def repeatable(deterministic: bool) -> None:
    """Have torch give the same bits again in this process, or refuse an operation that cannot."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it cuBLAS may choose other sums each time
        torch.use_deterministic_algorithms(True)
        # It would also fill every new tensor, DeepSpeed's buckets of a gigabyte among them, at each step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
