"""A tiny random model of each family: hidden size 64, two attention heads of size 32, two layers, a vocabulary of 64."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tests.support.tiny import tiny_renderer

VOCABULARY = 64
CONTEXT = 128

_SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
_SHAPE |= {"num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": CONTEXT}
_IDS: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
_WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_SOFT_CAPS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 32}
_LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16}
_VISION = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
_MAMBA = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}

FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT},
    "opt": _SHAPE | {"ffn_dim": 96, "word_embed_proj_dim": 64, "pad_token_id": 1},
    "llama": _SHAPE,
    "mistral": _SHAPE | {"sliding_window": 4},
    "qwen2": _SHAPE,
    "qwen3": _SHAPE,
    "qwen3_moe": _SHAPE | _EXPERTS,
    "mixtral": _SHAPE | {"num_local_experts": 4},
    "gemma2": _SHAPE | _WINDOWS | _SOFT_CAPS,
    "gemma3_text": _SHAPE | _WINDOWS | {"query_pre_attn_scalar": 32},
    "gemma3": {
        "text_config": _SHAPE | _IDS | _WINDOWS | {"query_pre_attn_scalar": 32},
        "vision_config": _VISION | {"patch_size": 14},
    },
    "phi3": _SHAPE,
    "olmo2": _SHAPE,
    "granite": _SHAPE
    | {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.1, "residual_multiplier": 0.5},
    "cohere2": _SHAPE | _WINDOWS | {"logit_scale": 0.25},
    "smollm3": _SHAPE | {"no_rope_layers": [1, 0]},
    "gpt_neox": _SHAPE,
    "falcon_h1": _SHAPE | _MAMBA | {"lm_head_multiplier": 0.5, "embedding_multiplier": 2.0},
    "lfm2": _SHAPE | {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "qwen3_next": _SHAPE | _EXPERTS | _LINEAR | {"layer_types": ["linear_attention", "full_attention"]},
}
"""Fields of each family's configuration, by `model_type`."""


def family_config(name: str, **fields: Any) -> PretrainedConfig:
    known = FAMILIES[name]
    return AutoConfig.for_model(name, **((known if "text_config" in known else _IDS | known) | fields))


def family_model(name: str, *, seed: int = 0, **fields: Any) -> PreTrainedModel:
    """A random model whose distributions are far from uniform."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(family_config(name, **fields)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def saved_family(name: str, path: Path, *, seed: int = 0) -> PreTrainedModel:
    """The random model, with its files and those of a tokenizer in `path`."""
    model = family_model(name, seed=seed)
    model.save_pretrained(path)
    tiny_renderer().tokenizer.save_pretrained(path)
    return model
