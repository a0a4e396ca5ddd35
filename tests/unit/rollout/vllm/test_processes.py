"""vLLM's worker processes: their environment, and shared memory that no killed process leaves behind."""

import multiprocessing
import os
import time
from multiprocessing.shared_memory import SharedMemory
from multiprocessing.synchronize import SemLock
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minidist.errors import ActorLostError
from minidist.rollout.vllm.processes import hide_shared_memory, of_living, prepare, show_shared_memory


def test_processes_share_the_threads_and_use_the_loopback_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"OMP_NUM_THREADS": "5"})
    prepare(2)
    assert os.environ["OMP_NUM_THREADS"] == "2"
    assert (os.environ["GLOO_SOCKET_IFNAME"], os.environ["VLLM_HOST_IP"]) == ("lo", "127.0.0.1")
    prepare(8)
    assert os.environ["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("prefix", ["/mp", "/loky-7"])  # joblib, which scikit-learn loads, names them after itself
def test_hidden_shared_memory_has_no_name_and_still_works(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SemLock, "_make_name", staticmethod(lambda: f"{prefix}-{os.getpid()}-{time.time_ns()}"))
    ours, lock = SharedMemory(create=True, size=64), multiprocessing.get_context("spawn").Lock()
    other = Path("/dev/shm/psm_of_another_process")
    other.touch()
    try:
        names = hide_shared_memory()
        assert Path(f"/dev/shm/{ours.name}") in names and other not in names
        assert any(name.name.startswith(f"sem.{prefix[1:]}-") for name in names)  # the lock's
        assert not any(name.exists() for name in names) and other.exists()
        ours.buf[0] = 7
        assert ours.buf[0] == 7 and lock.acquire(block=False)  # still usable for processes that have opened it
        show_shared_memory(names)
        ours.close()
        ours.unlink()  # as vLLM does when it shuts down: the name exists again
    finally:
        other.unlink()
    assert not Path(f"/dev/shm/{ours.name}").exists()


@pytest.mark.parametrize("failed", [False, True])
def test_an_error_of_an_engine_whose_process_has_died_is_a_loss_and_any_other_is_itself(failed: bool) -> None:
    executor = SimpleNamespace(is_failed=failed)
    engine: Any = SimpleNamespace(engine_core=SimpleNamespace(engine_core=SimpleNamespace(model_executor=executor)))
    with pytest.raises(ActorLostError if failed else RuntimeError, match="cancelled") as raised, of_living(engine):
        raise RuntimeError("cancelled")
    assert not failed or "a process of its vLLM engine has died" in str(raised.value)
