"""vLLM inside the process of its actor, to write and to score: when the actor dies, nothing of the engine remains.

The engine core is stepped by hand, so that a call can be aborted between two tokens, and weights can be swapped without a
second process. With tensor parallelism the model alone lives in worker processes, which end with this process.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np

from minidist.concurrency import Worker
from minidist.config.models import DType, ModelConfig
from minidist.config.rollout import RolloutConfig
from minidist.config.teacher import LocalTeacherConfig
from minidist.data.rendering import Renderer
from minidist.errors import RoleError
from minidist.models.files import resolve
from minidist.rollout.answers import Job, answered
from minidist.rollout.seeds import sample_seed
from minidist.rollout.vllm.borrowed import classes_unchanged
from minidist.rollout.vllm.processes import hide_shared_memory, prepare, show_shared_memory
from minidist.rollout.vllm.reload import reload
from minidist.rollout.vllm.sampling import sampling_params
from minidist.rollout.vllm.sessions import Sessions, TurnRequest, TurnResult
from minidist.run.flops import Work
from minidist.run.timeline import count as add
from minidist.types import Array, Prompt, Rollout, Sampling, Weights, allowed_ids

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    # A sequence as long as the model's context is scored with room for one more token, which is never computed.
    "VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1",
}


@dataclass(frozen=True)
class VLLMSettings:
    """The model of one engine, and the resources the engine may use. None leaves the choice to vLLM.

    max_tokens: longest sequence, prompt and answer together. tensor_parallel: devices (processes, on a CPU) over which the
    model is split. batch_tokens: tokens of a forward pass at most. max_logprobs: classes a request may ask for at one position.
    ngrams: requests may block repeated n-grams.
    """

    model: Path
    dtype: DType
    trust_remote_code: bool
    max_tokens: int
    max_sequences: int
    kv_cache_gib: float
    gpu_memory_utilization: float
    seed: int = 0
    on_gpu: bool = False
    tensor_parallel: int = 1
    batch_tokens: int | None = None
    max_logprobs: int = 1
    prefix_caching: bool | None = None
    ngrams: bool = False

    @classmethod
    def of(cls, config: ModelConfig, where: str, limits: RolloutConfig | LocalTeacherConfig, **fields: Any) -> "VLLMSettings":
        """Settings from a model's section `where` and the limits of its role; `fields`: other fields, by name."""
        shared = config.model_dump(include={"dtype", "trust_remote_code"})
        shared |= limits.model_dump(include={"max_sequences", "kv_cache_gib", "gpu_memory_utilization"})
        return cls(model=resolve(config.model or "", where), **shared, **fields)


class VLLMCore:
    """A vLLM engine and its one thread: writes, and returns log-probabilities of given sequences."""

    def __init__(self, settings: VLLMSettings, renderer: Renderer, *, name: str, vocabulary: int | None) -> None:
        self.tokens_written = 0
        self.running = 0
        self.aborted = 0
        self._renderer = renderer
        self._worker = Worker(name)
        self._finished: dict[str, Any] = {}
        self._names = map(str, count())
        self._blocks_ngrams = settings.ngrams
        self._on_gpu = settings.on_gpu
        # Built in the worker's thread, since vLLM and OpenMP keep state per thread.
        self._engine = self._worker.run_now(_make_engine, settings)
        self._shared = hide_shared_memory() if settings.tensor_parallel > 1 else []
        width = int(self._engine.vllm_config.model_config.get_vocab_size())  # classes of the softmax, padding included
        # Ids outside the shared vocabulary have no probability in the learner: the engine must not sample them.
        self._allowed = allowed_ids(vocabulary, width)
        self.sessions = Sessions(self._engine, renderer.stops, self._allowed)

    async def write(self, prompts: Sequence[Prompt], sampling: Sampling, *, version: int) -> list[Rollout]:
        """`sampling.samples` rollouts a prompt, in order, of weights `version`. Cancelling the call aborts its requests.

        The engine blocks n-grams only if it was started with `VLLMSettings.ngrams`.
        """
        assert self._blocks_ngrams or sampling.no_repeat_ngram_size is None, (
            "only an engine started with ngrams=True blocks n-grams"
        )
        jobs = sampling.jobs(prompts)
        asked = partial(sampling_params, sampling, self._renderer.stops, self._allowed, logprobs=0)
        parameters = [asked(seed=sample_seed(sampling.seed, prompt.row, number)) for prompt, number in jobs]
        outputs = await self._run([prompt.tokens.tolist() for prompt, _ in jobs], parameters)
        rollouts = [self._rollout(job, output, version) for job, output in zip(jobs, outputs, strict=True)]
        self.tokens_written += sum(len(rollout.tokens) for rollout in rollouts)
        return rollouts

    async def logprobs(self, sequences: Sequence[Sequence[int]], top: int = 0) -> list[tuple[Array, Array]]:
        """For each sequence of S tokens, ids and log-probabilities (nats, temperature 1, no truncation), each [S-1, 1 + top].

        Row s describes the token after position s. Column 0 is the token of the sequence; the `top` likeliest tokens follow, in
        falling order.
        """
        from vllm import SamplingParams

        # Flat lists, since vLLM would otherwise spend most of the time on one dictionary per position.
        ask = {"max_tokens": 1, "temperature": 0.0, "prompt_logprobs": top, "flat_logprobs": True, "detokenize": False}
        outputs = await self._run([list(sequence) for sequence in sequences], [SamplingParams(**ask) for _ in sequences])
        for work in (Work.row(len(sequence), len(sequence)) for sequence in sequences):
            add(computed=work.tokens, forward_tokens=work.tokens, forward_pairs=work.pairs, forward_heads=work.heads)
        return [_table(sequence, output.prompt_logprobs) for sequence, output in zip(sequences, outputs, strict=True)]

    async def take_turns(self, request: TurnRequest) -> list[TurnResult]:
        """See `sessions.TurnTaker`."""
        await self._worker.run(self.sessions.submit, request)
        await self._until(partial(self.sessions.enough, request.call, request.fraction))
        results = self.sessions.collect(request.call)
        self.tokens_written += sum(len(result.tokens) for result in results)
        return results

    async def end_turns(self, call: str) -> None:
        await self._worker.run(self.sessions.end, call)

    async def reload(self, weights: Weights | list[tuple[str, Any]]) -> None:
        """Replace the weights in every process that holds a part of the model, and drop cached keys and values."""
        await self._worker.run(self._reload, weights)

    def facts(self) -> dict[str, object]:
        """Engine class, architecture, processes: for the run's summary."""
        config = self._engine.vllm_config
        split, held = config.parallel_config.tensor_parallel_size, len(self.sessions)
        facts = {"class": f"vllm {type(self._engine).__name__}", "architecture": config.model_config.architectures[0]}
        return facts | {"tensor_parallel": split, "sequences_held": held}

    async def close(self) -> None:
        show_shared_memory(self._shared)
        await self._worker.run(self._engine.engine_core.shutdown)
        self._worker.close()

    async def _run(self, prompts: list[list[int]], parameters: list[Any]) -> list[Any]:
        """Submit all requests in order and step the engine until they are finished; abort them if this call is cancelled."""
        names = list(islice(self._names, len(prompts)))
        wanted = set(names)
        self.running += len(names)
        try:
            await self._worker.run(self._submit, names, prompts, parameters)
            await self._until(lambda: wanted <= self._finished.keys())
        except BaseException:
            unfinished = [name for name in names if self._finished.pop(name, None) is None]
            await self._worker.run(self._engine.abort_request, unfinished)
            self.aborted += len(unfinished)
            raise
        finally:
            self.running -= len(names)
        return [self._finished.pop(name) for name in names]

    def _submit(self, names: list[str], prompts: list[list[int]], parameters: list[Any]) -> None:
        for name, prompt, parameter in zip(names, prompts, parameters, strict=True):
            self._engine.add_request(name, {"prompt_token_ids": prompt}, parameter)

    async def _until(self, done: Callable[[], bool]) -> None:
        """Step until `done`. Requests of another call may finish too; that call collects them the next time it runs."""
        while not done():
            await self._worker.run(self._steps, done)

    def _steps(self, done: Callable[[], bool]) -> None:
        """Step for a quarter of a second or until `done`, so that a cancelled call is noticed soon."""
        until = time.monotonic() + 0.25
        while not done() and time.monotonic() < until:
            self._step()

    def _step(self) -> None:
        """One pass of the model, as vLLM's `step` makes it; tokens of sessions skip vLLM's bookkeeping."""
        others = self.sessions.take(self._engine.engine_core.get_output().outputs)
        done = self._engine.output_processor.process_outputs(others)
        self._engine.engine_core.abort_requests(done.reqs_to_abort)
        self._finished |= {output.request_id: output for output in done.request_outputs if output.finished}

    def _rollout(self, job: Job, output: Any, version: int) -> Rollout:
        completion = output.outputs[0]
        logprobs = [entry[token].logprob for token, entry in zip(completion.token_ids, completion.logprobs, strict=True)]
        known = {"cached": output.num_cached_tokens or 0, "version": version}
        return answered(job, self._renderer, completion.token_ids, logprobs, **known)

    def _reload(self, weights: Weights | list[tuple[str, Any]]) -> None:
        # The caller proves the swap.
        self._engine.collective_rpc(reload, args=(weights,), kwargs={"on_gpu": self._on_gpu})
        if not self._engine.reset_prefix_cache():
            raise RoleError("vLLM did not clear its prefix cache after new weights: requests on the old weights still run")


def _table(sequence: Sequence[int], flat: Any) -> tuple[Array, Array]:
    """vLLM's flat lists as two arrays; the first position has no entries."""
    rows = len(sequence) - 1
    ids = np.asarray(flat.token_ids, dtype=np.int32).reshape(rows, -1)
    assert (ids[:, 0] == sequence[1:]).all(), "vLLM lists the token of the sequence first"
    return ids, np.asarray(flat.logprobs, dtype=np.float32).reshape(rows, -1)


def _make_engine(settings: VLLMSettings) -> Any:
    os.environ.update(_ENVIRONMENT)
    if not settings.on_gpu:
        # vLLM takes 20 s to compile the sampler's few operations at the first request, without a gain on a CPU.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    if settings.ngrams:
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # version 2 has another interface for logits processors
    if settings.tensor_parallel > 1:
        prepare(settings.tensor_parallel)
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    arguments = EngineArgs(**engine_arguments(settings))
    if settings.on_gpu:
        return LLMEngine.from_engine_args(arguments)
    with classes_unchanged(settings.model, trust_remote_code=settings.trust_remote_code):
        return LLMEngine.from_engine_args(arguments)


def engine_arguments(settings: VLLMSettings) -> dict[str, Any]:
    """The arguments of vLLM's engine."""
    arguments: dict[str, Any] = {
        "model": str(settings.model),
        "skip_tokenizer_init": True,  # it reads and writes ids, and the tokenizer may be in another directory
        "dtype": settings.dtype,
        "seed": settings.seed,
        "max_model_len": settings.max_tokens,
        "max_num_seqs": settings.max_sequences,
        "max_logprobs": settings.max_logprobs,
        "enable_prefix_caching": settings.prefix_caching,
        "enforce_eager": not settings.on_gpu,
        "trust_remote_code": settings.trust_remote_code,
        # Log-probabilities of the sampled distribution; by default they are taken before temperature and truncation.
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "disable_log_stats": True,
        "logits_processors": ["minidist.rollout.vllm.ngrams:NoRepeatNgram"] if settings.ngrams else None,
    }
    if settings.tensor_parallel > 1:
        arguments |= {"tensor_parallel_size": settings.tensor_parallel, "distributed_executor_backend": "mp"}
    if settings.on_gpu:
        memory = settings.gpu_memory_utilization
        return arguments | {"gpu_memory_utilization": memory, "max_num_batched_tokens": settings.batch_tokens}
    return arguments | {
        "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30),
        # A prompt that is prefilled in two parts draws one token too many. vLLM undoes the draw by rewinding the request's
        # generator, which a CPU generator cannot do, so prompts are never split.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(settings.max_tokens, settings.batch_tokens or 4096),
    }
