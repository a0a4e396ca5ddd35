"""The arguments that vLLM is started with."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from minidist.rollout.seeds import sample_seed
from minidist.rollout.vllm.core import VLLMSettings, engine_arguments

SETTINGS = VLLMSettings(
    model=Path("model"),
    dtype="float32",
    trust_remote_code=False,
    max_tokens=48,
    max_sequences=32,
    kv_cache_gib=0.25,
    gpu_memory_utilization=0.4,
)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_tensor_parallelism_changes_two_arguments(on_gpu: bool) -> None:
    whole = engine_arguments(replace(SETTINGS, on_gpu=on_gpu))
    split = engine_arguments(replace(SETTINGS, on_gpu=on_gpu, tensor_parallel=2))
    assert split == whole | {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    assert "distributed_executor_backend" not in whole  # one device stays in the actor's process
    assert ("gpu_memory_utilization" in whole, "kv_cache_memory_bytes" in whole) == (on_gpu, not on_gpu)


def test_an_engine_that_receives_over_gloo_registers_the_backend_in_every_process() -> None:
    plain = engine_arguments(SETTINGS)
    for backend in ("nccl", "ipc"):
        assert engine_arguments(replace(SETTINGS, transfer=backend)) == plain | {"weight_transfer_config": {"backend": backend}}
    added = engine_arguments(replace(SETTINGS, transfer="gloo"))
    module, _, name = added.pop("worker_extension_cls").rpartition(".")
    assert added == plain | {"weight_transfer_config": {"backend": "gloo"}}
    spec = importlib.util.find_spec(module)  # not imported: it imports vLLM
    assert spec is not None and spec.origin is not None
    assert f"class {name}:" in (text := Path(spec.origin).read_text()) and 'register_engine("gloo"' in text


def test_a_prompt_is_never_split_on_a_cpu() -> None:
    for tokens, batch, limit in ((48, None, 4096), (48, 100, 100), (9000, 100, 9000)):
        arguments = engine_arguments(replace(SETTINGS, max_tokens=tokens, batch_tokens=batch))
        assert arguments["max_num_batched_tokens"] == limit and arguments["enable_chunked_prefill"] is False


def test_vllm_gets_seeds_that_it_takes() -> None:
    """Its second model runner keeps 63 bits of a request's seed; NumPy, which it seeds with the engine's, takes 32."""
    assert 0 <= engine_arguments(replace(SETTINGS, seed=2**70 + 5))["seed"] < 2**32
    assert engine_arguments(replace(SETTINGS, seed=7))["seed"] == 7
    assert all(0 <= sample_seed(2**70, row, 1) < 2**63 for row in range(100))
