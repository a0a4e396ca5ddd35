"""The shape of a model, read from its configuration: a skeleton on the meta device, and the sizes that estimates need."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from minidist.config.models import LoraConfig
from minidist.errors import ModelError
from minidist.models.families import freeze_other_parts
from minidist.models.flops import flops_of
from minidist.models.layers import layer_counts
from minidist.models.lora import inject
from minidist.run.flops import DecoderFlops

# Configuration fields that hold the width of feed-forward layers, by what transformers' families call them.
_WIDTHS = ("intermediate_size", "hidden_dim", "d_ff", "n_inner", "encoder_ffn_dim", "ffn_dim")
# Nonlinearities of transformers that are several operations, whose results are all kept.
_WRITTEN_OUT = ("NewGELUActivation", "FastGELUActivation", "QuickGELUActivation", "AccurateGELUActivation")


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
    layer_norms: bool = False
    """Whether its norms are LayerNorm, one kernel, rather than RMSNorm written out."""
    one_kernel: bool = False
    """Whether the nonlinearity of its feed-forward layers is one kernel, rather than written out (GPT-2's GELU)."""
    family: str = ""
    """transformers' `model_type`, such as `llama`."""
    adapted_layers: tuple[str, ...] = ()
    """Full names of the layers that get LoRA adapters."""
    unadapted: float = 0.0
    """Share of the language model's matrices, embeddings apart, that get no adapter, such as experts in one tensor."""
    flops: DecoderFlops = field(default_factory=DecoderFlops)
    """What a token costs."""

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
    model = skeleton(config)
    freeze_other_parts(model)
    language = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    adapted = () if lora is None else inject(model, lora, "", seed=0).layers
    found = shape_of(model)
    if not found.heads:
        raise ModelError(f"{config.model_type} is not supported: it has no attention, or not as many heads in every layer")
    unadapted = _unadapted(model, language, adapted)
    return replace(found, adapted_layers=adapted, unadapted=unadapted, flops=flops_of(model))


def shape_of(model: PreTrainedModel) -> Shape:
    """The shape of a model, or of a skeleton, as it is: `trainable` counts the parameters that get gradients. The layers of an
    encoder-decoder are those of both sides. `heads` is 0 where layers have no attention, or not as many heads each."""
    text: Any = model.config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    heads = heads if isinstance(heads, int) else 0
    names, modules = zip(*model.named_modules(), strict=True)
    wide: Any = next((found for name in _WIDTHS if (found := getattr(text, name, None))), 4 * text.hidden_size)
    return Shape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        layers=sum(layer_counts(model.config)),
        hidden=int(text.hidden_size),
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_size=int(getattr(text, "head_dim", None) or text.hidden_size // (heads or 1)),
        intermediate=int(max(wide) if isinstance(wide, list) else wide),
        vocabulary=int(text.vocab_size),
        gated=any("gate" in name or name.endswith("wi_0") for name in names),
        head_norms=any(name.endswith("q_norm") for name in names),
        layer_norms=any(isinstance(module, torch.nn.LayerNorm) for module in modules),
        one_kernel=not any(type(module).__name__ in _WRITTEN_OUT for module in modules),
        family=str(model.config.model_type),
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
