"""The shape of a model, read from its configuration: a skeleton on the meta device, and the sizes that estimates need."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from minidist.config.models import LoraConfig
from minidist.errors import ModelError
from minidist.models.families import freeze_other_parts
from minidist.models.lora import inject


@dataclass(frozen=True)
class Shape:
    """A decoder as the formulas see it; sizes in elements."""

    parameters: int
    """All of them, adapters included; tied weights are counted once."""
    trainable: int
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    gated: bool = True
    """Whether its feed-forward layers have three matrices (SwiGLU) rather than two."""
    head_norms: bool = False
    """Whether queries and keys are normalised (Qwen3)."""
    family: str = ""
    """transformers' `model_type`, such as `llama`."""
    adapted_layers: tuple[str, ...] = ()
    """Full names of the layers that get LoRA adapters."""
    unadapted: float = 0.0
    """Share of the language model's matrices, embeddings apart, that get no adapter, such as experts in one tensor."""

    @property
    def checkpoint_parameters(self) -> int:
        """Parameters of the model without adapters."""
        return self.parameters - self.trainable if self.adapted_layers else self.parameters


def skeleton(config: PretrainedConfig, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model on the meta device: names and shapes, no weights. Raises ModelError unless it is a causal language model."""
    try:
        with torch.device("meta"):  # as from_pretrained builds every model
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except ValueError as error:
        reason = str(error).splitlines()[0][:200]
        raise ModelError(f"{config.model_type} is not a causal language model: {reason}") from None
    model.tie_weights()
    return model


def read_shape(config: PretrainedConfig, lora: LoraConfig | None = None) -> Shape:
    """The shape of a model's configuration. With `lora` only the adapters are trainable: rank * (in + out) of each layer.

    Raises ModelError for an adapter target that names no linear layer, and for a family without attention.
    """
    model, text = skeleton(config), config.get_text_config()
    freeze_other_parts(model)
    language = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    adapted = () if lora is None else inject(model, lora, "", seed=0).layers
    heads = getattr(text, "num_attention_heads", None)
    if not isinstance(heads, int):
        raise ModelError(f"{config.model_type} is not supported: it has no attention, or not as many heads in every layer")
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        layers=int(text.num_hidden_layers),
        hidden=int(text.hidden_size),
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_size=int(getattr(text, "head_dim", None) or text.hidden_size // heads),
        intermediate=int(getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        vocabulary=int(text.vocab_size),
        gated=any("gate" in name for name, _ in model.named_modules()),
        head_norms=any(name.endswith("q_norm") for name, _ in model.named_modules()),
        family=str(config.model_type),
        adapted_layers=adapted,
        unadapted=_unadapted(model, language, adapted),
    )


def _unadapted(model: Any, language: list[str], adapted: tuple[str, ...]) -> float:
    """The share of the matrices of the language model, whose parameters are `language` by name, that have no adapter."""
    ends = {id(end.weight) for end in (model.get_input_embeddings(), model.get_output_embeddings())}
    with_adapters = {f"{layer}.base_layer.weight" for layer in adapted}
    matrices = {
        name: parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1 and id(parameter) not in ends and name.replace(".base_layer.", ".") in language
    }
    without = sum(size for name, size in matrices.items() if name not in with_adapters)
    return without / max(1, sum(matrices.values())) if adapted else 0.0
