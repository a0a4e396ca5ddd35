"""Models of some size with random weights, written tensor by tensor, and how much memory a process takes for them."""

import gc
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from minidist.models.shape import skeleton
from minidist.models.tensor_files import TensorWriter
from tests.support.tiny import VOCABULARY, tiny_renderer


def write_model(path: Path, *, seed: int = 0, **fields: Any) -> int:
    """Write a Llama of these fields, of which no more than one tensor is ever in memory; returns the bytes of its weights."""
    ids = {"vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0, "max_position_embeddings": 128}
    config = AutoConfig.for_model("llama", **(ids | fields))
    config.architectures, config.dtype = ["LlamaForCausalLM"], torch.float32
    shapes = {name: tensor.shape for name, tensor in skeleton(config).state_dict().items()}
    if config.tie_word_embeddings:
        del shapes["lm_head.weight"]
    path.mkdir(parents=True)
    config.save_pretrained(path)
    tiny_renderer().tokenizer.save_pretrained(path)
    generator = torch.Generator().manual_seed(seed)
    layout = {name: (torch.float32, shape) for name, shape in shapes.items()}
    with TensorWriter(path / "model.safetensors", layout, {"format": "pt"}) as writer:
        for name, shape in shapes.items():
            scale = 2.0 * shape[-1] ** -0.5 if len(shape) > 1 else 1.0
            writer.add(name, torch.randn(shape, generator=generator) * scale)
        writer.close()
    return sum(shape.numel() for shape in shapes.values()) * 4


class Memory:
    """The highest memory of this process since it was made, or asked last, above what it had then, in bytes."""

    def __init__(self) -> None:
        self._start = 0
        self.peak()

    def peak(self) -> int:
        highest = _kilobytes("VmHWM") * 1024 - self._start
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
        self._start = _kilobytes("VmRSS") * 1024
        return highest


def _kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])
