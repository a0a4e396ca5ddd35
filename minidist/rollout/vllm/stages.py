"""Pipeline parallelism of vLLM on a CPU: the room in which a stage receives what the stage before it has computed."""

from typing import Any


def make_room(worker: Any) -> None:
    """Make that room. vLLM 0.32 makes it in the pass that measures a GPU's memory or warms an engine up. An engine on a CPU
    that compiles nothing has no such pass, and its first request would end every stage but the first."""
    from vllm.distributed import get_pp_group

    runner = worker.model_runner
    if not get_pp_group().is_first_rank:
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
        )
