"""Teacher-mixed sampling by definition: both models read the same prefix, and one token is drawn from the mixture.

Slow and easy to read: the reference for `rollout.mixed.turns`. As in the original implementation, finished rows are decoded
along until the last row is finished.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minidist.config.models import ModelConfig
from minidist.data.rendering import Renderer
from minidist.models.hub import load_model
from minidist.rollout.hf import HFEngine, Job, by_length, flush_right, warp
from minidist.types import Array, Prompt, Rollout, Sampling

ROWS = 256  # sequences decoded side by side


class HFPairEngine(HFEngine):
    """The student's engine in transformers, with a copy of the teacher beside it for mixed sampling."""

    def __init__(
        self,
        config: ModelConfig,
        teacher: ModelConfig,
        renderer: Renderer,
        *,
        vocabulary: int | None = None,
        on_gpu: bool = False,
    ) -> None:
        super().__init__(config, renderer, vocabulary=vocabulary, on_gpu=on_gpu)
        self._teacher = load_model(teacher, "teacher.model", on_gpu)

    async def mix(self, prompts: Sequence[Prompt], alpha: float, sampling: Sampling) -> list[Rollout]:
        """As `generate`, from alpha * teacher + (1 - alpha) * student."""
        mixture = Mixture(self._model, self._teacher, alpha)
        rollouts = await self._worker.run(
            sample_mixed, mixture, self._renderer, prompts, sampling, version=self._version, vocabulary=self._vocabulary
        )
        return self._counted(rollouts)


@dataclass(frozen=True)
class Mixture:
    """alpha * teacher + (1 - alpha) * student, of two models with one tokenizer."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    alpha: float


@torch.inference_mode()
def sample_mixed(
    mixture: Mixture,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    version: int,
    vocabulary: int | None = None,
) -> list[Rollout]:
    """`sampling.samples` rollouts a prompt, in order, each token drawn from alpha * p + (1 - alpha) * q.

    Temperature and top-p act on each model before mixing; ids from `vocabulary` on are sliced off before either's softmax.
    The coin of a token y is drawn after y, from its posterior: the teacher chose y with probability alpha * p(y) / mixture(y).
    """
    assert sampling.no_repeat_ngram_size is None, "a mixture blocks no n-grams"

    def decode(jobs: list[Job]) -> list[Rollout]:
        uniforms = np.stack([_uniforms(sampling, prompt.row, number) for prompt, number in jobs])
        warped = partial(warp, sampling=sampling, vocabulary=vocabulary)
        student, teacher = (
            _Model(model, [prompt for prompt, _ in jobs], warped) for model in (mixture.student, mixture.teacher)
        )
        tokens, logprobs, coins = _decode(student, teacher, mixture.alpha, torch.from_numpy(uniforms), renderer.eos)
        rows = zip(jobs, tokens, logprobs, coins, strict=True)
        return [_rollout(job, *row, renderer=renderer, version=version) for job, *row in rows]

    return by_length(sampling.jobs(prompts), ROWS, decode)


def _rollout(job: Job, tokens_T: Array, logprobs_T: Array, coins_T: Array, *, renderer: Renderer, version: int) -> Rollout:
    """One row of `_decode`, cut after its first end-of-sequence token."""
    prompt, number = job
    stops = np.flatnonzero(tokens_T == renderer.eos)
    length = int(stops[0]) + 1 if len(stops) else len(tokens_T)
    return Rollout.written(
        prompt,
        tokens_T[:length],
        np.where(coins_T[:length], np.float32("nan"), logprobs_T[:length]),
        version=version,
        stopped=len(stops) > 0,
        sample=number,
        text=renderer.decode(tokens_T[:length]),
        coins=coins_T[:length],
    )


def _uniforms(sampling: Sampling, row: int, sample: int) -> Array:
    """Two uniform numbers a token [T, 2]: the first draws the token, the second its coin."""
    return np.random.default_rng([sampling.seed, row, sample]).random((sampling.max_new_tokens, 2))


class _Model:
    """One of the two models while it decodes a group of rows, with its keys and values."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Prompt], warped: Callable[[Tensor], Tensor]) -> None:
        self._model = model
        self._warped = warped
        self._ids, self._mask = (part.to(model.device) for part in flush_right(prompts))
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._cache: Any = None

    def logprobs(self) -> Tensor:
        """Log-probabilities of the next token [B, V], on the CPU."""
        output = self._model(
            input_ids=self._ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        return self._warped(output.logits[:, -1].float().cpu())

    def read(self, tokens_B: Tensor) -> None:
        """Append the next tokens [B] to the input."""
        self._ids, self._positions = tokens_B[:, None].to(self._model.device), self._positions[:, -1:] + 1
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], -1)


def _decode(student: _Model, teacher: _Model, alpha: float, uniforms_BT2: Tensor, eos: int) -> tuple[Array, Array, Array]:
    """Tokens, the student's log-probabilities of them, and coins, each [B, T]; values after a row's first EOS are noise."""
    rows, count = uniforms_BT2.shape[:2]
    tokens = torch.full((rows, count), eos)
    logprobs, coins = torch.zeros(rows, count), torch.zeros(rows, count, dtype=torch.bool)
    finished = torch.zeros(rows, dtype=torch.bool)
    for t in range(count):
        q_BV, p_BV = student.logprobs(), teacher.logprobs()
        tokens[:, t], coins[:, t] = draw(q_BV, p_BV, alpha, uniforms_BT2[:, t])
        logprobs[:, t] = q_BV.gather(-1, tokens[:, t : t + 1]).squeeze(-1)
        finished |= tokens[:, t] == eos
        if finished.all():
            break
        if t + 1 < count:
            student.read(tokens[:, t])
            teacher.read(tokens[:, t])
    return tokens.to(torch.int32).numpy(), logprobs.numpy(), coins.numpy()


def draw(student_BV: Tensor, teacher_BV: Tensor, alpha: float, uniforms_B2: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B] from the mixture of two tables of log-probabilities, by its inverse distribution function, and coins [B]."""
    q_BV, p_BV = (1 - alpha) * student_BV.exp(), alpha * teacher_BV.exp()
    cdf_BV = (q_BV + p_BV).double().cumsum(-1)
    # Scaled by the total, so that rounding leaves no gap at the end; right=True never selects a token of probability 0.
    points_B1 = uniforms_B2[:, :1].double() * cdf_BV[:, -1:]
    tokens_B1 = torch.searchsorted(cdf_BV, points_B1, right=True).clamp(max=cdf_BV.shape[-1] - 1)
    q_B, p_B = (part.gather(-1, tokens_B1).squeeze(-1).double() for part in (q_BV, p_BV))
    return tokens_B1.squeeze(-1), uniforms_B2[:, 1] * (q_B + p_B) < p_B
