"""vLLM inside the process of its actor, to write and to score: when the actor dies, nothing of the engine remains.

The engine core is stepped by hand, so that a call can be aborted between two tokens, and weights can be swapped without a
second process. The parts of a split model alone live in worker processes, which end with this process.
"""

import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from minidist.concurrency import Worker
from minidist.config.engines import engine_limits
from minidist.config.models import DType, ModelConfig
from minidist.config.rollout import RolloutConfig
from minidist.config.teacher import LocalTeacherConfig
from minidist.data.rendering import Renderer
from minidist.errors import RoleError
from minidist.models.files import resolve
from minidist.models.imports import import_less, without
from minidist.rollout.answers import answered, in_order
from minidist.rollout.seeds import sample_seed
from minidist.rollout.vllm import processors, transfer
from minidist.rollout.vllm.borrowed import classes_unchanged
from minidist.rollout.vllm.processes import hide_shared_memory, of_living, prepare, show_shared_memory
from minidist.rollout.vllm.requests import Answer, Call, Requests
from minidist.rollout.vllm.sampling import sampling_params
from minidist.rollout.vllm.sessions import Sessions, TurnRequest, TurnResult
from minidist.rollout.vllm.stages import make_room
from minidist.rollout.vllm.updates import WeightUpdates
from minidist.run.flops import Work
from minidist.run.garbage import nothing_old_collected
from minidist.run.timeline import count as add
from minidist.types import Array, Prompt, Rollout, Sampling

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
    """The model of one engine, and the resources the engine may use.

    max_tokens: longest sequence, prompt and answer together. tensor_parallel, pipeline_parallel: devices (processes, on a CPU)
    over which each layer is split, and groups of them over which the layers are dealt. across_nodes: the devices are those of
    the Ray placement group that this process's actor is in, on whatever nodes. batch_tokens: tokens of a forward pass at most.
    max_logprobs: classes a request may ask for at one position. prefix_caching: None leaves the choice to vLLM. ngrams:
    requests may block repeated n-grams. pooling: the engine gives hidden states of given sequences and nothing else; it holds
    no output head. sleeps: the weights can leave a GPU for a while. turns: the engine takes turns with another (`Sessions`).
    transfer: gloo, nccl or ipc where weights come over a channel.
    """

    model: Path
    dtype: DType
    trust_remote_code: bool
    max_tokens: int
    max_sequences: int
    batch_tokens: int
    kv_cache_gib: float
    gpu_memory_utilization: float
    seed: int = 0
    on_gpu: bool = False
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    across_nodes: bool = False
    max_logprobs: int = 1
    prefix_caching: bool | None = None
    ngrams: bool = False
    pooling: bool = False
    sleeps: bool = False
    turns: bool = False
    transfer: str | None = None

    @property
    def workers(self) -> int:
        """Processes of this machine that hold parts of the model; 0 where this one holds all, or other nodes hold parts."""
        devices = self.tensor_parallel * self.pipeline_parallel
        return 0 if devices == 1 or self.across_nodes else devices

    @classmethod
    def of(cls, config: ModelConfig, where: str, role: RolloutConfig | LocalTeacherConfig, **fields: Any) -> "VLLMSettings":
        """Settings from a model's section `where` and the section of its role; `fields`: max_tokens, and others by name."""
        place = {"longest": fields["max_tokens"], "on_gpu": fields.get("on_gpu", False)}
        limits = engine_limits(role, **place, pooling=fields.get("pooling", False))
        shared = config.model_dump(include={"dtype", "trust_remote_code"})
        shared |= role.model_dump(include={"kv_cache_gib", "gpu_memory_utilization"})
        shared |= {"max_sequences": limits.sequences, "batch_tokens": limits.tokens}
        return cls(model=resolve(config.model or "", where), **shared, **fields)


class VLLMCore:
    """A vLLM engine and its one thread: writes, and returns log-probabilities or hidden states of given sequences."""

    def __init__(self, settings: VLLMSettings, renderer: Renderer, *, name: str, vocabulary: int | None) -> None:
        self.tokens_written = 0
        self.running = 0
        self.aborted = 0
        self._renderer = renderer
        self._worker = Worker(name)
        self._blocks_ngrams = settings.ngrams
        self._on_gpu = settings.on_gpu
        # Built in the worker's thread, since vLLM and OpenMP keep state per thread.
        self._engine = self._worker.run_now(_make_engine, settings, vocabulary)
        self._shared = hide_shared_memory() if settings.workers else []
        self.sessions = Sessions(self._engine, renderer.stops)
        self._requests = Requests(self._engine)
        self.updates = WeightUpdates(self._engine, self._worker, settings.on_gpu)

    async def stream(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, version: int
    ) -> AsyncGenerator[tuple[int, list[Rollout]], None]:
        """The index of a prompt and its `sampling.samples` rollouts, of weights `version`, as soon as the last one ends.

        Closing the iterator, or cancelling the call that waits for it, aborts the requests.

        The engine blocks n-grams only if it was started with `VLLMSettings.ngrams`.
        """
        assert self._blocks_ngrams or sampling.no_repeat_ngram_size is None, (
            "only an engine started with ngrams=True blocks n-grams"
        )
        jobs = sampling.jobs(prompts)
        parameters = sampling_params(sampling, self._renderer.stops, logprobs=0, seed=0)
        seeds = [sample_seed(sampling.seed, prompt.row, number) for prompt, number in jobs]
        written: dict[int, list[Rollout]] = {}
        async with aclosing(self._answers([prompt.tokens.tolist() for prompt, _ in jobs], parameters, seeds)) as answers:
            async for answer in answers:
                rollout = answered(
                    jobs[answer.number], self._renderer, answer.tokens, answer.logprobs, cached=answer.cached, version=version
                )
                self.tokens_written += len(rollout.tokens)
                index = answer.number // sampling.samples
                rollouts = written.setdefault(index, [])
                rollouts.append(rollout)
                if len(rollouts) == sampling.samples:
                    yield index, sorted(written.pop(index), key=lambda rollout: rollout.sample)

    async def write(self, prompts: Sequence[Prompt], sampling: Sampling, *, version: int) -> list[Rollout]:
        """The rollouts of `stream`, in the prompts' order."""
        return await in_order(self.stream(prompts, sampling, version=version), len(prompts))

    async def logprobs(self, sequences: Sequence[Sequence[int]], top: int = 0) -> list[tuple[Array, Array]]:
        """For each sequence of S tokens, ids and log-probabilities (nats, temperature 1, no truncation), each [S-1, 1 + top].

        Row s describes the token after position s. Column 0 is the token of the sequence; the `top` likeliest tokens follow, in
        falling order.
        """
        from vllm import SamplingParams

        parameters = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=top, detokenize=False)
        tables: dict[int, tuple[Array, Array]] = {}
        async with aclosing(self._answers([list(sequence) for sequence in sequences], parameters)) as answers:
            async for answer in answers:
                tables[answer.number] = _table(sequences[answer.number], answer.table)
        _count_read(sequences, heads=True)
        return [tables[number] for number in range(len(sequences))]

    async def hidden_states(self, sequences: Sequence[Sequence[int]], counts: Sequence[int]) -> list[Any]:
        """The hidden states of the last `count` tokens of each sequence, [count, D] tensors, after the final norm and before
        the output head, in the precision of the model. Only an engine of `VLLMSettings.pooling` gives them.

        Raises RoleError where vLLM gives another number of states than of tokens.
        """
        from vllm import PoolingParams

        parameters = PoolingParams(task="token_embed", use_activation=False)
        states: dict[int, Any] = {}
        async with aclosing(self._answers([list(sequence) for sequence in sequences], parameters)) as answers:
            async for answer in answers:
                number, read = answer.number, len(sequences[answer.number])
                if len(answer.hidden) != read:
                    raise RoleError(f"vLLM gave the hidden states of {len(answer.hidden)} of a sequence's {read} tokens")
                last = answer.hidden[read - counts[number] :]
                states[number] = last.clone()  # a view would keep the states of the whole pass
        _count_read(sequences, heads=False)
        return [states[number] for number in range(len(sequences))]

    async def take_turns(self, request: TurnRequest) -> list[TurnResult]:
        """See `sessions.TurnTaker`. The engine was started with `VLLMSettings.turns`."""
        assert not self._engine.vllm_config.scheduler_config.async_scheduling, "an ended turn would go on for a token"
        self.updates.check()
        await self._worker.run(self.sessions.submit, request)
        await self._until(partial(self.sessions.enough, request.call, request.fraction))
        results = self.sessions.collect(request.call)
        self.tokens_written += sum(len(result.tokens) for result in results)
        return results

    async def end_turns(self, call: str) -> None:
        await self._worker.run(self.sessions.end, call)

    async def sleep(self) -> None:
        """Move the weights from a GPU to host memory, and free its keys and values, until `wake`."""
        if self._on_gpu:
            await self._worker.run(self._sleep)

    async def wake(self) -> None:
        if self._on_gpu:
            await self._worker.run(self._engine.wake_up)

    def facts(self) -> dict[str, object]:
        """Engine class, architecture, processes: for the run's summary."""
        config = self._engine.vllm_config
        split = config.parallel_config
        return {
            "class": f"vllm {type(self._engine).__name__}",
            "architecture": config.model_config.architectures[0],
            "tensor_parallel": split.tensor_parallel_size,
            "pipeline_parallel": split.pipeline_parallel_size,
            "sequences_held": len(self.sessions),
        }

    async def close(self) -> None:
        show_shared_memory(self._shared)
        await self._worker.run(self._engine.engine_core.shutdown)
        self._worker.close()

    async def _answers(
        self, prompts: Sequence[list[int]], parameters: Any, seeds: Sequence[int] | None = None
    ) -> AsyncGenerator[Answer, None]:
        """Submit a request for each prompt, in order, and step the engine; answers in the order in which they finish."""
        self.updates.check()
        call = Call()
        self.running += len(prompts)
        try:
            await self._worker.run(self._requests.submit, call, prompts, parameters, seeds)
            while call.unfinished or call.finished:
                await self._until(lambda: bool(call.finished))
                finished, call.finished = call.finished, []
                for answer in finished:
                    yield answer
        finally:
            self.aborted += await self._worker.run(self._requests.abort, call)
            self.running -= len(prompts)

    async def _until(self, done: Callable[[], bool]) -> None:
        """Step until `done`. Requests of another call may finish too; that call collects them the next time it runs."""
        while not done():
            await self._worker.run(self._steps, done)

    def _steps(self, done: Callable[[], bool]) -> None:
        """Step for a quarter of a second or until `done`, so that a cancelled call is noticed soon."""
        until = time.monotonic() + 0.25
        with of_living(self._engine):
            while not done() and time.monotonic() < until:
                self._step()

    def _step(self) -> None:
        """One pass of the model."""
        self._requests.take(self.sessions.take(self._engine.engine_core.get_output().outputs))

    def _sleep(self) -> None:
        self._engine.reset_prefix_cache()
        self._engine.sleep(level=1)


class CoreRole:
    """A role whose model is in a vLLM engine alone."""

    _core: VLLMCore

    async def sleep(self) -> None:
        """Move the weights to host memory, until `wake`."""
        await self._core.sleep()

    async def wake(self) -> None:
        await self._core.wake()

    async def close(self) -> None:
        await self._core.close()


def _count_read(sequences: Sequence[Sequence[int]], *, heads: bool) -> None:
    """Account for sequences that were read once; `heads`: all their tokens passed through the output head."""
    for work in (Work.row(len(sequence), len(sequence) if heads else 0) for sequence in sequences):
        add(computed=work.tokens, forward_tokens=work.tokens, forward_pairs=work.pairs, forward_heads=work.heads)


def _table(sequence: Sequence[int], tensors: Any) -> tuple[Array, Array]:
    """vLLM's tensors as two arrays; a sequence of one token has none."""
    if tensors is None:
        return np.zeros((0, 1), dtype=np.int32), np.zeros((0, 1), dtype=np.float32)
    ids, logprobs = tensors.logprob_token_ids.numpy(), tensors.logprobs.numpy()
    assert (ids[:, 0] == sequence[1:]).all(), "vLLM lists the token of the sequence first"
    return ids.astype(np.int32), logprobs.astype(np.float32)


def _make_engine(settings: VLLMSettings, vocabulary: int | None) -> Any:
    os.environ.update(_ENVIRONMENT)
    if not settings.on_gpu:
        # vLLM takes 20 s to compile the sampler's few operations at the first request, without a gain on a CPU.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    if settings.workers:
        prepare(settings.workers)
    import_less()
    # vLLM resamples sound with the one and changes a list in the other, for what is compiled: a second and a half, and on a CPU
    # nothing is compiled. On a GPU, it also imports packages that may need them.
    with nullcontext() if settings.on_gpu else without("scipy", "torch._inductor.lowering"):
        from vllm import EngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.llm_engine import LLMEngine

    def started() -> Any:
        config = EngineArgs(**engine_arguments(settings)).create_engine_config(UsageContext.ENGINE_CONTEXT)
        # Ids outside the shared vocabulary have no probability in the learner: the engine must not sample them.
        processors.load(config, vocabulary, ngrams=settings.ngrams)
        return LLMEngine.from_vllm_config(config, disable_log_stats=True)

    with nothing_old_collected():  # vLLM collects garbage several times as it starts
        if settings.on_gpu:
            return started()
        from minidist.rollout.vllm.sampler import install

        with classes_unchanged(settings.model, trust_remote_code=settings.trust_remote_code):
            engine = started()
        if not settings.pooling:
            engine.collective_rpc(install)
        if settings.pipeline_parallel > 1:
            engine.collective_rpc(make_room)
        return engine


def engine_arguments(settings: VLLMSettings) -> dict[str, Any]:
    """The arguments of vLLM's engine."""
    arguments: dict[str, Any] = {
        "model": str(settings.model),
        "skip_tokenizer_init": True,  # it reads and writes ids, and the tokenizer may be in another directory
        "dtype": settings.dtype,
        "seed": settings.seed % 2**31,  # vLLM seeds NumPy too, which takes 32 bits
        "max_model_len": settings.max_tokens,
        "max_num_seqs": settings.max_sequences,
        "max_num_batched_tokens": settings.batch_tokens,
        "max_logprobs": settings.max_logprobs,
        "enable_prefix_caching": settings.prefix_caching,
        "enforce_eager": not settings.on_gpu,
        "trust_remote_code": settings.trust_remote_code,
        # Log-probabilities of the sampled distribution; by default they are taken before temperature and truncation.
        "logprobs_mode": "processed_logprobs",
        "generation_config": "vllm",
        "disable_log_stats": True,
        "enable_sleep_mode": settings.sleeps and settings.on_gpu,
    }
    arguments |= transfer.arguments(settings.transfer)
    if settings.workers or settings.across_nodes:
        arguments["distributed_executor_backend"] = "ray" if settings.across_nodes else "mp"
    if settings.tensor_parallel > 1:
        arguments["tensor_parallel_size"] = settings.tensor_parallel
    if settings.pipeline_parallel > 1:
        arguments["pipeline_parallel_size"] = settings.pipeline_parallel
    if settings.pooling:
        arguments |= _POOLING
    if settings.turns:
        # A pass that is scheduled before the last one is seen would read and write a token more after a turn has ended.
        arguments["async_scheduling"] = False
    if settings.on_gpu:
        return arguments | {"gpu_memory_utilization": settings.gpu_memory_utilization}
    # Prompts are never split (see config.engines).
    return arguments | {"kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30), "enable_chunked_prefill": False}


_POOLING: dict[str, Any] = {
    "runner": "pooling",
    "convert": "embed",
    # Of all tokens, without the normalisation to length 1 that vLLM's embeddings have by default.
    "pooler_config": {"task": "token_embed", "tok_pooling_type": "ALL", "use_activation": False},
    "hf_overrides": {"head_dtype": "model"},  # vLLM would widen the states to float32
    "enable_prefix_caching": False,  # tokens whose keys and values are cached are not computed, and have no states
    "enable_chunked_prefill": False,
}
"""The arguments of an engine that gives hidden states."""
