"""What families of models need: their kernels of attention, the layouts of their rows, the parts that are trained."""

from typing import Any

from transformers import PretrainedConfig

_PACKED = """
    cohere2 gemma2 gemma3 gemma3_text gpt2 gpt_neox granite llama mistral mixtral olmo2 phi3 qwen2 qwen3 qwen3_moe smollm3
"""
PACKED = frozenset(_PACKED.split())
"""Families, by `model_type`, for which a test proves that rows packed into one do not see one another (configs/FAMILIES.md)."""

DIFFERENT_IN_VLLM = frozenset(["cohere2", "gpt_neox"])
"""Families for which vLLM 0.32 on a CPU, from the same files, computes other log-probabilities than transformers."""

_SHIFTED = """
    camembert data2vec-text esm ibert lilt longformer mpnet roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod
"""


def shifted_positions(config: PretrainedConfig) -> int:
    """Rows at the beginning of the table of positions that no text uses: in RoBERTa's relatives, those up to the padding id."""
    return (config.pad_token_id or 0) + 1 if config.model_type in _SHIFTED.split() else 0


def attention_kernel(config: PretrainedConfig) -> str | None:
    """transformers' plain attention, where scores have a soft cap, which the fused kernels leave out without a word; None:
    transformers chooses."""
    return "eager" if getattr(config.get_text_config(), "attn_logit_softcapping", None) else None


def is_wrapped(config: PretrainedConfig) -> bool:
    """Whether the model also reads images or sound: its language model is a part of it."""
    return config.get_text_config() is not config


def freeze_other_parts(model: Any) -> None:
    """Freeze the parts of a wrapped model that text never reaches, so that weight decay cannot move them."""
    if not is_wrapped(model.config):
        return
    parts = (model.get_decoder(), model.get_output_embeddings())
    language = {id(parameter) for part in parts for parameter in part.parameters()}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in language)


def other_layers(config: PretrainedConfig) -> list[str]:
    """Kinds of layers that are no softmax attention: convolutions, linear attention, state spaces."""
    text = config.get_text_config()
    kinds = {kind for kind in getattr(text, "layer_types", None) or () if kind in ("conv", "linear_attention", "mamba")}
    kinds |= {"mamba"} if any(name.startswith("mamba_") for name in vars(text)) else set()
    return sorted(kind.replace("_", " ") for kind in kinds)
