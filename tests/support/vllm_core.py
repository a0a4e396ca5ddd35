"""What stands for the core of a vLLM engine, and for its outputs."""

from types import SimpleNamespace
from typing import Any

import numpy as np


class FakeEngine:
    """Records the requests that it gets, and serves as its own engine core."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.aborted: list[str] = []
        groups = [SimpleNamespace(kv_cache_spec=SimpleNamespace(block_size=4))]
        cache = SimpleNamespace(num_blocks=11, kv_cache_groups=groups)
        self.scheduler = SimpleNamespace(kv_cache_config=cache)
        model = SimpleNamespace(max_model_len=20)
        schedule = SimpleNamespace(max_num_seqs=4)
        self.vllm_config = SimpleNamespace(scheduler_config=schedule, model_config=model)

    @property
    def engine_core(self) -> "FakeEngine":
        return self

    def add_request(self, request: Any) -> None:
        self.requests.append(request)

    def abort_requests(self, names: list[str]) -> None:
        self.aborted += names

    def get_supported_tasks(self) -> tuple[str, ...]:
        return ("generate",)

    @property
    def input_processor(self) -> "FakeEngine":
        return self

    def process_inputs(self, name: str, prompt: Any, parameters: Any, tasks: Any, *, resumable: bool) -> Any:
        return SimpleNamespace(request_id=name, sampling_params=parameters, resumable=resumable, **prompt)


def output_of(name: str, tokens: list[int], finish: str | None = None, table: Any = None, hidden: Any = None) -> Any:
    """An output whose tokens have their negative ids as log-probabilities."""
    logprobs = SimpleNamespace(logprobs=np.array([[-float(token)] for token in tokens]))
    fields: dict[str, Any] = {
        "prefill_stats": None,
        "new_logprobs": logprobs if tokens else None,
        "new_prompt_logprobs_tensors": table,
        "pooling_output": hidden,
    }
    return SimpleNamespace(request_id=name, new_token_ids=tokens, finish_reason=finish, **fields)
