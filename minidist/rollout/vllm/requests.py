"""Requests to a vLLM engine core, and its answers as arrays.

Ids and log-probabilities skip vLLM's bookkeeping of text, which makes objects of every token and class.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any


def request_template(engine: Any, parameters: Any, *, resumable: bool = False) -> Any:
    """A request as vLLM's input processor makes it, checked once for all requests that differ in id, tokens and seed alone."""
    tasks = engine.get_supported_tasks()
    return engine.input_processor.process_inputs("", {"prompt_token_ids": [0]}, parameters, tasks, resumable=resumable)


def copied(request: Any) -> Any:
    """A copy of a request, with sampling parameters of its own."""
    other = copy.copy(request)
    other.sampling_params = copy.copy(request.sampling_params)
    return other


@dataclass
class Answer:
    """The engine's answer to one request, so far.

    number: of the request within its call. tokens, logprobs: written, nats under the sampled distribution (none if not asked
    for). cached: tokens of the prompt that the engine did not compute again. table: ids and log-probabilities of the prompt's
    tokens after the first, vLLM's tensors; None if not asked for. hidden: states [S, D] of the prompt's S tokens, vLLM's
    tensor, from a pooling engine.
    """

    number: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    cached: int = 0
    table: Any = None
    hidden: Any = None


@dataclass
class Call:
    """The requests of one call: names of the unfinished ones, and finished answers that were not collected yet."""

    unfinished: dict[str, Answer] = field(default_factory=dict)
    finished: list[Answer] = field(default_factory=list)


class Requests:
    """The requests of one vLLM engine that each have one answer; used in the engine's thread."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._names = map(str, count())
        self._calls: dict[str, Call] = {}
        """The call of each unfinished request, by the request's name."""

    def __len__(self) -> int:
        return len(self._calls)

    def submit(self, call: Call, prompts: Sequence[list[int]], parameters: Any, seeds: Sequence[int] | None = None) -> None:
        """Hand the engine a request for each prompt, in their order, which differ in seed alone. Raises ValueError for a prompt
        that is longer than the engine's longest sequence."""
        longest = self._engine.vllm_config.model_config.max_model_len
        if (most := max(map(len, prompts), default=0)) > longest:
            raise ValueError(f"a prompt of {most} tokens is longer than the engine's longest sequence, {longest} tokens")
        template = request_template(self._engine, parameters)
        for number, prompt in enumerate(prompts):
            request = copied(template)
            request.request_id = request.external_req_id = next(self._names)
            request.prompt_token_ids = prompt
            if seeds is not None:
                request.sampling_params.seed = seeds[number]
            call.unfinished[request.request_id] = Answer(number)
            self._calls[request.request_id] = call
            self._engine.engine_core.add_request(request)

    def take(self, outputs: Sequence[Any]) -> None:
        """Keep what a step of the engine gave."""
        for output in outputs:
            if (call := self._calls.get(output.request_id)) is None:
                continue  # of a request that was aborted
            answer = call.unfinished[output.request_id]
            answer.tokens += output.new_token_ids
            if output.new_logprobs is not None:
                answer.logprobs += output.new_logprobs.logprobs[:, 0].tolist()
            if output.new_prompt_logprobs_tensors is not None:
                answer.table = output.new_prompt_logprobs_tensors
            if output.pooling_output is not None:
                answer.hidden = output.pooling_output
            if output.prefill_stats is not None:
                answer.cached = output.prefill_stats.num_cached_tokens
            if output.finish_reason is not None:
                call.finished.append(call.unfinished.pop(output.request_id))
                del self._calls[output.request_id]

    def abort(self, call: Call) -> int:
        """Forget a call; returns the number of its requests that were unfinished."""
        names = list(call.unfinished)
        self._engine.engine_core.abort_requests(names)
        for name in names:
            del self._calls[name], call.unfinished[name]
        return len(names)
