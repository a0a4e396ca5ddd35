"""What a precision means on this machine."""

from collections.abc import Mapping

from minidist.cluster.machine import cpu_flags
from minidist.config import DistillConfig, SftConfig
from minidist.config.cluster import ClusterConfig

_NATIVE = {"avx512_bf16", "amx_bf16", "bf16"}  # the last one is ARM's name


def hosted_dtypes(config: SftConfig | DistillConfig) -> dict[str, str]:
    """The precisions of the models that this program's processes hold, by their keys."""
    if not isinstance(config, DistillConfig):
        compute = config.learner.compute_dtype
        return {"student.dtype": config.student.dtype} | ({} if compute is None else {"learner.compute_dtype": compute})
    away = {f"{key}.dtype" for key, teacher in config.named_teachers.items() if not teacher.hosted}
    return {key: dtype for key, dtype in config.dtypes.items() if key not in away}


def precision_lines(config: ClusterConfig, dtypes: Mapping[str, str]) -> list[str]:
    """A warning for each role, by the key of its precision, that would compute in 16 bits on a CPU without such arithmetic."""
    flags = cpu_flags()
    if config.gpus or config.address is not None or not flags:
        return []
    emulated = {"float16"} if _NATIVE & flags else {"float16", "bfloat16"}
    slow = "which this machine's CPU has no arithmetic for: more than ten times as slow as float32"
    return [f"WARNING {key} is {dtype}, {slow}; set {key}=float32" for key, dtype in dtypes.items() if dtype in emulated]
