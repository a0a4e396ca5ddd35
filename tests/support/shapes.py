"""Configurations of models: Llama 3 with 70 and 8 billion parameters, and a small Llama."""

from typing import Any

from transformers import LlamaConfig

BIG: dict[str, Any] = {"vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 131072}
LARGE = LlamaConfig(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, intermediate_size=28672, **BIG)
MIDDLE = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=14336, **BIG)
SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 32, "bos_token_id": 0, "eos_token_id": 0}
