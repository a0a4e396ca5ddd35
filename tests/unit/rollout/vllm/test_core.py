"""What vLLM is started with, and that the shared memory of its processes has no name to be left behind under."""

import importlib.util
import multiprocessing
import os
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from minidist.rollout.vllm.core import VLLMSettings, engine_arguments
from minidist.rollout.vllm.processes import hide_shared_memory, prepare, show_shared_memory

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
def test_a_model_is_split_over_processes_of_vllms_own(on_gpu: bool) -> None:
    whole = engine_arguments(replace(SETTINGS, on_gpu=on_gpu))
    split = engine_arguments(replace(SETTINGS, on_gpu=on_gpu, tensor_parallel=2))
    assert split == whole | {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
    assert "distributed_executor_backend" not in whole  # one device stays in the actor's process
    assert ("gpu_memory_utilization" in whole, "kv_cache_memory_bytes" in whole) == (on_gpu, not on_gpu)


def test_a_prompt_is_never_split_on_a_cpu() -> None:
    for tokens, batch, limit in ((48, None, 4096), (48, 100, 100), (9000, 100, 9000)):
        arguments = engine_arguments(replace(SETTINGS, max_tokens=tokens, batch_tokens=batch))
        assert arguments["max_num_batched_tokens"] == limit and arguments["enable_chunked_prefill"] is False


def test_logits_are_looked_into_only_where_ngrams_are_blocked() -> None:
    assert engine_arguments(SETTINGS)["logits_processors"] is None
    module, _, name = engine_arguments(replace(SETTINGS, ngrams=True))["logits_processors"][0].partition(":")
    spec = importlib.util.find_spec(module)  # not imported: it imports vLLM
    assert spec is not None and spec.origin is not None
    assert f"class {name}(" in Path(spec.origin).read_text()


def test_processes_share_the_threads_and_talk_over_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "5"})
    prepare(2)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["VLLM_HOST_IP"]) == ("lo", "127.0.0.1")
    prepare(8)
    assert os.environ["OMP_NUM_THREADS"] == "1"


def test_shared_memory_loses_its_name_and_nothing_else() -> None:
    ours, lock = SharedMemory(create=True, size=64), multiprocessing.get_context("spawn").Lock()
    stranger = Path("/dev/shm/psm_of_another_process")
    stranger.touch()
    try:
        names = hide_shared_memory()
        assert Path(f"/dev/shm/{ours.name}") in names and stranger not in names
        assert any(name.name.startswith("sem.mp-") for name in names)  # the lock's
        assert not any(name.exists() for name in names) and stranger.exists()
        ours.buf[0] = 7
        assert ours.buf[0] == 7 and lock.acquire(block=False)  # still there for those who hold it
        show_shared_memory(names)
        ours.close()
        ours.unlink()  # as vLLM does when it shuts down: its name is there to be removed
    finally:
        stranger.unlink()
    assert not Path(f"/dev/shm/{ours.name}").exists()
