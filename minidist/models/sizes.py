"""Sizes in a model's configuration: numbers of which a model can be built, before one is tried."""

from typing import TYPE_CHECKING

from minidist.errors import ModelError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Largest values by name: far above any published model's, and small enough that a skeleton is built in seconds.
_LARGEST: dict[str, int] = dict.fromkeys(("num_hidden_layers", "num_attention_heads", "num_key_value_heads"), 4096)
_LARGEST |= dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4096)
_LARGEST |= dict.fromkeys(("hidden_size", "intermediate_size", "head_dim", "vocab_size"), 1 << 24)
_LARGEST["max_position_embeddings"] = 1 << 40
# Fields that may be null or zero: their size then comes from others, or the layer is left out.
_OPTIONAL = ("num_key_value_heads", "num_local_experts", "num_experts", "n_routed_experts", "intermediate_size", "head_dim")
_OPTIONAL += ("max_position_embeddings",)


def check_sizes(config: "PretrainedConfig", where: str) -> None:
    """Raise ModelError for a size that no model can have."""
    text = config.get_text_config()
    if not hasattr(text, "get_text_config"):
        raise ModelError(f"{where}: text_config is {text!r}, not a section; correct config.json")
    for name, largest in _LARGEST.items():
        value = getattr(text, name, None)
        if isinstance(value, list) or (value is None and (name in _OPTIONAL or not hasattr(text, name))):
            continue  # a list has a size for each layer
        least = 0 if "experts" in name else 1
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
            raise ModelError(f"{where}: {name} is {value!r}; expected a whole number from {least} to {largest}; correct it")
