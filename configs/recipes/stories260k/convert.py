"""stories260K of llama2.c as a Hugging Face checkpoint: `python configs/recipes/stories260k/convert.py SOURCE TARGET`.

SOURCE holds models/stories260K/stories260K.bin and tokenizers/tinystories512/tok512.model. The file has seven int32 (width,
feed-forward width, layers, heads, key-value heads, vocabulary, longest sequence) and then the weights in float32, kind by kind.
Its rotary embeddings turn neighbouring pairs, those of transformers the two halves of a head, so the rows of the query and key
projections change their order.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer


def halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of a projection [heads * size, width] from pairs to halves of each head."""
    size, width = weight.shape[0] // heads, weight.shape[1]
    return weight.view(heads, size // 2, 2, width).transpose(1, 2).reshape(heads * size, width)


def read_model(file: Path) -> LlamaForCausalLM:
    """The model of a version-0 file of llama2.c with tied embeddings."""
    width, inner, layers, heads, kv_heads, vocabulary, longest = np.fromfile(file, dtype=np.int32, count=7).tolist()
    numbers, position = torch.from_numpy(np.fromfile(file, dtype=np.float32, offset=28)), 0

    def take(*shape: int) -> torch.Tensor:
        nonlocal position
        position += (count := int(np.prod(shape)))
        return numbers[position - count : position].view(*shape).clone()

    size = width // heads
    shapes = {
        "model.layers.{}.input_layernorm.weight": (width,),
        "model.layers.{}.self_attn.q_proj.weight": (width, width),
        "model.layers.{}.self_attn.k_proj.weight": (kv_heads * size, width),
        "model.layers.{}.self_attn.v_proj.weight": (kv_heads * size, width),
        "model.layers.{}.self_attn.o_proj.weight": (width, width),
        "model.layers.{}.post_attention_layernorm.weight": (width,),
        "model.layers.{}.mlp.gate_proj.weight": (inner, width),
        "model.layers.{}.mlp.down_proj.weight": (width, inner),
        "model.layers.{}.mlp.up_proj.weight": (inner, width),
    }
    weights = {"model.embed_tokens.weight": take(vocabulary, width)}
    for name, shape in shapes.items():
        for layer, weight in enumerate(take(layers, *shape)):
            turned = {"q_proj": heads, "k_proj": kv_heads}.get(name.split(".")[-2])
            weights[name.format(layer)] = weight if turned is None else halves(weight, turned)
    weights["model.norm.weight"] = take(width)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=longest,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=1,  # the model was trained on stories one after another, each begun with <s>: so <s> ends a story too
    )
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights)
    return model


def read_tokenizer(file: Path) -> LlamaTokenizer:
    """The tokenizer; like the model's training, it begins every text with <s>."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(file, Path(folder) / "tokenizer.model")
        tokenizer = LlamaTokenizer.from_pretrained(folder, eos_token="<s>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def main(source: Path, target: Path) -> None:
    read_model(source / "models" / "stories260K" / "stories260K.bin").save_pretrained(target)
    read_tokenizer(source / "tokenizers" / "tinystories512" / "tok512.model").save_pretrained(target)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
