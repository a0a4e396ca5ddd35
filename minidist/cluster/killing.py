"""The end of an actor that may hang: Ray ends a process that answers, and no stopped one."""

import asyncio
from contextlib import suppress
from typing import Any

import psutil
import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from minidist.cluster.remote import Remote
from minidist.cluster.scratch import start_time

_GONE_S = 10.0
"""Longest wait until a killed process has gone."""


async def kill(remote: Remote) -> None:
    """End the process of an actor, though it be stopped, and the processes that it has started."""
    ray.kill(remote.actor)
    process = remote.process
    if process is None:
        return
    if process.node == ray.get_runtime_context().get_node_id():
        await asyncio.to_thread(end_process, process.pid, process.started)
        return
    there: dict[str, Any] = {"scheduling_strategy": NodeAffinitySchedulingStrategy(process.node, soft=False)}
    ending = ray.remote(end_process).options(num_cpus=0, **there).remote(process.pid, process.started)
    with suppress(TimeoutError, RayError):  # the node is lost too
        async with asyncio.timeout(2 * _GONE_S):
            await ending


def end_process(pid: int, started: str | None) -> None:
    """Kill a process of this node, a stopped one too, and all that it has started; wait until they have gone. Another process
    that has got its id meanwhile, as its start shows, is left alone."""
    if started is None or start_time(pid) != started:
        return
    try:
        process = psutil.Process(pid)
        ending = [*process.children(recursive=True), process]
    except psutil.NoSuchProcess:
        return
    for each in ending:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(ending, timeout=_GONE_S)
