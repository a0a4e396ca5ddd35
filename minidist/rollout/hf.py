"""transformers as the reference sampler: slow, exact and easy to read."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minidist.concurrency import Worker
from minidist.config.models import ModelConfig
from minidist.data.rendering import Renderer
from minidist.models.arrays import to_tensor
from minidist.models.hub import load_model
from minidist.rollout.ngrams import completions
from minidist.rollout.seeds import sample_seed
from minidist.types import Prompt, Rollout, Sampling, Weights

Job = tuple[Prompt, int]
"""A prompt and the number of its sample."""
ROWS = 128  # sequences decoded side by side


class HFEngine:
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
        rollouts = await self._worker.run(
            sample, self._model, self._renderer, prompts, sampling, version=self._version, vocabulary=self._vocabulary
        )
        return self._counted(rollouts)

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of every token after the first."""
        return await self._worker.run(lambda: [_score(self._model, list(sequence)) for sequence in sequences])

    async def load(self, weights: Weights | Path) -> None:
        """Replace the weights; the architecture stays."""
        if isinstance(weights, Path):
            self._model = load_model(self._config.model_copy(update={"model": str(weights)}), "weights", self._on_gpu)
            self._version += 1
            return
        state = {name: to_tensor(array, weights.dtypes[name]) for name, array in weights.arrays.items()}
        await self._worker.run(self._model.load_state_dict, state)
        self._version = weights.version

    def _counted(self, rollouts: list[Rollout]) -> list[Rollout]:
        self._tokens += sum(len(rollout.tokens) for rollout in rollouts)
        return rollouts

    async def version(self) -> int:
        return self._version

    async def figures(self) -> dict[str, float]:
        return {}

    async def describe(self) -> dict[str, object]:
        return {"class": type(self._model).__name__, "version": self._version, "tokens_written": self._tokens}

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
        decoded = _decode(model, jobs, sampling, renderer.eos, vocabulary)
        return [
            Rollout.written(
                prompt,
                tokens,
                logprobs,
                version=version,
                stopped=tokens[-1] == renderer.eos,
                sample=number,
                text=renderer.decode(np.asarray(tokens)),
            )
            for (prompt, number), (tokens, logprobs) in zip(jobs, decoded, strict=True)
        ]

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
    model: PreTrainedModel, jobs: list[Job], sampling: Sampling, eos: int, vocabulary: int | None
) -> list[tuple[list[int], list[float]]]:
    """Tokens and log-probabilities of each job, token by token with a key-value cache.

    Prompts are padded on the left, so all rows end at the same position.
    """
    ids, mask = (part.to(model.device) for part in flush_right([prompt for prompt, _ in jobs]))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    generators = [torch.Generator().manual_seed(sample_seed(sampling.seed, prompt.row, number)) for prompt, number in jobs]
    written: list[tuple[list[int], list[float]]] = [([], []) for _ in jobs]
    live, cache = list(range(len(jobs))), None
    for _ in range(sampling.max_new_tokens):
        output = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        logits = output.logits[:, -1].float().cpu()
        if sampling.no_repeat_ngram_size is not None:
            for row in live:
                banned = completions([*jobs[row][0].tokens.tolist(), *written[row][0]], sampling.no_repeat_ngram_size)
                logits[row, list(banned)] = float("-inf")
        logprobs = warp(logits, sampling, vocabulary)
        ids = torch.full((len(jobs), 1), eos, dtype=torch.long)
        for row in live:
            token = _draw(logprobs[row], sampling.temperature, generators[row])
            ids[row, 0] = token
            written[row][0].append(token)
            written[row][1].append(float(logprobs[row, token]))
        live = [row for row in live if written[row][0][-1] != eos]
        if not live:
            break
        ids, positions = ids.to(model.device), positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(jobs), 1)], -1)
    return written


def flush_right(prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
    """Token ids [B, P] of prompts padded on the left to equal length, and the mask [B, P] of their real tokens."""
    longest = max(len(prompt.tokens) for prompt in prompts)
    ids_BP = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask_BP = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids_BP[row, longest - len(prompt.tokens) :] = torch.as_tensor(prompt.tokens.astype(np.int64))
        mask_BP[row, longest - len(prompt.tokens) :] = 1
    return ids_BP, mask_BP


def warp(logits_BV: Tensor, sampling: Sampling, vocabulary: int | None = None) -> Tensor:
    """Log-probabilities [B, V] of the sampled distribution: temperature first, then top-p."""
    logits_BV = logits_BV[:, :vocabulary]
    logprobs_BV = torch.log_softmax(logits_BV / sampling.temperature if sampling.temperature > 0 else logits_BV, -1)
    if sampling.truncated:
        ordered, order = logprobs_BV.sort(-1, descending=True)
        beyond = ordered.exp().cumsum(-1) - ordered.exp() >= sampling.top_p  # mass before this token already reaches top_p
        drop = torch.zeros_like(beyond).scatter(-1, order, beyond)
        logprobs_BV = torch.log_softmax(logprobs_BV.masked_fill(drop, float("-inf")), -1)
    return logprobs_BV


def _draw(logprobs_V: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(logprobs_V.argmax())
    return int(torch.multinomial(logprobs_V.exp(), 1, generator=generator))


@torch.inference_mode()
def _score(model: PreTrainedModel, sequence: list[int]) -> list[float]:
    ids = torch.tensor([sequence], device=model.device)
    logprobs = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, :-1].float(), -1)
    return logprobs.gather(-1, ids[0, 1:, None]).squeeze(-1).tolist()
