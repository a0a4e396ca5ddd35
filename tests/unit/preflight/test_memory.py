"""Memory from shapes: against published figures, and against the storage that autograd keeps."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, Qwen3Config

from minidist.config.learner import LearnerConfig
from minidist.config.models import LoraConfig
from minidist.models.shape import Shape, read_shape
from minidist.preflight.memory import GIB, TrainedModel, activations, kv_bytes_per_token, learner_need
from tests.support.shapes import MIDDLE, SMALL


def test_the_optimizer_of_an_adapted_model_holds_its_adapters_alone() -> None:
    config = LlamaConfig(**SMALL)
    every = read_shape(config, LoraConfig(rank=4))
    plain = learner_need(TrainedModel(read_shape(config), LearnerConfig(), "float32", ranks=1, tokens=64, gpu=False))
    adapted = learner_need(TrainedModel(every, LearnerConfig(), "float32", ranks=1, tokens=64, gpu=False))
    assert adapted.parts["weights"] > plain.parts["weights"]
    assert adapted.parts["optimizer"] == 12 * every.trainable < plain.parts["optimizer"]


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_zero_divides_the_training_state_as_published(stage: int, gigabytes: float) -> None:
    """Figure 1 of Rajbhandari et al.: 7.5 B parameters, 64 ranks, 16 bits, Adam. The float32 copy of a step is not in it."""
    shape = Shape(7_500_000_000, 7_500_000_000, 1, 1, 1, 1, 1, 1, 1)
    config = LearnerConfig(zero_stage=stage)  # type: ignore[arg-type]
    need = learner_need(TrainedModel(shape, config, "bfloat16", ranks=64, tokens=1, gpu=True))
    stepped = min(4 * shape.trainable // 64, 4 * GIB) if stage else 0
    states = sum(need.parts[part] for part in ("weights", "gradients", "optimizer")) - stepped
    assert states / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_plain_torch_keeps_no_master_copy() -> None:
    shape, tokens = Shape(1000, 1000, 1, 1, 1, 1, 1, 1, 1), 1
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        need = learner_need(TrainedModel(shape, LearnerConfig(backend="single"), dtype, ranks=1, tokens=tokens, gpu=True))
        assert (need.parts["gradients"], need.parts["optimizer"]) == (1000 * size, 2000 * size)
    config = LearnerConfig.model_validate({"backend": "single", "optimizer": {"type": "sgd"}})
    assert learner_need(TrainedModel(shape, config, "float32", ranks=1, tokens=1, gpu=True)).parts["optimizer"] == 0


def test_offloaded_tensors_are_host_memory() -> None:
    shape = Shape(10**9, 10**9, 1, 1, 1, 1, 1, 1, 1)
    config = LearnerConfig(zero_stage=3, offload_optimizer=True, offload_parameters=True)
    need = learner_need(TrainedModel(shape, config, "bfloat16", ranks=4, tokens=1, gpu=True))
    assert (need.parts["weights"], need.parts["optimizer"]) == (0, 0)
    assert need.host == (12 + 4 + 2) * 10**9 // 4


MODELS: list[tuple[PretrainedConfig, torch.dtype, float]] = [
    (LlamaConfig(**SMALL), torch.float32, 0.04),
    (LlamaConfig(**SMALL), torch.bfloat16, 0.04),
    (LlamaConfig(**SMALL | {"num_key_value_heads": 4, "intermediate_size": 200}), torch.float32, 0.04),
    (Qwen3Config(**SMALL, head_dim=16), torch.float32, 0.04),
    (GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=32, bos_token_id=0, eos_token_id=0), torch.float32, 0.15),
]


@pytest.mark.parametrize(("config", "dtype", "within"), MODELS)
def test_activations_equal_the_storage_that_autograd_keeps(config: PretrainedConfig, dtype: torch.dtype, within: float) -> None:
    """Every storage that the forward pass saves for the backward pass, parameters left out, counted once."""
    rows, length = 4, 256
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.base_model(input_ids=torch.zeros(rows, length, dtype=torch.long), use_cache=False)
    assert output is not None
    # The last norm's tensors come once, whatever the number of layers; nothing keeps its output yet.
    once = rows * length * 64 * (4 + dtype.itemsize)
    estimate = activations(read_shape(config), rows * length, dtype.itemsize, checkpointing=False)
    assert estimate + once == pytest.approx(sum(storage.nbytes() for storage in saved.values()), rel=within)


def test_checkpointing_keeps_inputs_and_one_layer() -> None:
    shape = read_shape(LlamaConfig(**SMALL))
    one = activations(shape, 10, 4, checkpointing=False) // 2
    assert activations(shape, 10, 4, checkpointing=True) == 10 * 2 * 64 * 4 + one


def test_keys_and_values_are_divided_by_whole_heads() -> None:
    shape = read_shape(MIDDLE)
    assert [kv_bytes_per_token(shape, "bfloat16", split) for split in (1, 2, 8, 16)] == [131072, 65536, 16384, 16384]
    assert kv_bytes_per_token(shape, "float32") == 262144
