"""vLLM as the rollout engine."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from minidist.config.models import ModelConfig
from minidist.config.rollout import RolloutConfig
from minidist.data.rendering import Renderer
from minidist.protocols import RolloutEngine
from minidist.rollout.vllm.core import CoreRole, VLLMCore, VLLMSettings
from minidist.rollout.vllm.sessions import TurnTaker
from minidist.types import Channel, Outline, Prompt, Rollout, Sampling, Weights


def student_settings(config: ModelConfig, rollout: RolloutConfig, *, deterministic: bool, **fields: Any) -> VLLMSettings:
    """A student's vLLM engine; `fields`: other fields of VLLMSettings, by name."""
    # Prefixes cached by earlier calls would decide which keys and values are computed anew.
    caching = False if deterministic else None
    ngrams = rollout.no_repeat_ngram_size is not None
    return VLLMSettings.of(config, "student.model", rollout, prefix_caching=caching, ngrams=ngrams, **fields)


class VLLMEngine(CoreRole, TurnTaker, RolloutEngine):
    """Samples with vLLM. Ids from `vocabulary` on are padding and are never sampled."""

    def __init__(self, settings: VLLMSettings, renderer: Renderer, *, vocabulary: int | None = None) -> None:
        self._core = VLLMCore(settings, renderer, name="rollout", vocabulary=vocabulary)
        self._version = 0

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """`sampling.samples` rollouts a prompt, in order. Cancelling the call aborts its requests.

        Only an engine whose rollout.no_repeat_ngram_size is set blocks n-grams.
        """
        return await self._core.write(prompts, sampling, version=self._version)

    async def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncGenerator[tuple[int, list[Rollout]], None]:
        """The rollouts of each prompt as soon as its last one ends, with the prompt's index."""
        async with aclosing(self._core.stream(prompts, sampling, version=self._version)) as answers:
            async for answer in answers:
                yield answer

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of every token after the first."""
        return [logprobs[:, 0].tolist() for _, logprobs in await self._core.logprobs(sequences)]

    async def load(self, weights: Weights | Path) -> None:
        """Replace the weights, and drop all cached keys and values."""
        if isinstance(weights, Path):
            await self._core.updates.reload(list(_read(weights).items()))
            self._version += 1
        else:
            await self._core.updates.reload(weights)
            self._version = weights.version

    async def join(self, channel: Channel, first: int) -> bool:
        """Meet the learner over a channel, of which the engine's processes are `first` and those after it. Returns whether the
        model takes a tied output head by its own name."""
        return await self._core.updates.join(channel, first)

    async def receive(self, backend: str, outline: Outline, handles: list[dict[str, Any]] | None = None) -> None:
        """Take the weights that the learner sends, as `outline` lists them, or opens to this engine by `handles`.

        Until `finish`, the engine refuses to compute: its weights may be of two versions.
        """
        await self._core.updates.receive(backend, outline, handles)

    async def finish(self, version: int) -> None:
        """The weights that came are whole, and of this version."""
        await self._core.updates.finish()
        self._version = version

    async def version(self) -> int:
        return self._version

    async def figures(self) -> dict[str, float]:
        return {}

    async def describe(self) -> dict[str, object]:
        core = self._core
        counts = {"tokens_written": core.tokens_written, "requests_running": core.running, "requests_aborted": core.aborted}
        return {**core.facts(), "version": self._version, **counts}


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name; a tied output head is listed too."""
    tensors: dict[str, Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        tensors |= load_file(file)
    if "lm_head.weight" not in tensors:
        for name in [name for name in tensors if name.endswith(("embed_tokens.weight", "wte.weight"))]:
            tensors["lm_head.weight"] = tensors[name]
    return tensors
