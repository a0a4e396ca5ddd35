"""The arguments that vLLM is started with."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from minidist.config.models import ModelConfig
from minidist.config.rollout import RolloutConfig
from minidist.models.shape import Shape
from minidist.preflight.memory import GIB, ServedModel, engine_need
from minidist.rollout.seeds import sample_seed
from minidist.rollout.vllm.core import VLLMSettings, engine_arguments
from tests.support.config import teacher_config

SHAPE = Shape(
    parameters=1000, trainable=0, layers=2, hidden=64, heads=2, kv_heads=1, head_size=32, intermediate=96, vocabulary=29
)
SETTINGS = VLLMSettings(
    model=Path("model"),
    dtype="float32",
    trust_remote_code=False,
    max_tokens=48,
    max_sequences=32,
    batch_tokens=4096,
    kv_cache_gib=0.25,
    gpu_memory_utilization=0.4,
)


def started(folder: Path, role: Any, **fields: Any) -> dict[str, Any]:
    """The arguments of an engine of a role."""
    return engine_arguments(VLLMSettings.of(ModelConfig(model=str(folder)), "student.model", role, **fields))


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_split_model_is_in_processes_of_its_own(on_gpu: bool) -> None:
    whole = engine_arguments(replace(SETTINGS, on_gpu=on_gpu))
    split = engine_arguments(replace(SETTINGS, on_gpu=on_gpu, tensor_parallel=2))
    assert split == whole | {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    assert "distributed_executor_backend" not in whole  # one device stays in the actor's process
    staged = engine_arguments(replace(SETTINGS, on_gpu=on_gpu, pipeline_parallel=3))
    assert staged == whole | {"pipeline_parallel_size": 3, "distributed_executor_backend": "mp"}
    assert ("gpu_memory_utilization" in whole, "kv_cache_memory_bytes" in whole) == (on_gpu, not on_gpu)


def test_an_engine_over_several_nodes_is_rays() -> None:
    """Its workers are on the bundles of the actor's placement group: nothing of this machine is prepared for them."""
    settings = replace(SETTINGS, on_gpu=True, tensor_parallel=8, pipeline_parallel=2, across_nodes=True)
    expected = {"tensor_parallel_size": 8, "pipeline_parallel_size": 2, "distributed_executor_backend": "ray"}
    assert engine_arguments(settings) == engine_arguments(replace(SETTINGS, on_gpu=True)) | expected
    assert settings.workers == 0 and replace(settings, across_nodes=False).workers == 16 and SETTINGS.workers == 0


def test_an_engine_that_takes_turns_schedules_no_pass_ahead() -> None:
    """On a GPU vLLM schedules a pass before it has seen the last one, and an ended turn would go on for a token."""
    plain = engine_arguments(replace(SETTINGS, on_gpu=True))
    assert engine_arguments(replace(SETTINGS, on_gpu=True, turns=True)) == plain | {"async_scheduling": False}


def test_a_prompt_is_never_split_on_a_cpu(tmp_path: Path) -> None:
    for tokens, batch, limit in ((48, None, 4096), (48, 300, 300), (9000, 300, 9000)):
        assert started(tmp_path, RolloutConfig(batch_tokens=batch), max_tokens=tokens)["max_num_batched_tokens"] == limit
    assert engine_arguments(SETTINGS)["enable_chunked_prefill"] is False
    assert "enable_chunked_prefill" not in engine_arguments(replace(SETTINGS, on_gpu=True))


@pytest.mark.parametrize("on_gpu", [False, True])
@pytest.mark.parametrize(
    "role",
    [
        RolloutConfig(),
        RolloutConfig(batch_tokens=600, max_sequences=700),
        teacher_config(model="t", backend="vllm", payload="sampled", batch_tokens=20000),
    ],
)
def test_an_engine_is_started_with_the_limits_that_the_memory_plan_counts(tmp_path: Path, role: Any, on_gpu: bool) -> None:
    arguments = started(tmp_path, role, max_tokens=500, on_gpu=on_gpu)
    plan = engine_need(ServedModel("rollout", SHAPE, "float32", 1, 1), role, longest=500, gpu=80 * GIB if on_gpu else None)
    width = 4 * SHAPE.hidden + 2 * SHAPE.intermediate + 2 * SHAPE.heads * SHAPE.head_size
    assert plan.parts["activations"] == arguments["max_num_batched_tokens"] * width * 4
    assert plan.parts["logits"] == arguments["max_num_seqs"] * SHAPE.vocabulary * 12


def test_the_limits_of_an_engine_are_by_device_unless_set(tmp_path: Path) -> None:
    for on_gpu, limits in ((False, (4096, 256)), (True, (8192, 512))):
        arguments = started(tmp_path, RolloutConfig(), max_tokens=500, on_gpu=on_gpu)
        assert (arguments["max_num_batched_tokens"], arguments["max_num_seqs"]) == limits
    many = started(tmp_path, RolloutConfig(batch_tokens=600, max_sequences=700), max_tokens=500, on_gpu=True)
    assert (many["max_num_batched_tokens"], many["max_num_seqs"]) == (700, 700)  # vLLM wants a token for each sequence


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_pooling_engine_gives_the_states_of_all_tokens_as_they_are(tmp_path: Path, on_gpu: bool) -> None:
    teacher = teacher_config(model="t", backend="vllm", batch_tokens=300)
    arguments = started(tmp_path, teacher, max_tokens=500, on_gpu=on_gpu, pooling=True)
    expected = {
        "runner": "pooling",
        "convert": "embed",
        "pooler_config": {"task": "token_embed", "tok_pooling_type": "ALL", "use_activation": False},
        "hf_overrides": {"head_dtype": "model"},
        "enable_prefix_caching": False,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": 500,  # a sequence is one pass, on a GPU too
        "max_model_len": 500,
    }
    assert arguments | expected == arguments
    plain = started(tmp_path, teacher, max_tokens=500, on_gpu=on_gpu)
    assert "runner" not in plain and plain["max_num_batched_tokens"] == (300 if on_gpu else 500)


def test_the_plan_of_a_pooling_engine_has_no_logits_and_whole_rows() -> None:
    teacher, model = teacher_config(model="t", backend="vllm"), ServedModel("teacher", SHAPE, "bfloat16", 1, 1)
    scores, hidden = (engine_need(model, teacher, longest=20000, gpu=80 * GIB, gives=gives) for gives in ("scores", "hidden"))
    assert scores.parts["logits"] > 0 and hidden.parts["logits"] == 0
    assert hidden.parts["activations"] / scores.parts["activations"] == pytest.approx(20000 / 8192, rel=1e-3)


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


def test_vllm_gets_seeds_that_it_takes() -> None:
    """Its second model runner keeps 63 bits of a request's seed; NumPy, which it seeds with the engine's, takes 32."""
    assert 0 <= engine_arguments(replace(SETTINGS, seed=2**70 + 5))["seed"] < 2**32
    assert engine_arguments(replace(SETTINGS, seed=7))["seed"] == 7
    assert all(0 <= sample_seed(2**70, row, 1) < 2**63 for row in range(100))


def test_only_an_engine_that_sleeps_on_a_gpu_keeps_its_weights_in_a_pool_that_can() -> None:
    asked = [engine_arguments(replace(SETTINGS, sleeps=sleeps, on_gpu=on_gpu))["enable_sleep_mode"] for sleeps, on_gpu in FOUR]
    assert asked == [False, False, False, True]


FOUR = [(False, False), (False, True), (True, False), (True, True)]
