"""vLLM as rollout engine, in the process of its actor: when the actor dies, nothing of it stays.

The engine core is stepped by hand, so that sampling can be aborted between two tokens, and weights can be swapped without
a second process.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from minidist.config.learning import RolloutConfig
from minidist.config.models import ModelConfig
from minidist.data.rendering import Renderer
from minidist.errors import RoleError
from minidist.modeling import resolve, to_tensor
from minidist.rollout.seeds import sample_seed
from minidist.types import Finish, Prompt, Rollout, Weights
from minidist.worker import Worker

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


class VLLMEngine:
    """Samples with vLLM. `max_tokens` is the longest sequence, prompt and answer together."""

    def __init__(
        self,
        config: ModelConfig,
        rollout: RolloutConfig,
        renderer: Renderer,
        *,
        max_tokens: int,
        seed: int,
        vocabulary: int | None = None,
        gpus: int = 0,
    ) -> None:
        self._renderer, self._worker = renderer, Worker("rollout")
        self._finished: dict[str, Any] = {}
        self._version = self._tokens = self._requests = self._aborted = 0
        path = resolve(config.model or "", "student.model")
        # Built in the worker's thread: vLLM and OpenMP keep per-thread state.
        self._engine = self._worker.run_now(_make_engine, path, config, rollout, max_tokens, seed, gpus)
        padded = vocabulary is not None and self._engine.vllm_config.model_config.get_vocab_size() > vocabulary
        # Ids beyond the shared vocabulary are padding: the learner slices them off, so the engine must not write them.
        self._allowed = list(range(vocabulary)) if padded and vocabulary is not None else None

    async def generate(
        self, prompts: Sequence[Prompt], *, samples: int, max_new_tokens: int, temperature: float, top_p: float, seed: int
    ) -> list[Rollout]:
        """`samples` rollouts a prompt, in order. Cancelling it aborts the requests."""
        from vllm import SamplingParams

        jobs = [(prompt, number) for prompt in prompts for number in range(samples)]
        parameters = [
            SamplingParams(
                max_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=sample_seed(seed, prompt.row, number),
                logprobs=0,
                detokenize=False,
                stop_token_ids=[self._renderer.eos],
                allowed_token_ids=self._allowed,
            )
            for prompt, number in jobs
        ]
        outputs = await self._run([prompt.tokens.tolist() for prompt, _ in jobs], parameters)
        rollouts = [self._rollout(job, output) for job, output in zip(jobs, outputs, strict=True)]
        self._tokens += sum(len(rollout.tokens) for rollout in rollouts)
        return rollouts

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of every token after the first."""
        from vllm import SamplingParams

        parameters = [SamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False) for _ in sequences]
        outputs = await self._run([list(sequence) for sequence in sequences], parameters)
        scored = []
        for sequence, output in zip(sequences, outputs, strict=True):
            positions = output.prompt_logprobs[1:]  # position 0 has no probability
            scored.append([position[token].logprob for token, position in zip(sequence[1:], positions, strict=True)])
        return scored

    async def load(self, weights: Weights | Path) -> None:
        """Swap the weights in place and forget every cached key and value."""
        await self._worker.run(self._load, weights)

    async def describe(self) -> dict[str, object]:
        model = self._engine.vllm_config.model_config
        return {
            "class": f"vllm {type(self._engine).__name__}",
            "architecture": model.architectures[0],
            "version": self._version,
            "tokens_written": self._tokens,
            "requests_aborted": self._aborted,
        }

    async def close(self) -> None:
        await self._worker.run(self._engine.engine_core.shutdown)
        self._worker.close()

    async def _run(self, prompts: list[list[int]], parameters: list[Any]) -> list[Any]:
        """Submit all requests in order, step the engine until they are finished; abort them if this call is cancelled."""
        names = [str(self._requests + index) for index in range(len(prompts))]
        self._requests += len(prompts)
        wanted = set(names)
        try:
            await self._worker.run(self._submit, names, prompts, parameters)
            while not wanted <= self._finished.keys():
                await self._worker.run(self._steps, wanted)
        except BaseException:
            unfinished = [name for name in names if self._finished.pop(name, None) is None]
            await self._worker.run(self._engine.abort_request, unfinished)
            self._aborted += len(unfinished)
            raise
        return [self._finished.pop(name) for name in names]

    def _submit(self, names: list[str], prompts: list[list[int]], parameters: list[Any]) -> None:
        for name, prompt, parameter in zip(names, prompts, parameters, strict=True):
            self._engine.add_request(name, {"prompt_token_ids": prompt}, parameter)

    def _steps(self, wanted: set[str]) -> None:
        """Step for a quarter of a second or until all wanted is done, so that a cancelled call is noticed soon.

        What finishes may belong to another call, which finds it when its turn comes.
        """
        until = time.monotonic() + 0.25
        while not wanted <= self._finished.keys() and time.monotonic() < until:
            self._finished |= {output.request_id: output for output in self._engine.step() if output.finished}

    def _rollout(self, job: tuple[Prompt, int], output: Any) -> Rollout:
        completion = output.outputs[0]
        tokens = np.asarray(completion.token_ids, dtype=np.int32)
        logprobs = [entry[token].logprob for token, entry in zip(completion.token_ids, completion.logprobs, strict=True)]
        return Rollout(
            prompt=job[0],
            tokens=tokens,
            logprobs=np.asarray(logprobs, dtype=np.float32),
            versions=np.full(len(tokens), self._version, dtype=np.int32),
            finish=Finish.STOP if completion.finish_reason == "stop" else Finish.LENGTH,
            sample=job[1],
            text=self._renderer.decode(tokens),
        )

    def _load(self, weights: Weights | Path) -> None:
        if isinstance(weights, Path):
            tensors, version = list(_read(weights)), self._version + 1
        else:
            tensors = [(name, to_tensor(array, weights.dtypes[name])) for name, array in weights.arrays.items()]
            version = weights.version
        # A direct model.load_weights fails on CPU, and a saved tied model must bring its head: the caller proves the swap.
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(tensors)})
        if not self._engine.reset_prefix_cache():
            raise RoleError("vLLM did not clear its prefix cache after new weights: requests of the old ones still run")
        self._version = version


def _read(path: Path) -> Any:
    """Names and tensors of a checkpoint, its tied output head included."""
    names: set[str] = set()
    tied: tuple[str, Any] | None = None
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (safe_open is no mapping)
                names.add(name)
                tensor = tensors.get_tensor(name)
                if name.endswith(("embed_tokens.weight", "wte.weight")):
                    tied = ("lm_head.weight", tensor)
                yield name, tensor
    if "lm_head.weight" not in names and tied is not None:
        yield tied


def _make_engine(path: Path, config: ModelConfig, rollout: RolloutConfig, max_tokens: int, seed: int, gpus: int) -> Any:
    os.environ.update(_ENVIRONMENT)
    if not gpus:
        # Compiling the sampler's few operations takes vLLM 20 s at the first request, and buys nothing on a CPU.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    device: dict[str, Any] = _on_cpu(rollout, max_tokens)
    if gpus:
        device = {"gpu_memory_utilization": rollout.gpu_memory_utilization}
    arguments = EngineArgs(
        model=str(path),
        tokenizer=str(path),
        dtype=config.dtype,
        seed=seed,
        max_model_len=max_tokens,
        max_num_seqs=rollout.max_sequences,
        enforce_eager=not gpus,
        trust_remote_code=config.trust_remote_code,
        # Of the distribution that was sampled: the default is before temperature and truncation.
        logprobs_mode="processed_logprobs",
        generation_config="vllm",
        disable_log_stats=True,
        **device,
    )
    return LLMEngine.from_engine_args(arguments)


def _on_cpu(rollout: RolloutConfig, max_tokens: int) -> dict[str, Any]:
    return {
        "kv_cache_memory_bytes": int(rollout.kv_cache_gib * 2**30),
        # A prompt that is prefilled in two parts draws a token too many, and vLLM takes it back by rewinding the request's
        # generator, which a CPU generator cannot do: so prompts are never split.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(max_tokens, 4096),
    }
