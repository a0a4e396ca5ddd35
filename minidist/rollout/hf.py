"""transformers as the reference sampler: slow, exact and easy to read."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from minidist.concurrency import Worker
from minidist.config.models import ModelConfig
from minidist.data.rendering import Renderer
from minidist.losses.costs import running_sum
from minidist.models.adapted import to_tensors
from minidist.models.device import leave_device, pick_device, to_device
from minidist.models.hub import load_model
from minidist.models.names import load_as_in_files
from minidist.protocols import RolloutEngine
from minidist.rollout.answers import Job, answered
from minidist.rollout.ngrams import completions
from minidist.rollout.seeds import sample_seed
from minidist.types import Prompt, Rollout, Sampling, Vocabulary, Weights

ROWS = 128  # sequences decoded side by side


class HFEngine(RolloutEngine):
    """A rollout engine in transformers, for tests and for models that vLLM does not support."""

    def __init__(self, config: ModelConfig, renderer: Renderer, *, vocabulary: int | None = None, on_gpu: bool = False) -> None:
        self._config = config
        self._renderer = renderer
        self._vocabulary = vocabulary
        self._on_gpu = on_gpu
        self._model = load_model(config, "student.model", on_gpu)
        self._worker = Worker("rollout")
        self._version = 0
        self._tokens = 0

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """`sampling.samples` rollouts a prompt, in order."""
        return await self._write(partial(sample, self._model), prompts, sampling)

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of every token after the first."""
        return await self._worker.run(lambda: [_score(self._model, list(sequence)) for sequence in sequences])

    async def load(self, weights: Weights | Path) -> None:
        """Replace the weights; the architecture stays."""
        if isinstance(weights, Path):
            self._model = load_model(self._config.model_copy(update={"model": str(weights)}), "weights", self._on_gpu)
            self._version += 1
            return
        await self._worker.run(load_as_in_files, self._model, dict(to_tensors(weights)))
        self._version = weights.version

    async def _write(self, draw: Callable[..., list[Rollout]], prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """What `draw` samples, `sample` or `sample_mixed` of given models."""
        options = {"version": self._version, "vocabulary": self._vocabulary}
        rollouts = await self._worker.run(draw, self._renderer, prompts, sampling, **options)
        self._tokens += sum(len(rollout.tokens) for rollout in rollouts)
        return rollouts

    async def version(self) -> int:
        return self._version

    async def figures(self) -> dict[str, float]:
        return {}

    async def describe(self) -> dict[str, object]:
        return {"class": type(self._model).__name__, "version": self._version, "tokens_written": self._tokens}

    async def sleep(self) -> None:
        """Move the weights to host memory, until `wake`."""
        await self._worker.run(leave_device, self._model)

    async def wake(self) -> None:
        await self._worker.run(to_device, pick_device(self._on_gpu), self._model)

    async def close(self) -> None:
        self._worker.close()


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    version: int,
    vocabulary: int | None = None,
) -> list[Rollout]:
    """`sampling.samples` rollouts a prompt, in order; log-probabilities are of the distribution that was sampled.

    Temperature comes first, then top-p. Ids from `vocabulary` on are padding and are never sampled.
    """

    def decode(jobs: list[Job]) -> list[Rollout]:
        rows = zip(jobs, _decode(model, jobs, sampling, renderer.stops, vocabulary), strict=True)
        return [answered(job, renderer, *decoded, version=version) for job, decoded in rows]

    return by_length(sampling.jobs(prompts), ROWS, decode)


def by_length(jobs: Sequence[Job], rows: int, decode: Callable[[list[Job]], list[Rollout]]) -> list[Rollout]:
    """Decode `rows` jobs at a time, those with prompts of similar length together; rollouts come in the jobs' order."""
    order = sorted(range(len(jobs)), key=lambda index: len(jobs[index][0].tokens))
    rollouts: dict[int, Rollout] = {}
    for start in range(0, len(order), rows):
        group = order[start : start + rows]
        rollouts |= zip(group, decode([jobs[index] for index in group]), strict=True)
    return [rollouts[index] for index in range(len(jobs))]


def _decode(
    model: PreTrainedModel, jobs: list[Job], sampling: Sampling, stops: Collection[int], vocabulary: int | None
) -> list[tuple[list[int], list[float]]]:
    """Tokens and log-probabilities of each job, token by token."""
    decoding = Decoding(model, [prompt for prompt, _ in jobs])
    generators = [torch.Generator().manual_seed(sample_seed(sampling.seed, prompt.row, number)) for prompt, number in jobs]
    written: list[tuple[list[int], list[float]]] = [([], []) for _ in jobs]
    live = list(range(len(jobs)))
    for _ in range(sampling.max_new_tokens):
        logits_BV = decoding.logits()
        if sampling.no_repeat_ngram_size is not None:
            for row in live:
                banned = completions([*jobs[row][0].tokens.tolist(), *written[row][0]], sampling.no_repeat_ngram_size)
                logits_BV[row, list(banned)] = float("-inf")
        logprobs_BV = warp(logits_BV, sampling, vocabulary)
        tokens_B = torch.zeros(len(jobs), dtype=torch.long)  # finished rows read any id
        for row in live:
            tokens_B[row] = token = _draw(logprobs_BV[row], sampling.temperature, generators[row])
            written[row][0].append(token)
            written[row][1].append(float(logprobs_BV[row, token]))
        live = [row for row in live if written[row][0][-1] not in stops]
        if not live:
            break
        decoding.read(tokens_B)
    return written


class Decoding:
    """A model that continues prompts side by side, with its keys and values.

    Prompts are padded on the left, so all rows end at the same position. `options` go to the model with every token.
    """

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Prompt], **options: Any) -> None:
        rows = [torch.as_tensor(prompt.tokens.astype(np.int64), device=model.device) for prompt in prompts]
        padded = partial(pad_sequence, batch_first=True, padding_side="left")
        self._model = model
        self._options = options
        self._ids, self._mask = padded(rows), padded([torch.ones_like(row) for row in rows])
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._cache: Any = None

    def logits(self) -> Tensor:
        """Logits of the next token [B, V], float32, on the CPU."""
        inputs = {"input_ids": self._ids, "attention_mask": self._mask, "position_ids": self._positions}
        output = self._model(**inputs, past_key_values=self._cache, use_cache=True, **self._options)
        self._cache = output.past_key_values
        return output.logits[:, -1].float().cpu()

    def read(self, tokens_B: Tensor) -> None:
        """Append the next tokens [B] to the input."""
        self._ids, self._positions = tokens_B[:, None].to(self._model.device), self._positions[:, -1:] + 1
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], -1)


def warp(logits_BV: Tensor, sampling: Sampling, vocabulary: int | None = None) -> Tensor:
    """Log-probabilities [B, V] of the sampled distribution: temperature first, then top-p."""
    logits_BV = logits_BV[:, :vocabulary]
    if vocabulary is not None and (absent := Vocabulary.of(vocabulary).absent):
        logits_BV = logits_BV.index_fill(-1, torch.tensor(absent), float("-inf"))
    logprobs_BV = torch.log_softmax(logits_BV / sampling.temperature if sampling.temperature > 0 else logits_BV, -1)
    if sampling.truncated:
        ordered, order = logprobs_BV.sort(-1, descending=True)
        beyond = running_sum(ordered.exp()) - ordered.exp() >= sampling.top_p  # mass before this token already reaches top_p
        drop = torch.zeros_like(beyond).scatter(-1, order, beyond)
        logprobs_BV = torch.log_softmax(logprobs_BV.masked_fill(drop, float("-inf")), -1)
    return logprobs_BV


def _draw(logprobs_V: Tensor, temperature: float, generator: torch.Generator) -> int:
    return int(torch.multinomial(logprobs_V.exp(), 1, generator=generator) if temperature > 0 else logprobs_V.argmax())


@torch.inference_mode()
def _score(model: PreTrainedModel, sequence: list[int]) -> list[float]:
    ids = torch.tensor([sequence], device=model.device)
    logprobs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, :-1].float(), -1)
    return logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1).tolist()
