"""What a decoder costs in floating-point operations, read from its matrices: of a model, or of a skeleton without weights.

Counted are matrix products and attention; the states of recurrent layers (Mamba, gated delta rules) are not."""

import re
from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from minidist.models.families import is_wrapped
from minidist.models.layers import attends
from minidist.run.flops import DecoderFlops

# Configuration fields that hold how many experts there are, and how many of them a token is sent to.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_CHOSEN = ("num_experts_per_tok", "moe_topk", "moe_k", "top_k_experts")
_ONE_EXPERT = re.compile(r"\.experts\.\d+\.")


def flops_of(model: PreTrainedModel) -> DecoderFlops:
    """The cost of a model; of one that also reads images, of its language model."""
    text: Any = model.config.get_text_config()
    heads = int(getattr(text, "num_attention_heads", None) or 0)
    size = int(getattr(text, "head_dim", None) or text.hidden_size // (heads or 1))
    keys = int((getattr(text, "qk_nope_head_dim", None) or 0) + (getattr(text, "qk_rope_head_dim", None) or 0)) or size
    values = int(getattr(text, "v_head_dim", None) or size)
    kinds = getattr(text, "layer_types", None) or ["attention"] * int(text.num_hidden_layers)
    attending = sum(map(attends, kinds))
    head: Any = model.get_output_embeddings()
    matrices = list(_matrices(model, text, head))
    token = sum(elements for elements, _ in matrices)
    trained = sum(elements for elements, gradients in matrices if gradients)
    return DecoderFlops(
        token=2.0 * token,
        pair=2.0 * attending * heads * (keys + values),
        head=0.0 if head is None else 2.0 * head.weight.numel(),
        trained=trained / token if token else 0.0,
    )


def _matrices(model: PreTrainedModel, text: Any, head: Any) -> Iterator[tuple[float, bool]]:
    """Of each matrix between embedding and output head: the elements that a token meets, and whether they get gradients."""
    whole: Any = model
    body: nn.Module = whole.get_decoder() if is_wrapped(model.config) else model
    looked_up = {id(parameter) for each in body.modules() if isinstance(each, nn.Embedding) for parameter in each.parameters()}
    ends = looked_up | ({id(head.weight)} if head is not None else set())
    for name, parameter in body.named_parameters():
        if parameter.ndim > 1 and id(parameter) not in ends:
            in_one = parameter.ndim == 3 and ".experts." in name  # the experts' matrices in one tensor
            count = parameter.shape[0] if in_one else _first(text, _EXPERTS)
            share = _first(text, _CHOSEN) / count if in_one or _ONE_EXPERT.search(name) else 1.0
            yield parameter.numel() * share, parameter.requires_grad


def _first(config: Any, names: tuple[str, ...]) -> int:
    """The first of the fields that the configuration has; 0 without any."""
    return next((found for name in names if isinstance(found := getattr(config, name, None), int)), 0)
